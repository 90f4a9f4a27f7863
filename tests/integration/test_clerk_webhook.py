"""POST /webhooks/clerk: users come, change and go, once, in whatever order Clerk tells it."""

import base64
import copy
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import clerk_webhook
import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg.rows import DictRow
from tests.databases import ROLES, Database, create_database, drop_database, on
from tests.ledgers import assert_books_balance, debit, hold
from tests.senders import (
    CLERK_SECRET,
    FIRST,
    Answer,
    call,
    clerk_item,
    clerk_membership,
    clerk_organization,
    clerk_subscription,
    clerk_user,
    http_event,
    post_clerk,
    svix_headers,
)

from backplane import identity, secrets

pytestmark = pytest.mark.usefixtures("webhook_secrets")

SIGN_UP = 100
T0 = 1_760_000_000_000  # milliseconds
OTHER_SECRET = "whsec_" + base64.b64encode(b"another secret of 24 byte").decode()

_messages = itertools.count(1)


def status(event: dict[str, Any], message_id: str | None = None) -> str:
    answer = post_clerk(event, message_id or f"msg_of_{next(_messages)}")
    assert answer.status == 200, answer.body
    return str(answer.body["status"])


def post(body: bytes, headers: dict[str, str] | None = None) -> Answer:
    event = http_event(
        "POST",
        "/webhooks/clerk",
        body=body,
        headers=svix_headers(body, "msg_1") if headers is None else headers,
        base64_encoded=True,
    )
    return call(clerk_webhook.handler, event)


def rows(database: Database, query: str, *params: object) -> list[DictRow]:
    with database.connect() as connection:
        return connection.execute(query, params).fetchall()


def user(database: Database, clerk_id: str = "user_1") -> DictRow:
    [row] = rows(database, "SELECT * FROM identity.users WHERE clerk_id = %s", clerk_id)
    return row


def available(database: Database, clerk_id: str = "user_1") -> int:
    [row] = rows(
        database,
        """
        SELECT a.available
        FROM credits.accounts AS a
        JOIN tenancy.organizations AS o ON o.id = a.organization_id
        JOIN identity.users AS u ON u.id = o.personal_user_id
        WHERE u.clerk_id = %s
        """,
        clerk_id,
    )
    return int(row["available"])


# ---- let in and refused ----


def test_each_secret_in_force_lets_in(system_db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"clerk": [OTHER_SECRET, CLERK_SECRET], "hash": {"key": "k"}}
    monkeypatch.setattr(secrets, "get", lambda arn, *, refresh=False: values[arn])
    body = json.dumps(clerk_user("user_1")).encode()
    for secret in (CLERK_SECRET, OTHER_SECRET):
        assert post(body, svix_headers(body, f"msg_{secret[-5:]}", secret)).status == 200


def test_one_good_signature_among_several_is_enough(system_db: Database) -> None:
    body = json.dumps(clerk_user("user_1")).encode()
    good, other = svix_headers(body, "msg_1"), svix_headers(body, "msg_1", OTHER_SECRET)
    several = f"v1a,{'A' * 20} {other['svix-signature']} {good['svix-signature']}"
    assert post(body, good | {"svix-signature": several}).body["status"] == "processed"


BODY = json.dumps(clerk_user("user_1")).encode()


