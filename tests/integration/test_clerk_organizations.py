"""Organisations and memberships as Clerk tells them, in any order, and what tokens may still do."""

import itertools
import threading
import time
from typing import Any

import psycopg
import pytest
from psycopg.rows import DictRow
from tests.callers import token, trust_our_tokens
from tests.databases import Database
from tests.senders import FIRST, clerk_membership, clerk_organization, clerk_user, post_clerk

from backplane import auth, config
from backplane.problems import Forbidden

pytestmark = pytest.mark.usefixtures("webhook_secrets")

T0 = FIRST * 1000
_messages = itertools.count(1)


def status(event: dict[str, Any], message_id: str | None = None) -> str:
    answer = post_clerk(event, message_id or f"msg_o{next(_messages)}")
    assert answer.status == 200, answer.body
    return str(answer.body["status"])


def rows(database: Database, query: str, *params: object) -> list[DictRow]:
    with database.connect() as connection:
        return connection.execute(query, params).fetchall()


def organization(database: Database, clerk_id: str = "org_1") -> DictRow:
    [row] = rows(database, "SELECT * FROM tenancy.organizations WHERE clerk_id = %s", clerk_id)
    return row


def roles(database: Database, clerk_id: str = "org_1") -> dict[str, str]:
    """The members of an organisation by their Clerk ids."""
    members = rows(
        database,
        """
        SELECT u.clerk_id, m.role::text
        FROM tenancy.organization_members AS m
        JOIN tenancy.organizations AS o ON o.id = m.organization_id
        JOIN identity.users AS u ON u.id = m.user_id
        WHERE o.clerk_id = %s
        """,
        clerk_id,
    )
    return {row["clerk_id"]: row["role"] for row in members}


def told(database: Database, *types: str) -> list[dict[str, Any]]:
    """The payloads of the domain events of these types, in their order."""
    found = rows(
        database, "SELECT payload FROM platform.outbox WHERE type = ANY(%s) ORDER BY id", list(types)
    )
    return [row["payload"] for row in found]


def came(*users: str) -> None:
    for number, user in enumerate(users):
        assert status(clerk_user(user, email=f"{number}@example.com")) == "processed"


# ---- organisations ----


def test_an_organisation_comes_with_an_account_without_sign_up_credits(system_db: Database) -> None:
    assert status(clerk_organization(name="Acme Corp", slug="acme")) == "processed"
    stored = organization(system_db)
    assert (stored["name"], stored["slug"], stored["logo_url"]) == (
        "Acme Corp",
        "acme",
        "https://img.example.com/acme.png",
    )
    assert rows(system_db, "SELECT available FROM credits.accounts") == [{"available": 0}]
    assert told(system_db, "organization.created", "organization.updated") == [
        {"organization_id": str(stored["id"])}
    ]


def test_the_newest_state_of_an_organisation_stands_in_every_order(system_db: Database) -> None:
    for number, order in enumerate(itertools.permutations(range(3))):
        clerk_id = f"org_{number}"
        life = [
            clerk_organization(clerk_id, updated_at=T0, slug=f"a{number}"),
            clerk_organization(clerk_id, kind="updated", updated_at=T0, slug=f"b{number}"),
            clerk_organization(clerk_id, kind="updated", updated_at=T0 + 1, name="Newest", slug=None),
        ]
        for index in order:
            status(life[index])
        assert (organization(system_db, clerk_id)["name"], organization(system_db, clerk_id)["slug"]) == (
            "Newest",
            None,
        )


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_slug_belongs_to_whom_clerk_gave_it_last_in_every_order(
    system_db: Database, order: tuple[int, ...]
) -> None:
    life = [
        clerk_organization("org_1", updated_at=T0, slug="acme"),
        clerk_organization("org_1", kind="updated", updated_at=T0 + 1, slug="acme-old"),
        clerk_organization("org_2", updated_at=T0 + 2, slug="acme"),
    ]
    for index in order:
        assert status(life[index]) in {"processed", "stale"}
    assert organization(system_db, "org_1")["slug"] == "acme-old"
    assert organization(system_db, "org_2")["slug"] == "acme"


