"""Whatever becomes of the line, and at whichever message: work is done once, or not at all with an error
that says so, or it is unknown and never repeated blindly; and the process goes on with a clean connection.

Each case lets a fault happen instead of one message of a conversation, which is learnt by listening first.
BACKPLANE_FAULTS_SEED takes another sample of them, BACKPLANE_FAULTS=all takes every one.
"""

import itertools
import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.rows import DictRow
from tests.databases import Database
from tests.ledgers import Kept, assert_books_balance, debit, entries, new_account, rows
from tests.senders import Context, clerk_user, post_clerk
from tests.tcp_proxy import Fault, Kind, Proxy
from tests.wire import Message

from backplane import bounded, config, connect, db, problems

SEED = os.environ.get("BACKPLANE_FAULTS_SEED", "1")
ALL = os.environ.get("BACKPLANE_FAULTS") == "all"
STALLS = 3  # of a conversation, unless all are wanted: each takes its invocation's whole time
SHARE = 0.3  # of what may become of an event, unless all is wanted
STALLED = 0.3  # seconds an invocation has left that meets a stall
LOUD: Sequence[Kind] = ("cut", "reset", "half", "torn")
ORGANIZATION = UUID("01890a5d-ac96-774b-bcce-b302099a8057")

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between attempts


@dataclass(frozen=True)
class Line:
    """A database behind a proxy, to which backplane.db connects as a role."""

    database: Database
    owner: psycopg.Connection[DictRow]
    proxy: Proxy
    role: str

    def sessions_in_transactions(self) -> int:
        row = self.owner.execute(
            """
            SELECT count(*) AS n
            FROM pg_stat_activity
            WHERE datname = current_database() AND usename = %s AND state <> 'idle'
            """,
            [self.role],
        ).fetchone()
        return row["n"] if row else 0

    def await_quiet(self) -> None:
        """Until what was abandoned has ended: the server hears of it in its own time."""
        for _ in range(20_000):
            if not self.sessions_in_transactions():
                return
            self.owner.execute("SELECT pg_sleep(0.002)")
        raise AssertionError("a session stays in its transaction")


def line(database: Database, role: str) -> Iterator[Line]:
    with database.connect() as owner, Proxy(database.url(role)) as proxy:
        field = {"backplane_app": "app", "backplane_system": "system"}[role]
        with replace(database, **{field: proxy.url}).as_role(role):
            yield Line(database, owner, proxy, role)


@pytest.fixture
def app_line(database: Database) -> Iterator[Line]:
    yield from line(database, "backplane_app")


@pytest.fixture
def system_line(database: Database) -> Iterator[Line]:
    yield from line(database, "backplane_system")


def conversation(proxy: Proxy, work: Callable[[], object]) -> list[Message]:
    heard = proxy.watch()
    work()
    return list(heard)


def faults(said: Sequence[Message]) -> Iterator[Fault]:
    """Faults at every message; of a run of alike ones (a server's parameters) at the first."""
    luck = random.Random(SEED)
    steps = [
        step
        for step, message in enumerate(said)
        if step == 0 or (message.type, message.by_client) != (said[step - 1].type, said[step - 1].by_client)
    ]
    for step in steps:
        for kind in LOUD if ALL else luck.sample(LOUD, 2):
            yield Fault(step, kind, luck)
    for step in steps if ALL else sorted(luck.sample(steps, STALLS)):
        yield Fault(step, "stall", luck)


def begin_invocation(fault: Fault) -> None:
    db.set_deadline(db.MARGIN + STALLED if fault.kind == "stall" else 60)


def assert_clean(line: Line) -> None:
    """The next invocation finds nothing of the one before."""
    db.set_deadline(60)
    row = db.call(
        """
        SELECT concat(current_setting('app.organization_id', true),
                      current_setting('app.user_id', true)) AS who,
               current_setting('statement_timeout') AS statement, current_setting('lock_timeout') AS lock,
               current_setting('idle_in_transaction_session_timeout') AS idle, current_user AS role
        """,
        repeatable=True,
    )
    assert row == {"who": "", "statement": "30s", "lock": "10s", "idle": "1min", "role": line.role}
    line.await_quiet()


# ---- a transaction, from the first word on ----


def place_of(said: Sequence[Message], word: bytes) -> int:
    return next(step for step, message in enumerate(said) if word in message.data)


def test_a_transaction_is_done_once_or_not_at_all_or_unknown_whatever_becomes_of_the_line(
    app_line: Line,
) -> None:
    line, owner = app_line, app_line.owner
    owner.execute("CREATE TABLE public.marks (text text); GRANT ALL ON public.marks TO backplane_app")
    attempts: list[str] = []

    def mark(text: str) -> Callable[[db.Tx], str]:
        def work(tx: db.Tx) -> str:
            attempts.append(text)
            tx.execute("INSERT INTO public.marks VALUES (%s)", [text])
            return text

        return work

    def cold(text: str) -> str:
        connect._checked.clear()
        return db.run(mark(text), organization_id=ORGANIZATION, user_id=ORGANIZATION)

    def marks(text: str) -> int:
        row = owner.execute("SELECT count(*) AS n FROM public.marks WHERE text = %s", [text]).fetchone()
        return row["n"] if row else 0

    said = conversation(line.proxy, lambda: cold("undisturbed"))
    committing = place_of(said, b"COMMIT\0")
    assert {message.type for message in said} >= set("RpSKZQTDCPBDES12n")
    for fault in faults(said):
        text = f"{fault} {next(_numbers)}"
        db.reset()
        line.proxy.set_fault(fault)
        begin_invocation(fault)
        try:
            outcome = cold(text)
        except db.CommitUnknown:
            outcome = "unknown"
        except problems.Unavailable:
            outcome = "unavailable"
        assert line.proxy.struck, fault
        commits = sum(message.by_client and b"COMMIT\0" in message.data for message in line.proxy.heard)
        if fault.step >= committing:
            assert outcome == "unknown", fault
            assert (commits, attempts.count(text)) == (1, 1), fault
        elif fault.kind == "stall":
            assert (outcome, commits) == ("unavailable", 0), fault
        else:
            assert (outcome, commits) == (text, 1), fault
        assert_clean(line)
        expected = {"unknown": int(fault.step > committing), "unavailable": 0, text: 1}[outcome]
        assert marks(text) == expected, fault


