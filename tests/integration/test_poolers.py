"""Behind a pooler: what is said on the wire to RDS Proxy, and whole slices through a real PgBouncer."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import cast
from uuid import UUID, uuid4

import migrate
import psycopg
import pytest
from tests import debian
from tests.callers import debit, send, sign_up, trust_our_tokens
from tests.databases import Database
from tests.ledgers import Kept, assert_books_balance, entries, new_account
from tests.pgbouncer import PgBouncer, pgbouncer
from tests.processes import race
from tests.senders import Context, checkout_session, clerk_user, post_clerk, post_stripe, stripe_event
from tests.session_state import pins
from tests.tcp_proxy import Proxy
from tests.wire import Message

from backplane import config, connect, db
from backplane.session import Session


@pytest.fixture(scope="module")
def pooler(server_url: str, role_passwords: dict[str, str]) -> Iterator[PgBouncer]:
    with pgbouncer(server_url, role_passwords) as made:
        yield made


def through(pooler: PgBouncer, database: Database) -> Database:
    return replace(database, app=pooler.url(database.app), system=pooler.url(database.system))


def call_as_a_customer(monkeypatch: pytest.MonkeyPatch) -> UUID:
    """What users' requests do: sign up, spend, be refused, write under a key, read."""
    trust_our_tokens(monkeypatch)
    ada = sign_up()
    assert debit(ada.token, key="debit-1", quantity=3).status == 201
    assert debit(ada.token, key="debit-1", quantity=3).headers["idempotent-replayed"] == "true"
    assert debit(ada.token, key="debit-2", quantity=1000).status == 402
    for _ in range(2):
        made = send("POST", "/v1/projects", ada.token, key="project-1", body={"title": "Mine"})
        assert made.status == 201
    assert send("POST", "/v1/projects", ada.token, body={"title": 7}).status == 422
    assert len(send("GET", "/v1/projects", ada.token).body["items"]) == 1
    assert send("GET", "/v1/credits", ada.token).body["available"] == 97
    return ada.organization_id


def deliver_as_a_sender() -> None:
    """What webhooks do: apply, repeat, park, be poisonous (which is undone to a savepoint)."""
    paid = checkout_session(client_reference_id="user_1", customer="cus_1")
    events = [stripe_event("checkout.session.completed", paid), stripe_event("invoice.paid", {"id": 5})]
    statuses = [post_stripe(event).body["status"] for event in (*events, events[1])]
    assert statuses == ["parked", "quarantined", "duplicate"]
    assert post_clerk(clerk_user("user_1"), "msg_1").body["status"] == "processed"


# ---- on the wire ----


def texts(said: list[Message]) -> Iterator[str]:
    """What the client asked the server to run or to prepare."""
    for message in said:
        if message.by_client and message.type == "Q":
            yield message.data[5:-1].decode()
        if message.by_client and message.type == "P":
            name, _, rest = message.data[5:].partition(b"\0")
            assert name == b"", "a named prepared statement"
            yield rest.partition(b"\0")[0].decode()