def test_a_slug_of_our_own_organisations_is_not_taken_from_them(system_db: Database) -> None:
    rows(system_db, "INSERT INTO tenancy.organizations (name, slug) VALUES ('Ours', 'acme') RETURNING id")
    assert status(clerk_organization("org_1", slug="acme")) == "processed"
    assert organization(system_db)["slug"] is None


def test_a_deleted_organisation_is_closed_and_stays_so_in_every_order(system_db: Database) -> None:
    came("user_1")
    for number, order in enumerate(itertools.permutations(range(4))):
        clerk_id = f"org_{number}"
        life = [
            clerk_organization(clerk_id),
            clerk_membership("user_1", clerk_id, role="org:admin"),
            clerk_organization(clerk_id, kind="updated", updated_at=T0 + 1),
            clerk_organization(clerk_id, kind="deleted", updated_at=T0 + 2),
        ]
        for index in order:
            assert status(life[index]) in {"processed", "stale", "parked"}
        assert organization(system_db, clerk_id)["deleted_at"] is not None
        assert roles(system_db, clerk_id) == {}
    assert rows(system_db, "SELECT 1 FROM platform.webhook_inbox WHERE status = 'parked'") == []


def test_the_keys_of_a_deleted_organisation_open_nothing(system_db: Database) -> None:
    status(clerk_organization())
    rows(
        system_db,
        """
        INSERT INTO platform.api_keys (kind, organization_id, name, prefix, secret_hash, scopes)
        SELECT 'organization', id, 'ci', 'abc', sha256('x'), '{read}' FROM tenancy.organizations
        RETURNING id
        """,
    )
    assert status(clerk_organization(kind="deleted")) == "processed"
    assert rows(system_db, "SELECT 1 FROM platform.api_keys WHERE revoked_at IS NULL") == []
    [audit] = rows(system_db, "SELECT action, target FROM platform.audit_log")
    assert audit == {
        "action": "organization.deleted",
        "target": f"organization:{organization(system_db)['id']}",
    }
    assert status(clerk_organization(kind="deleted")) == "stale"
    assert len(told(system_db, "organization.deleted")) == 1


@pytest.mark.parametrize("deletion_first", [False, True])
def test_a_deletion_may_name_the_organisation_by_its_slug_only(
    system_db: Database, deletion_first: bool
) -> None:
    events = [
        (clerk_organization(slug="acme"), "processed"),
        (
            clerk_organization(kind="deleted", id=None, slug="acme", updated_at=T0 + 1),
            "parked" if deletion_first else "processed",
        ),
    ]
    for event, expected in reversed(events) if deletion_first else events:
        assert status(event) == expected
    assert organization(system_db)["deleted_at"] is not None


def test_a_late_deletion_by_slug_spares_who_has_the_slug_now(system_db: Database) -> None:
    status(clerk_organization("org_2", slug="acme", updated_at=T0 + 60_000))
    assert status(clerk_organization(kind="deleted", id="", slug="acme", updated_at=T0)) == "parked"
    assert organization(system_db, "org_2")["deleted_at"] is None


@pytest.mark.parametrize("data", [{"deleted": True}, {"id": "user_1"}, {"id": 7}, None, []])
def test_a_deletion_that_names_no_organisation_is_quarantined(system_db: Database, data: object) -> None:
    assert status({"type": "organization.deleted", "data": data, "timestamp": T0}) == "quarantined"


# ---- memberships ----