@pytest.mark.parametrize(
    "headers",
    [
        dict,
        lambda: {k: v for k, v in svix_headers(BODY, "msg_1").items() if k != "svix-id"},
        lambda: {k: v for k, v in svix_headers(BODY, "msg_1").items() if k != "svix-timestamp"},
        lambda: {k: v for k, v in svix_headers(BODY, "msg_1").items() if k != "svix-signature"},
        lambda: svix_headers(BODY, "msg_1", OTHER_SECRET),
        lambda: svix_headers(BODY, "msg_1", at=time.time() - 3600),
        lambda: svix_headers(BODY, "msg_1", at=time.time() + 3600),
        lambda: svix_headers(BODY + b" ", "msg_1"),
        lambda: svix_headers(BODY, "msg_1") | {"svix-id": "msg_2"},
        lambda: svix_headers(BODY, "msg_1") | {"svix-id": ""},
        lambda: svix_headers(BODY, "m" * 256),
        lambda: svix_headers(BODY, "msg_\x00"),
        lambda: svix_headers(BODY, "msg_é"),
        lambda: svix_headers(BODY, "msg_1") | {"svix-timestamp": "now"},
        lambda: svix_headers(BODY, "msg_1") | {"svix-timestamp": "nan"},
        lambda: svix_headers(BODY, "msg_1") | {"svix-timestamp": "1e400"},
        lambda: svix_headers(BODY, "msg_1") | {"svix-timestamp": "9" * 30},
        lambda: svix_headers(BODY, "msg_1") | {"svix-signature": "v1"},
        lambda: svix_headers(BODY, "msg_1") | {"svix-signature": "v1,a,b"},
        lambda: svix_headers(BODY, "msg_1") | {"svix-signature": "v1,é"},
        lambda: svix_headers(BODY, "msg_1") | {"svix-signature": "v1,=== v1,"},
        lambda: svix_headers(BODY, "msg_1") | {"svix-signature": "v1," + "A" * 5000},
    ],
)
def test_what_the_secret_did_not_sign_is_refused_and_leaves_nothing(
    system_db: Database, headers: Callable[[], dict[str, str]]
) -> None:
    answer = post(BODY, headers())
    assert (answer.status, answer.body["code"]) == (400, "invalid_signature")
    assert answer.headers["content-type"] == "application/problem+json"
    assert rows(system_db, "SELECT 1 FROM platform.webhook_inbox") == []
    assert rows(system_db, "SELECT 1 FROM identity.users") == []


_header = st.one_of(
    st.text(max_size=40),
    st.floats().map(str),
    st.integers(-(10**30), 10**30).map(str),
    st.text(alphabet="v1a,= +/AZ09é", max_size=80),
    st.sampled_from([str(int(time.time())), "v1,", "v1,AAAA", "msg_1"]),
)


@given(st.dictionaries(st.sampled_from(["svix-id", "svix-timestamp", "svix-signature"]), _header))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@example({"svix-id": "m", "svix-timestamp": str(int(time.time())), "svix-signature": "v1,\ud800"})
@example({"svix-id": "\ud800", "svix-timestamp": str(int(time.time())), "svix-signature": "v1,AAAA"})
def test_any_other_headers_are_refused_before_the_database_is_asked(headers: dict[str, str]) -> None:
    answer = post(BODY, headers)
    assert (answer.status, answer.body["code"]) == (400, "invalid_signature")


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"no json", b"\xff", b"{}", b'{"type": 1}', b'{"type": ""}', b'{"type":' + b"[" * 100_000],
)
def test_a_signed_body_without_an_envelope_is_refused_and_leaves_nothing(
    system_db: Database, body: bytes
) -> None:
    answer = post(body, svix_headers(body, "msg_1"))
    assert (answer.status, answer.body["code"]) == (400, "invalid_payload")
    assert rows(system_db, "SELECT 1 FROM platform.webhook_inbox") == []


def test_kinds_without_effect_are_recorded_and_ignored(system_db: Database) -> None:
    for kind in (
        "session.created",
        "organizationDomain.created",
        "waitlistEntry.created",
        "a.kind.of.tomorrow",
    ):
        assert status(clerk_user("user_1") | {"type": kind}) == "ignored"
    assert rows(system_db, "SELECT 1 FROM identity.users") == []


@pytest.mark.parametrize("escape", [r"\u0000", r"\ud800"])
def test_text_that_cannot_be_stored_is_quarantined_and_its_bytes_kept(
    system_db: Database, escape: str
) -> None:
    body = json.dumps(clerk_user("user_1", first_name="HERE")).replace("HERE", escape).encode()
    assert post(body).body["status"] == "quarantined"
    [row] = rows(system_db, "SELECT body FROM platform.webhook_inbox")
    assert bytes(row["body"]) == body


# ---- a user comes ----