# ---- one statement that commits by itself ----


def test_a_debit_whose_line_is_spoilt_anywhere_is_repeated_by_its_key_and_done_once(
    system_line: Line,
) -> None:
    line = system_line
    organization_id = new_account(line.database, 10_000)
    with replace(line.database, system=line.proxy.url).as_role("backplane_system"):
        debit(organization_id)  # the connection is there
        said = conversation(line.proxy, lambda: debit(organization_id))
        assert {message.type for message in said} >= set("PBDES12TDCZ")
        made = 2
        for fault in faults(said):
            key = f"{fault} {next(_numbers)}"
            debit(organization_id)
            line.proxy.set_fault(fault)
            begin_invocation(fault)
            with pytest.raises(db.CommitUnknown, match="same Idempotency-Key"):
                debit(organization_id, key=key)
            assert line.proxy.struck, fault
            assert_clean(line)
            first, _ = debit(organization_id, key=key)
            assert debit(organization_id, key=key) == (first, True)
            made += 2
    assert len(entries(Kept(line.owner), organization_id)) == 1 + made
    assert_books_balance(Kept(line.owner), organization_id)


# ---- an event from outside ----


@pytest.mark.usefixtures("webhook_secrets")
def test_an_event_whose_line_is_spoilt_anywhere_has_one_effect_when_it_is_sent_again(
    system_line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = system_line

    def sign_up(user: str, seconds: float = 60) -> int:
        monkeypatch.setattr(Context, "get_remaining_time_in_millis", lambda _: int(seconds * 1000))
        return post_clerk(clerk_user(user, email=f"{user}@example.com"), f"msg_{user}").status

    sign_up("first")
    said = conversation(line.proxy, lambda: sign_up("undisturbed"))
    luck = random.Random(SEED)
    cases = list(faults(said))
    for fault in (
        cases if ALL else [fault for fault in cases if fault.kind != "stall" and luck.random() < 0.3]
    ):
        user = f"user_{uuid4().hex}"
        line.proxy.set_fault(fault)
        status = sign_up(user, seconds=2 if fault.kind == "stall" else 60)
        assert line.proxy.struck, fault
        assert status in {200, 503}, fault
        line.await_quiet()
        assert sign_up(user) == 200
        found = rows(
            Kept(line.owner),
            """
            SELECT (SELECT count(*) FROM identity.users WHERE clerk_id = %s) AS users,
                   (SELECT count(*) FROM platform.webhook_inbox WHERE event_id = %s) AS events,
                   o.id
            FROM identity.users AS u
            JOIN tenancy.organizations AS o ON o.personal_user_id = u.id
            WHERE u.clerk_id = %s
            """,
            user,
            f"msg_{user}",
            user,
        )
        assert [(row["users"], row["events"]) for row in found] == [(1, 1)], fault
        (entry,) = entries(Kept(line.owner), found[0]["id"])
        assert entry["kind"] == "grant"
        assert_books_balance(Kept(line.owner), found[0]["id"])


# ---- bounds ----


def test_a_process_that_was_left_in_the_middle_keeps_its_locks_no_longer_than_it_had_time(
    app_line: Line,
) -> None:
    line, owner = app_line, app_line.owner
    owner.execute("CREATE TABLE public.marks (text text); GRANT ALL ON public.marks TO backplane_app")
    db.connection()
    db.set_deadline(db.MARGIN + 0.2)
    frozen = db.transaction()
    frozen.__enter__().execute("LOCK TABLE public.marks")
    line.await_quiet()  # not by the role's minute: this waits for less
    assert owner.execute("SELECT count(*) AS n FROM public.marks").fetchone() == {"n": 0}


@pytest.mark.usefixtures("database")
def test_a_server_that_takes_the_call_and_says_nothing_is_left_in_time_whatever_its_addresses(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        addresses = [(*found[:4], ("127.0.0.1", port)) for found in socket.getaddrinfo("127.0.0.1", port)] * 2
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        monkeypatch.setenv("DATABASE_URL", f"postgresql://backplane_app@silent.example:{port}/x")
        config.settings.cache_clear()
        db.reset()
        db.set_deadline(db.MARGIN + STALLED)
        with pytest.raises(problems.Unavailable, match="can't be reached"):
            db.call("SELECT 1")
        db.reset()
    config.settings.cache_clear()
    assert "the invocation's time is over" in caplog.text  # and not libpq's two seconds for each address


def test_silence_ends_with_the_invocations_time_and_before_it_is_cut_off() -> None:
    assert 0 < bounded.GRACE < db.MARGIN