def test_a_membership_waits_for_its_user_and_its_organisation_in_every_order(system_db: Database) -> None:
    for number, order in enumerate(itertools.permutations(range(3))):
        user, clerk_id = f"user_{number}", f"org_{number}"
        life = [
            clerk_user(user, email=f"{number}@example.com"),
            clerk_organization(clerk_id, created_by=None),
            clerk_membership(user, clerk_id, role="org:editor"),
        ]
        for index in order:
            assert status(life[index]) == ("parked" if index == 2 and order[2] != 2 else "processed")
        assert roles(system_db, clerk_id) == {user: "editor"}
    assert rows(system_db, "SELECT 1 FROM platform.webhook_inbox WHERE status <> 'processed'") == []


@pytest.mark.parametrize(
    ("role", "ours"),
    [
        ("org:member", "member"),
        ("org:admin", "admin"),
        ("org:editor", "editor"),
        ("org:viewer", "viewer"),
        ("org:owner", "owner"),
        ("basic_member", "viewer"),
        ("org:accountant", "viewer"),
    ],
)
def test_a_role_is_ours_of_that_name_and_an_unknown_one_may_look(
    system_db: Database, role: str, ours: str
) -> None:
    came("user_1", "user_2")
    status(clerk_organization(created_by="user_1"))
    status(clerk_membership("user_1", role="org:admin"))
    assert status(clerk_membership("user_2", role=role)) == "processed"
    assert roles(system_db) == {"user_1": "owner", "user_2": ours}


LIFE = [
    clerk_organization(created_by="user_2"),
    clerk_membership("user_1", role="org:admin", joined_at=T0 - 5),
    clerk_membership("user_2", role="org:admin"),
    clerk_membership("user_3", role="org:member", updated_at=T0),
    clerk_membership("user_3", kind="updated", role="org:admin", updated_at=T0 + 1),
]


@pytest.mark.parametrize("order", list(itertools.permutations(range(5)))[::3])
def test_the_creator_owns_the_organisation_in_every_order(
    system_db: Database, order: tuple[int, ...]
) -> None:
    came("user_1", "user_2", "user_3")
    for index in order:
        status(LIFE[index])
        status(LIFE[index])
    assert roles(system_db) == {"user_1": "admin", "user_2": "owner", "user_3": "admin"}


def test_who_stays_longest_as_an_admin_follows_an_owner_who_leaves(system_db: Database) -> None:
    came("user_1", "user_2", "user_3")
    for event in LIFE:
        status(event)
    assert status(clerk_membership("user_2", kind="deleted", updated_at=T0 + 9)) == "processed"
    assert roles(system_db) == {"user_1": "owner", "user_3": "admin"}
    assert told(system_db, "membership.deleted") == [
        {
            "organization_id": str(organization(system_db)["id"]),
            "user_id": str(
                rows(system_db, "SELECT id FROM identity.users WHERE clerk_id = 'user_2'")[0]["id"]
            ),
        }
    ]
    assert told(system_db, "membership.updated")[-1]["role"] == "owner"