def test_a_new_user_gets_an_organisation_its_ownership_and_the_sign_up_credits(system_db: Database) -> None:
    assert status(
        clerk_user("user_1", email="Ada@Example.com ", username="ada", image_url="https://x/y")
    ) == ("processed")
    stored = user(system_db)
    assert (stored["email"], stored["username"], stored["image_url"]) == (
        "ada@example.com",
        "ada",
        "https://x/y",
    )
    assert (stored["first_name"], stored["last_name"]) == ("Ada", "Lovelace")
    assert (stored["role"], stored["is_active"], stored["deleted_at"]) == ("user", True, None)
    assert rows(
        system_db,
        """
        SELECT o.name, o.clerk_id, m.role::text
        FROM tenancy.organizations AS o
        JOIN tenancy.organization_members AS m ON m.organization_id = o.id
        WHERE o.personal_user_id = %s AND m.user_id = %s
        """,
        stored["id"],
        stored["id"],
    ) == [{"name": "Ada Lovelace", "clerk_id": None, "role": "owner"}]
    assert available(system_db) == SIGN_UP
    [grant] = rows(system_db, "SELECT source::text, amount, expires_at FROM credits.grants")
    assert grant == {"source": "sign_up", "amount": SIGN_UP, "expires_at": None}


def test_one_message_is_applied_once_and_other_messages_of_one_state_change_nothing(
    system_db: Database,
) -> None:
    created = clerk_user("user_1")
    assert [status(created, "msg_1") for _ in range(3)] == ["processed", "duplicate", "duplicate"]
    for _ in range(3):
        status(created)
    assert available(system_db) == SIGN_UP
    assert len(rows(system_db, "SELECT 1 FROM tenancy.organizations")) == 1


def test_clerks_own_example_has_a_primary_address_that_is_not_listed(system_db: Database) -> None:
    event = clerk_user("user_1", email_addresses=[], primary_email_address_id="idn_elsewhere")
    assert status(event) == "processed"
    assert user(system_db)["email"] is None
    assert available(system_db) == SIGN_UP


@pytest.mark.parametrize(
    ("fields", "email"),
    [
        ({"email_addresses": [], "primary_email_address_id": None}, None),  # by phone only
        ({"primary_email_address_id": None}, "ada@example.com"),
        (
            {
                "email_addresses": [
                    {"id": "idn_0", "email_address": "old@example.com"},
                    {"id": "idn_1", "email_address": "new@example.com"},
                ]
            },
            "new@example.com",
        ),
        ({"first_name": None, "last_name": None, "username": None}, "ada@example.com"),
    ],
)
def test_a_user_may_lack_what_others_have(
    system_db: Database, fields: dict[str, Any], email: str | None
) -> None:
    assert status(clerk_user("user_1", **fields)) == "processed"
    assert user(system_db)["email"] == email
    assert available(system_db) == SIGN_UP


@pytest.mark.parametrize("timestamp", [1_760_000_000, 1_760_000_000_000])
def test_an_events_time_is_read_in_seconds_and_in_milliseconds(system_db: Database, timestamp: int) -> None:
    status(clerk_user("user_1") | {"timestamp": timestamp})
    [row] = rows(system_db, "SELECT occurred_at FROM platform.webhook_inbox")
    assert row["occurred_at"] == datetime.fromtimestamp(1_760_000_000, UTC)


@pytest.mark.parametrize("timestamp", ["now", -1, 1.5, 10**18, True, {}])
def test_an_event_of_no_known_time_is_quarantined(system_db: Database, timestamp: object) -> None:
    assert status(clerk_user("user_1") | {"timestamp": timestamp}) == "quarantined"


# ---- a user changes ----


def test_an_update_is_stored_and_an_older_one_is_stale(system_db: Database) -> None:
    status(clerk_user("user_1", updated_at=T0))
    newer = clerk_user(
        "user_1", kind="updated", updated_at=T0 + 2, last_name="King", email="ada@king.example"
    )
    older = clerk_user("user_1", kind="updated", updated_at=T0 + 1, last_name="Byron")
    assert [status(newer), status(older)] == ["processed", "stale"]
    assert (user(system_db)["last_name"], user(system_db)["email"]) == ("King", "ada@king.example")