@pytest.mark.usefixtures("webhook_secrets")
def test_nothing_that_is_said_binds_a_session_or_is_refused_by_a_proxy(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_PREPARE_THRESHOLD", raising=False)
    with Proxy(database.app) as app, Proxy(database.system) as system:
        behind = replace(database, app=app.url, system=system.url)
        with behind.as_role("backplane_app"):
            call_as_a_customer(monkeypatch)
        with behind.as_role("backplane_system"):
            deliver_as_a_sender()
        for proxy in (app, system):
            said = list(texts(proxy.heard))
            assert len(said) > 10
            assert [pinned for text in said if (pinned := pins(text))] == []
            assert any("ROLLBACK" in text for text in said)
            assert_settings_stay_in_their_transaction(proxy.heard)
            startups = [m.data for m in proxy.heard if m.by_client and m.data[4:8] == b"\0\x03\0\0"]
            assert startups
            for startup in startups:
                assert set(startup[8:-2].split(b"\0")[::2]) <= {b"user", b"database", b"application_name"}


def assert_settings_stay_in_their_transaction(said: list[Message]) -> None:
    state = b"I"
    for message in said:
        if not message.by_client and message.type == "Z":
            state = message.data[5:6]
        if message.by_client and message.type == "Q" and b"SET LOCAL" in message.data:
            assert state == b"T" or message.data[5:].startswith(b"BEGIN")


# ---- through PgBouncer ----


@pytest.mark.usefixtures("webhook_secrets")
def test_requests_and_events_are_served_through_it(
    database: Database, pooler: PgBouncer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooled = through(pooler, database)
    with pooled.as_role("backplane_app"):
        organization_id = call_as_a_customer(monkeypatch)
    with pooled.as_role("backplane_system"):
        deliver_as_a_sender()
    assert_books_balance(database, organization_id)


PROJECTS = 30
# Opens transactions of its own organisation, and in between asks outside of any; says what it saw.
TENANT = f"""
import sys
from uuid import UUID
from backplane import db, ledger

organization_id = UUID(sys.argv[1])
query = "SELECT organization_id::text AS id, pg_backend_pid() AS pid FROM credits.balances"
outside = b"SELECT coalesce(current_setting('app.organization_id', true), '') AS setting"
db.connection()
print("ready", flush=True)
sys.stdin.readline()
for number in range({PROJECTS}):
    rows = db.run(lambda tx: tx.execute(query).fetchall(), organization_id=organization_id)
    print(*(row["id"] for row in rows), sep="+")
    print(f"pid-{{rows[0]['pid']}}")
    ledger.debit(organization_id, "ai_text_chat", 1, key=f"debit-{{number}}", actor="user:1")
    assert db.call(outside) == {{"setting": ""}}
"""


def test_clients_that_share_one_server_connection_never_see_each_others_rows(
    database: Database, pooler: PgBouncer
) -> None:
    organizations = [new_account(database, 100) for _ in range(2)]
    with through(pooler, database).as_role("backplane_app"):
        said = race(TENANT, *([str(organization_id)] for organization_id in organizations))
    for organization_id, words in zip(organizations, said, strict=True):
        assert set(words[::2]) == {str(organization_id)}
        assert_books_balance(database, organization_id)
    assert len({pid for words in said for pid in words[1::2]}) == 1
    with database.connect() as owner:
        for organization_id in organizations:
            assert len(entries(Kept(owner), organization_id)) == 1 + PROJECTS


def test_no_client_runs_what_another_has_prepared(
    database: Database, pooler: PgBouncer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also behind a PgBouncer that does not know who has prepared what."""
    monkeypatch.setenv("DATABASE_PREPARE_THRESHOLD", "1")
    with through(pooler, database).as_role("backplane_app"):
        first, second = (cast("Session", connect.connect(config.settings(), kind=Session)) for _ in range(2))
        with closing(first), closing(second):
            for client, said in [(first, "first"), (second, "second")] * 3:
                assert client.ask(f"SELECT '{said}' AS said") == [{"said": said}]
                assert client.execute(f"SELECT '{said}' AS said").fetchall() == [{"said": said}]
            for _ in range(3):  # the third client of the same statement: there it is already
                assert db.call("SELECT 'first' AS said") == {"said": "first"}


def test_work_whose_server_connection_ends_is_done_once(database: Database, pooler: PgBouncer) -> None:
    sessions: list[int] = []

    def work(tx: db.Tx) -> None:
        row = tx.execute("SELECT pg_backend_pid() AS pid").fetchone()
        assert row is not None
        sessions.append(row["pid"])
        tx.execute("INSERT INTO public.notes VALUES ('once')")
        if len(sessions) == 1:
            owner.execute("SELECT pg_terminate_backend(%s, 5000)", [row["pid"]])
        tx.execute("SELECT 1")

    with database.connect() as owner, through(pooler, database).as_role("backplane_app"):
        owner.execute("CREATE TABLE public.notes (text text); GRANT ALL ON public.notes TO backplane_app")
        db.run(work)
        assert len(sessions) == 2
        assert owner.execute("SELECT text FROM public.notes").fetchall() == [{"text": "once"}]


def test_a_client_that_was_cut_off_leaves_neither_settings_nor_locks_to_the_next(
    database: Database, pooler: PgBouncer
) -> None:
    organization_id = new_account(database, 5)
    with through(pooler, database).as_role("backplane_app"):
        cut_off = db.transaction(organization_id=organization_id, user_id=uuid4())
        cut_off.__enter__().execute("SELECT pg_advisory_xact_lock(1)")
        db.set_deadline(30)  # the next invocation
        row = db.call(
            """
            SELECT current_setting('app.organization_id', true) AS o, current_setting('lock_timeout') AS lock,
                   pg_try_advisory_xact_lock(1) AS free
            """
        )
    assert row is not None
    assert (row["o"] or "", row["lock"], row["free"]) == ("", "10s", True)


def test_migrations_go_around_it(
    empty_database: Database, pooler: PgBouncer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", pooler.url(empty_database.app))
    monkeypatch.setenv("DATABASE_DIRECT_URL", empty_database.owner)
    config.settings.cache_clear()
    assert migrate.handler({}, Context(seconds=60.0))["ok"]
    config.settings.cache_clear()
    with psycopg.connect(pooler.url(empty_database.app)) as session:  # and it serves what they made
        assert session.execute("SELECT count(*) FROM billing.plans").fetchone() is not None


def test_without_a_pooler_to_be_had_it_is_a_failure_in_ci(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get either
    for ci, outcome in (("true", pytest.fail.Exception), ("", pytest.skip.Exception)):
        monkeypatch.setenv("CI", ci)
        with pytest.raises(outcome):
            debian.program("no-such-program", ["no-such-package"])