def test_what_a_token_made_is_put_right_by_the_events(
    system_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first admin to come is its owner, until Clerk says who created it."""
    trust_our_tokens(monkeypatch)
    for user in ("user_1", "user_2"):
        auth.authenticate({"authorization": f"Bearer {token(user, org_id='org_1', org_role='org:admin')}"})
    assert roles(system_db) == {"user_1": "owner", "user_2": "admin"}
    assert status(clerk_organization(created_by="user_2", name="Acme Corp")) == "processed"
    assert roles(system_db) == {"user_1": "admin", "user_2": "owner"}
    assert organization(system_db)["name"] == "Acme Corp"
    assert status(clerk_membership("user_1", role="org:viewer")) == "processed"
    assert roles(system_db) == {"user_1": "viewer", "user_2": "owner"}


MEMBER_LIFE = [
    clerk_membership("user_2", role="org:member", updated_at=T0),
    clerk_membership("user_2", kind="updated", role="org:admin", updated_at=T0 + 1),
    clerk_membership("user_2", kind="deleted", role="org:admin", updated_at=T0 + 1),
    clerk_membership("user_2", role="org:editor", joined_at=T0 + 2, updated_at=T0 + 2),
]


@pytest.mark.parametrize("told_last", [3, 4])
def test_a_membership_ends_as_its_newest_event_says_in_every_order(
    system_db: Database, told_last: int
) -> None:
    came("user_2")
    for number, order in enumerate(itertools.permutations(range(told_last))):
        clerk_id = f"org_{number}"
        status(clerk_organization(clerk_id, created_by="user_1"))
        for index in order:
            event = MEMBER_LIFE[index]
            of = {"organization": {"id": clerk_id}}
            assert status(event | {"data": event["data"] | of}) in {"processed", "stale"}
        assert roles(system_db, clerk_id) == ({} if told_last == 3 else {"user_2": "editor"})


@pytest.mark.parametrize("gone", ["user", "organization"])
def test_a_membership_of_what_was_deleted_is_stale(system_db: Database, gone: str) -> None:
    came("user_1")
    status(clerk_organization())
    status(clerk_user("user_1", kind="deleted") if gone == "user" else clerk_organization(kind="deleted"))
    assert status(clerk_membership()) == "stale"
    assert status(clerk_membership(kind="deleted", updated_at=T0 + 1)) == "stale"
    assert roles(system_db) == {}


def test_an_organisation_outlives_the_user_who_owned_it(system_db: Database) -> None:
    came("user_1", "user_2")
    status(clerk_organization(created_by="user_1"))
    status(clerk_membership("user_1", role="org:admin"))
    status(clerk_membership("user_2", role="org:admin", joined_at=T0 + 1))
    assert status(clerk_user("user_1", kind="deleted")) == "processed"
    assert roles(system_db) == {"user_2": "owner"}
    assert organization(system_db)["deleted_at"] is None
    assert len(told(system_db, "membership.deleted")) == 2  # of the personal one too


@pytest.mark.parametrize(
    "fields",
    [
        {"organization": None},
        {"organization": {"id": "user_1"}},
        {"organization": "org_1"},
        {"public_user_data": {}},
        {"public_user_data": {"user_id": ""}},
        {"role": 7},
        {"role": ""},
        {"updated_at": "yesterday"},
    ],
)
def test_a_membership_of_nobody_is_quarantined(system_db: Database, fields: dict[str, Any]) -> None:
    assert status(clerk_membership(**fields)) == "quarantined"


def test_invitations_are_clerks_and_recorded_without_effect(system_db: Database) -> None:
    for kind in ("created", "accepted", "revoked"):
        data = {"id": "orginv_1", "email_address": "ada@example.com", "organization_id": "org_1"}
        event = {"type": f"organizationInvitation.{kind}", "data": data, "timestamp": T0}
        assert status(event) == "ignored"


# ---- tokens that are older than the events ----


def caller(clerk_id: str, *, issued_at: int, role: str = "org:admin") -> auth.Caller:
    credential = token(clerk_id, iat=issued_at, org_id="org_1", org_role=role)
    return auth.authenticate({"authorization": f"Bearer {credential}"})


def test_a_removed_member_comes_back_by_a_newer_token_only(
    system_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust_our_tokens(monkeypatch)
    came("user_1", "user_2")
    status(clerk_organization())
    status(clerk_membership("user_1", role="org:admin"))
    status(clerk_membership("user_2"))
    assert caller("user_2", issued_at=FIRST).role == "member"
    assert status(clerk_membership("user_2", kind="deleted", updated_at=T0 + 10_000)) == "processed"
    for _ in range(2):
        with pytest.raises(Forbidden, match="not a member"):
            caller("user_2", issued_at=FIRST + 10)
    assert roles(system_db) == {"user_1": "owner"}
    assert caller("user_2", issued_at=FIRST + 11, role="org:editor").role == "editor"
    assert roles(system_db) == {"user_1": "owner", "user_2": "editor"}


def test_an_end_that_is_told_first_bars_the_tokens_before_it(
    system_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust_our_tokens(monkeypatch)
    came("user_2")
    status(clerk_organization())
    assert status(clerk_membership("user_2", kind="deleted", updated_at=T0 + 10_000)) == "processed"
    with pytest.raises(Forbidden, match="not a member"):
        caller("user_2", issued_at=FIRST)
    assert status(clerk_membership("user_2")) == "stale"


def test_of_a_token_and_an_event_the_newer_says_the_role(
    system_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust_our_tokens(monkeypatch)
    came("user_1", "user_2")
    status(clerk_organization(created_by="user_1"))
    status(clerk_membership("user_1", role="org:admin"))
    status(clerk_membership("user_2", role="org:admin"))
    status(clerk_membership("user_2", kind="updated", role="org:viewer", updated_at=T0 + 10_000))
    assert caller("user_2", issued_at=FIRST + 10).role == "viewer"  # demoted: the token does not know
    assert caller("user_2", issued_at=FIRST + 11).role == "admin"  # promoted: the event is still to come


def test_no_token_enters_a_deleted_organisation_or_adds_to_it(
    system_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust_our_tokens(monkeypatch)
    came("user_2")
    status(clerk_organization(kind="deleted"))
    with pytest.raises(Forbidden, match="organisation was deleted"):
        caller("user_2", issued_at=FIRST + 3600)
    assert roles(system_db) == {}


def test_a_locked_user_is_refused_until_the_lock_ends(
    system_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust_our_tokens(monkeypatch)

    def refused() -> bool:
        try:
            auth.authenticate({"authorization": f"Bearer {token('user_1')}"})
        except Forbidden as refusal:
            assert "suspended" in str(refusal.detail)  # noqa: PT017  either is right, by the lock's end
            return True
        return False

    now = int(time.time() * 1000)
    assert status(clerk_user("user_1", updated_at=now - 5000)) == "processed"
    assert not refused()
    status(clerk_user("user_1", kind="updated", updated_at=now - 4000, locked=True))
    assert refused()
    short: dict[str, Any] = {"locked": True, "lockout_expires_in_seconds": 1}
    status(clerk_user("user_1", kind="updated", updated_at=now - 3000, **short))
    assert not refused()
    long: dict[str, Any] = {"locked": True, "lockout_expires_in_seconds": 3600}
    status(clerk_user("user_1", kind="updated", updated_at=now - 2000, **long))
    assert refused()
    status(clerk_user("user_1", kind="updated", updated_at=now - 1000))
    assert not refused()


def test_a_token_that_is_adding_its_member_is_followed_by_the_events_end(system_db: Database) -> None:
    """The membership's end is told while the member's first request is still being written."""
    came("user_2")
    status(clerk_organization())
    user_id = rows(system_db, "SELECT id FROM identity.users")[0]["id"]
    with psycopg.connect(system_db.app) as request, system_db.connect() as watcher:
        request.execute("SELECT tenancy.provision_organization('org_1', 'Acme', %s, 'member')", [user_id])

        def commit_once_the_webhook_waits() -> None:
            for _ in range(1000):
                if watcher.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone():
                    break
                time.sleep(0.01)
            request.commit()

        thread = threading.Thread(target=commit_once_the_webhook_waits)
        thread.start()
        answer = status(clerk_membership("user_2", kind="deleted", updated_at=T0 + 1))
        thread.join()
    assert answer == "processed"
    assert roles(system_db) == {}


# ---- other instances ----


@pytest.mark.parametrize(
    ("instance_id", "expected"), [("ins_ours", "processed"), (None, "processed"), ("ins_other", "ignored")]
)
def test_another_instances_events_are_recorded_without_effect(
    system_db: Database, monkeypatch: pytest.MonkeyPatch, instance_id: str | None, expected: str
) -> None:
    monkeypatch.setenv("CLERK_INSTANCE_ID", "ins_ours")
    config.settings.cache_clear()
    assert status(clerk_user("user_1") | {"instance_id": instance_id}) == expected
    assert len(rows(system_db, "SELECT 1 FROM identity.users")) == (expected == "processed")