def test_a_banned_user_is_inactive_until_he_is_not(system_db: Database) -> None:
    status(clerk_user("user_1", updated_at=T0))
    for step, banned in enumerate([True, False], start=1):
        status(clerk_user("user_1", kind="updated", updated_at=T0 + step, banned=banned))
        assert user(system_db)["is_active"] is not banned


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_a_life_ends_in_the_same_state_in_every_order(system_db: Database, order: tuple[int, ...]) -> None:
    """Deletion wins from wherever it stands; the sign-up credits are granted at most once."""
    life = [
        clerk_user("user_1", updated_at=T0),
        clerk_user("user_1", kind="updated", updated_at=T0 + 1, email="ada@two.example"),
        clerk_user("user_1", kind="updated", updated_at=T0 + 2, email="ada@three.example"),
        clerk_user("user_1", kind="deleted"),
    ]
    for index in order:
        assert status(life[index]) in {"processed", "stale"}
        assert status(life[index]) == "stale" or index != 3
    stored = user(system_db)
    assert stored["deleted_at"] is not None
    assert not stored["is_active"]
    personal = ("email", "username", "first_name", "last_name", "image_url")
    assert {stored[column] for column in personal} == {None}
    organizations = rows(
        system_db, "SELECT name, deleted_at IS NOT NULL AS closed FROM tenancy.organizations"
    )
    assert organizations in ([], [{"name": "Deleted", "closed": True}])
    assert rows(system_db, "SELECT 1 FROM tenancy.organization_members") == []
    assert len(rows(system_db, "SELECT 1 FROM credits.grants")) == len(organizations)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_newest_profile_stands_in_every_order(system_db: Database, order: tuple[int, ...]) -> None:
    life = [
        clerk_user("user_1", updated_at=T0),
        clerk_user("user_1", kind="updated", updated_at=T0, username="same-millisecond"),
        clerk_user("user_1", kind="updated", updated_at=T0 + 1, username="newest", email="ada@two.example"),
    ]
    for index in order:
        status(life[index])
        status(life[index])
    assert (user(system_db)["username"], user(system_db)["email"]) == ("newest", "ada@two.example")
    assert available(system_db) == SIGN_UP


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_states_of_one_millisecond_the_update_is_newer_whatever_their_ids(
    system_db: Database, order: int
) -> None:
    states = [
        (clerk_user("user_1", updated_at=T0), "msg_z"),
        (clerk_user("user_1", kind="updated", updated_at=T0, username="ada"), "msg_a"),
    ]
    for event, message_id in states[::order]:
        status(event, message_id)
    assert user(system_db)["username"] == "ada"


# ---- a user goes ----


def test_an_erased_user_leaves_his_ledger_and_nothing_of_himself(system_db: Database) -> None:
    status(clerk_user("user_1", username="ada", image_url="https://x/y"))
    [organization] = rows(system_db, "SELECT id FROM tenancy.organizations")
    with system_db.connect() as connection:
        connection.execute(
            """
            INSERT INTO platform.api_keys (kind, organization_id, name, prefix, secret_hash, scopes)
            VALUES ('organization', %s, 'ci', 'abc', sha256('x'), '{read}')
            """,
            [organization["id"]],
        )
    assert status(clerk_user("user_1", kind="deleted"), "msg_gone") == "processed"
    assert rows(system_db, "SELECT revoked_at IS NOT NULL AS revoked FROM platform.api_keys") == [
        {"revoked": True}
    ]
    [audit] = rows(system_db, "SELECT * FROM platform.audit_log")
    assert (audit["actor"], audit["action"], audit["organization_id"], audit["target"], audit["details"]) == (
        "clerk",
        "user.deleted",
        organization["id"],
        f"user:{user(system_db)['id']}",
        {"event_id": "msg_gone"},
    )
    [told] = rows(system_db, "SELECT payload FROM platform.outbox WHERE type = 'user.deleted'")
    assert told["payload"] == {"user_id": str(user(system_db)["id"])}
    assert available(system_db) == SIGN_UP
    assert len(rows(system_db, "SELECT 1 FROM credits.entries")) == 1
    kept = [
        "identity.users",
        "tenancy.organizations",
        "credits.entries",
        "platform.audit_log",
        "platform.outbox",
    ]
    for table in kept:
        text = json.dumps([str(row) for row in rows(system_db, f"SELECT * FROM {table}")]).lower()
        assert not [word for word in ("ada", "lovelace", "https://x/y") if word in text]


@pytest.mark.parametrize("data", [{"deleted": True}, {"id": None}, {"id": ""}, {"id": "org_1"}, None])
def test_a_deletion_of_nobody_is_quarantined(system_db: Database, data: object) -> None:
    assert status({"type": "user.deleted", "data": data, "timestamp": T0}) == "quarantined"


def test_a_deletion_waits_for_the_token_that_is_making_the_user_and_closes_what_it_made(
    system_db: Database,
) -> None:
    """The webhook begins while the user's first request is still being written."""
    with psycopg.connect(system_db.app) as token, system_db.connect() as watcher:
        token.execute("SELECT identity.provision_user('user_1', NULL, NULL, 'Ada', NULL)")

        def commit_once_the_webhook_waits() -> None:
            for _ in range(1000):
                if watcher.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone():
                    break
                time.sleep(0.01)
            token.commit()

        thread = threading.Thread(target=commit_once_the_webhook_waits)
        thread.start()
        answer = status(clerk_user("user_1", kind="deleted"))
        thread.join()
    assert answer == "processed"
    [organization] = rows(system_db, "SELECT name, deleted_at FROM tenancy.organizations")
    assert organization["name"] == "Deleted"
    assert organization["deleted_at"] is not None
    assert rows(system_db, "SELECT 1 FROM tenancy.organization_members") == []


# ---- sign-up credits, once per address ----


def provision_by_token(clerk_id: str, email: str | None = None) -> None:
    identity.provision_from_token(
        clerk_id, email=email, name=None, clerk_org_id=None, org_slug=None, org_role=None, issued_at=None
    )


def test_the_same_address_under_a_new_id_gets_no_second_sign_up_credits(system_db: Database) -> None:
    status(clerk_user("user_1"))
    status(clerk_user("user_1", kind="deleted"))
    assert status(clerk_user("user_2", email="ADA@example.com")) == "processed"
    assert available(system_db, "user_2") == 0
    assert user(system_db, "user_2")["email"] == "ada@example.com"


def test_two_users_of_one_address_share_one_grant(system_db: Database) -> None:
    status(clerk_user("user_1"))
    status(clerk_user("user_2"))
    assert (available(system_db, "user_1"), available(system_db, "user_2")) == (SIGN_UP, 0)


def test_credits_given_before_the_address_was_known_are_taken_back_if_it_had_them(
    system_db: Database,
) -> None:
    status(clerk_user("user_1"))
    status(clerk_user("user_1", kind="deleted"))
    provision_by_token("user_2")  # a session token without an address
    assert available(system_db, "user_2") == SIGN_UP
    status(clerk_user("user_2"))
    assert available(system_db, "user_2") == 0
    [entry] = rows(system_db, "SELECT amount FROM credits.entries WHERE kind = 'claw_back'")
    assert entry["amount"] == -SIGN_UP


def test_what_was_spent_of_them_by_then_is_owed(system_db: Database) -> None:
    status(clerk_user("user_1"))
    status(clerk_user("user_1", kind="deleted"))
    provision_by_token("user_2")
    [organization] = rows(
        system_db,
        """
        SELECT o.id
        FROM tenancy.organizations AS o
        JOIN identity.users AS u ON u.id = o.personal_user_id
        WHERE u.clerk_id = 'user_2'
        """,
    )
    debit(organization["id"], quantity=30)
    hold(organization["id"], 20)
    status(clerk_user("user_2"))
    status(clerk_user("user_2", kind="updated", updated_at=(FIRST + 1) * 1000))
    assert available(system_db, "user_2") == 0
    account = "SELECT held, debt FROM credits.accounts WHERE organization_id = %s"
    assert rows(system_db, account, organization["id"]) == [{"held": 20, "debt": 50}]
    assert_books_balance(system_db, organization["id"])


def test_an_address_known_later_is_claimed_for_the_credits_given_before(system_db: Database) -> None:
    provision_by_token("user_1")
    status(clerk_user("user_1"))
    status(clerk_user("user_2"))
    assert (available(system_db, "user_1"), available(system_db, "user_2")) == (SIGN_UP, 0)


@pytest.mark.parametrize("token_first", [True, False])
def test_token_and_webhook_make_one_user_whichever_comes_first(
    system_db: Database, token_first: bool
) -> None:
    def token() -> None:
        provision_by_token("user_1", "ada@example.com")

    def webhook() -> None:
        assert status(clerk_user("user_1")) == "processed"

    for step in (token, webhook) if token_first else (webhook, token):
        step()
    assert available(system_db) == SIGN_UP
    [organization] = rows(system_db, "SELECT name FROM tenancy.organizations")
    assert organization["name"] == "Ada Lovelace"
    assert user(system_db)["last_name"] == "Lovelace"


def test_token_and_webhook_at_once_make_one_user(system_db: Database) -> None:
    def from_token(number: int) -> None:
        with psycopg.connect(system_db.app, autocommit=True) as connection:
            start.wait(30)
            connection.execute(
                "SELECT identity.provision_user(%s, 'a@b.example', sha256('a'), NULL, NULL)",
                [f"user_{number}"],
            )

    for number in range(10):
        start = threading.Barrier(3)
        tokens = [threading.Thread(target=from_token, args=(number,)) for _ in range(2)]
        for thread in tokens:
            thread.start()
        start.wait(30)
        assert status(clerk_user(f"user_{number}", email=None)) == "processed"
        for thread in tokens:
            thread.join()
    assert len(rows(system_db, "SELECT 1 FROM tenancy.organizations")) == 10
    assert rows(system_db, "SELECT organization_id FROM credits.grants GROUP BY 1 HAVING count(*) > 1") == []


# ---- any change of a valid event, signed ----

_ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**63, 10**300, 253_402_300_799_999, 253_370_764_799_999]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(["", " ", "x" * 5000, "é" * 320, "İ" * 320, "\x00", "\ud800", "user_\x00", "user_1\n"]),
    st.sampled_from([[], {}, [None], [{}], [{"email_address": None}], {"id": None}]),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from _places(part, (*path, key))


@st.composite
def _mutated(draw: st.DrawFn) -> dict[str, Any]:
    number = draw(st.integers(1, 5))
    kind = draw(st.sampled_from(["created", "updated", "deleted"]))
    user, organization = f"user_{number}", f"org_{number}"
    chosen = draw(
        st.sampled_from(
            [
                clerk_user(user, kind=kind, username="ada", banned=False, last_sign_in_at=T0),
                clerk_organization(organization, kind=kind),
                clerk_membership(user, organization, kind=kind),
                clerk_item(f"csub_item_{number}", payer=user),
                clerk_subscription(clerk_item(f"csub_item_{number}"), payer=organization),
            ]
        )
    )
    event: dict[str, Any] = copy.deepcopy(chosen)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(list(_places(event)) or [("type",)]))
        target: Any = event
        for step in way:
            target = target[step]
        if draw(st.booleans()):
            target[last] = copy.deepcopy(draw(_ODD))
        elif isinstance(target, dict):
            del target[last]
    return event


@pytest.fixture(scope="module")
def fuzzed(server_url: str, role_passwords: dict[str, str], template: str) -> Iterator[Database]:
    """One database for all examples: what one leaves behind is part of the next one's world."""
    name = f"fuzzed_users_{os.getpid()}"
    create_database(server_url, name, template)
    urls = [on(server_url, name, user=role, password=role_passwords[role]) for role in ROLES]
    yield Database(name, on(server_url, name), *urls)
    drop_database(server_url, name)


@given(event=_mutated())
@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_signed_event_however_odd_breaks_the_function(fuzzed: Database, event: dict[str, Any]) -> None:
    with fuzzed.as_role("backplane_system"):
        answer = post_clerk(event, f"msg_of_{next(_messages)}")
    assert answer.status in {200, 400}, answer.body
    if answer.status == 400:
        assert answer.body["code"] == "invalid_payload"
