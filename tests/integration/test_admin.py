"""Platform admins: the inbox looked at and replayed, users, the audit log, service keys."""

import json
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import admin
import pytest
from tests.callers import ROOT, Customer, mint, send, sign_up, token, trust_our_tokens
from tests.databases import Database
from tests.ledgers import rows
from tests.senders import Answer, checkout_session, clerk_user, post_clerk, post_stripe, stripe_event

from backplane import inbox, stripe_effects
from backplane.auth import SCOPES_OF_KEY
from backplane.inbox import Event, Outcome
from backplane.senders import SENDERS

EVERY_ROUTE = [(route.method, route.path.replace("<", "").replace(">", "")) for route in admin.router.routes]
UNKNOWN = UUID(int=0)


@pytest.fixture
def root(system_db: Database, monkeypatch: pytest.MonkeyPatch, webhook_secrets: None) -> Customer:
    trust_our_tokens(monkeypatch)
    return sign_up(ROOT, email="root@example.com")


def get(path: str, caller: Customer, **query: str) -> Answer:
    return send("GET", f"/v1/admin/{path}", caller.token, query=query)


def replay(webhook_id: object, caller: Customer, key: str | None = None) -> Answer:
    return send("POST", f"/v1/admin/webhooks/{webhook_id}/replay", caller.token, key=key)


def pay(event_id: str, user: str = "user_1", **fields: Any) -> Answer:
    session = checkout_session(
        mode="payment", metadata={"pack_id": "pack_500"}, client_reference_id=user, **fields
    )
    return post_stripe(stripe_event("checkout.session.completed", session, event_id=event_id))


def stored(database: Database, event_id: str) -> dict[str, Any]:
    with database.connect() as connection:
        row = connection.execute(
            "SELECT * FROM platform.webhook_inbox WHERE event_id = %s", [event_id]
        ).fetchone()
    assert row is not None
    return row


def packs(database: Database) -> int:
    (row,) = rows(database, "SELECT count(*) AS n FROM credits.grants WHERE source = 'pack'")
    count: int = row["n"]
    return count


def actions(database: Database) -> list[tuple[str, str, str]]:
    found = rows(database, "SELECT actor, action, target FROM platform.audit_log ORDER BY id")
    return [(row["actor"], row["action"], row["target"]) for row in found]


def break_checkouts(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_tx: Any, _event: Event) -> Outcome:
        raise LookupError("a passing cause")

    effects = dict(stripe_effects.EFFECTS) | {"checkout.session.completed": broken}
    monkeypatch.setitem(SENDERS, "stripe", inbox.Sender(SENDERS["stripe"].parse, effects))


# ---- who may ----

# What a route cannot do without.
BODIES = {
    ("POST", "/v1/admin/service-keys"): {"name": "mine", "scopes": ["read"]},
    ("POST", "/v1/admin/plans"): {"key": "mine", "tier": "pro", "name": "Mine", "credits": 1},
}


@pytest.mark.parametrize(("method", "path"), EVERY_ROUTE, ids=str)
def test_only_platform_admins_may(system_db: Database, root: Customer, method: str, path: str) -> None:
    ada = sign_up("user_ada")
    path = path.replace("webhook_id", str(UNKNOWN)).replace("key_id", str(UNKNOWN))
    body = BODIES.get((method, path))
    everything = sorted(SCOPES_OF_KEY["service"])
    for credential in (
        ada.token,
        token("user_ada", org_id="org_1", org_role="org:admin"),
        mint(system_db, ada.organization_id, sorted(SCOPES_OF_KEY["organization"])),
    ):
        refused = send(method, path, credential, body=body)
        assert (refused.status, refused.body["code"]) == (403, "forbidden")
    service = mint(system_db, None, everything)
    assert send(method, path, service, body=body, organization=ada.organization_id).status == 403
    assert send(method, path, body=body).status == 401
    assert actions(system_db) == []
    assert send(method, path, root.token, body=body).status in {200, 201, 204, 404}


# ---- the inbox ----


def test_webhooks_are_listed_newest_first_in_parts_by_status_and_provider(
    system_db: Database, root: Customer
) -> None:
    post_clerk(clerk_user("user_1"), "msg_1")
    for number in range(5):
        pay(f"evt_parked_{number}", user=f"user_late_{number}")
    assert pay("evt_paid").body["status"] == "processed"
    first = get("webhooks", root, limit="4").body
    assert [item["event_id"] for item in first["items"]] == [
        "evt_paid", "evt_parked_4", "evt_parked_3", "evt_parked_2",
    ]  # fmt: skip
    second = get("webhooks", root, limit="4", cursor=first["next_cursor"]).body
    assert [item["event_id"] for item in second["items"]] == ["evt_parked_1", "evt_parked_0", "msg_1"]
    assert second["next_cursor"] is None
    parked = get("webhooks", root, status="parked", limit="1").body
    assert (parked["items"][0]["event_id"], parked["items"][0]["waiting_for"]) == (
        "evt_parked_4",
        "clerk.user:user_late_4",
    )
    assert [w["event_id"] for w in get("webhooks", root, provider="clerk").body["items"]] == ["msg_1"]
    assert get("webhooks", root, provider="clerk", status="parked").body["items"] == []
    assert "body" not in parked["items"][0]  # of people: one at a time, and on record


@pytest.mark.parametrize(
    "query", [{"status": "lost"}, {"provider": "paypal"}, {"limit": "0"}, {"cursor": "nonsense"}, {"q": "x"}]
)
def test_a_list_that_cannot_be_is_refused(root: Customer, query: dict[str, str]) -> None:
    assert get("webhooks", root, **query).status == 422


def test_one_webhook_is_shown_with_its_body_and_who_looked_is_on_record(
    system_db: Database, root: Customer
) -> None:
    pay("evt_1", user="user_late")
    row = stored(system_db, "evt_1")
    shown = get(f"webhooks/{row['id']}", root)
    assert shown.status == 200
    assert shown.body["body"] == json.loads(row["body"])
    assert (shown.body["status"], shown.body["error"]) == ("parked", None)
    assert actions(system_db) == [(f"user:{root.user_id}", "webhook.shown", f"webhook:{row['id']}")]
    assert get(f"webhooks/{UNKNOWN}", root).status == 404
    assert len(actions(system_db)) == 1


def test_a_body_that_cannot_be_stored_is_shown_as_its_text(system_db: Database, root: Customer) -> None:
    event = stripe_event("invoice.paid", {"id": "in_\ud800", "note": "\x00"}, event_id="evt_1")
    assert post_stripe(event).body["status"] == "quarantined"
    row = stored(system_db, "evt_1")
    shown = get(f"webhooks/{row['id']}", root)
    assert shown.body["body"] == bytes(row["body"]).decode()
    assert r"\ud800" in shown.body["body"]


def test_a_trimmed_webhook_is_shown_without_its_body_and_not_replayed(
    system_db: Database, root: Customer
) -> None:
    post_clerk(clerk_user("user_1"))
    pay("evt_1")
    rows(system_db, "UPDATE platform.webhook_inbox SET body = NULL")
    webhook_id = stored(system_db, "evt_1")["id"]
    assert get(f"webhooks/{webhook_id}", root).body["body"] is None
    refused = replay(webhook_id, root)
    assert (refused.status, refused.body["code"]) == (409, "invalid_state")
    assert "body is not kept" in refused.body["detail"]


def test_what_was_applied_is_not_applied_twice_by_a_replay(system_db: Database, root: Customer) -> None:
    post_clerk(clerk_user("user_1"))
    pay("evt_1")
    before = stored(system_db, "evt_1")
    answer = replay(before["id"], root)
    assert (answer.status, answer.body) == (200, {"id": str(before["id"]), "status": "duplicate"})
    assert (packs(system_db), stored(system_db, "evt_1")) == (1, before)
    assert actions(system_db)[-1][1:] == ("webhook.replayed", f"webhook:{before['id']}")


def dead(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        break_checkouts(broken)
        for _ in range(inbox.MAX_ATTEMPTS):
            assert pay("evt_1").status == 500
    assert stored(database, "evt_1")["status"] == "dead"


def failed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        break_checkouts(broken)
        assert pay("evt_1").status == 500


def quarantined(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def poison(_tx: Any, _event: Event) -> Outcome:
        raise inbox.Quarantine("a defect of ours, which the next deployment mends")

    with monkeypatch.context() as broken:
        effects = dict(stripe_effects.EFFECTS) | {"checkout.session.completed": poison}
        broken.setitem(SENDERS, "stripe", inbox.Sender(SENDERS["stripe"].parse, effects))
        assert pay("evt_1").body["status"] == "quarantined"


def ignored(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setitem(SENDERS, "stripe", inbox.Sender(SENDERS["stripe"].parse, {}))
        assert pay("evt_1").body["status"] == "ignored"


def parked(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as early:
        early.setattr(inbox, "_replay_parked", lambda *_: [])
        assert pay("evt_1", user="user_2").body["status"] == "parked"
        post_clerk(clerk_user("user_2", email="two@example.com"))


every_standstill = pytest.mark.parametrize("stand", [dead, failed, quarantined, ignored, parked])


@every_standstill
def test_what_was_put_aside_is_tried_anew(
    system_db: Database,
    root: Customer,
    monkeypatch: pytest.MonkeyPatch,
    stand: Callable[[Database, pytest.MonkeyPatch], None],
) -> None:
    post_clerk(clerk_user("user_1"))
    stand(system_db, monkeypatch)
    webhook_id = stored(system_db, "evt_1")["id"]
    assert replay(webhook_id, root).body["status"] == "processed"
    row = stored(system_db, "evt_1")
    assert (row["status"], row["attempts"], row["error"]) == ("processed", 1, None)
    assert replay(webhook_id, root).body["status"] == "duplicate"
    assert packs(system_db) == 1


@every_standstill
def test_two_replays_at_once_have_one_effect(
    system_db: Database,
    root: Customer,
    monkeypatch: pytest.MonkeyPatch,
    stand: Callable[[Database, pytest.MonkeyPatch], None],
) -> None:
    """The second comes after the first has applied the event and before it commits."""
    post_clerk(clerk_user("user_1"))
    stand(system_db, monkeypatch)
    event = inbox.read_back(stored(system_db, "evt_1"), SENDERS)
    applied, second_is_there = threading.Event(), threading.Event()
    statuses: list[str] = []

    def first() -> None:
        with system_db.connect("backplane_system") as connection, connection.transaction():
            statuses.append(inbox._apply(connection, event, SENDERS, anew=True, unfetched=[]))
            applied.set()
            second_is_there.wait(60)

    thread = threading.Thread(target=first)
    thread.start()
    assert applied.wait(60)
    waiting = threading.Thread(target=_say_when_blocked, args=(system_db, second_is_there))
    waiting.start()
    answer = replay(stored(system_db, "evt_1")["id"], root)
    thread.join(60)
    waiting.join(60)
    assert (statuses, answer.body["status"]) == (["processed"], "duplicate")
    assert packs(system_db) == 1


def _say_when_blocked(database: Database, event: threading.Event) -> None:
    with database.connect() as connection:
        for _ in range(600):
            found = connection.execute(
                "SELECT 1 FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database"
                " WHERE datname = current_database())"
            ).fetchone()
            if found:
                break
            event.wait(0.1)
    event.set()


def test_a_replay_that_fails_is_tried_again_by_the_worker_from_the_first_rest_on(
    system_db: Database, root: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    post_clerk(clerk_user("user_1"))
    dead(system_db, monkeypatch)
    with monkeypatch.context() as broken:
        break_checkouts(broken)
        assert replay(stored(system_db, "evt_1")["id"], root).body["status"] == "failed"
    row = stored(system_db, "evt_1")
    assert (row["status"], row["attempts"]) == ("failed", 1)
    assert row["next_attempt_at"] is not None


def test_a_replay_under_its_key_is_answered_once(system_db: Database, root: Customer) -> None:
    post_clerk(clerk_user("user_1"))
    pay("evt_1")
    webhook_id = stored(system_db, "evt_1")["id"]
    first = replay(webhook_id, root, key="key-1")
    again = replay(webhook_id, root, key="key-1")
    assert (again.status, again.body, again.headers["idempotent-replayed"]) == (200, first.body, "true")
    assert [action for _, action, _ in actions(system_db)] == ["webhook.replayed"]


def test_what_is_not_there_cannot_be_replayed(system_db: Database, root: Customer) -> None:
    assert replay(UNKNOWN, root).status == 404
    assert replay("no-id", root).status == 422
    assert actions(system_db) == []


# ---- people ----


def test_users_are_found_by_how_their_address_begins(system_db: Database, root: Customer) -> None:
    for name in ("ada", "adam", "bob", "a%"):
        post_clerk(clerk_user(f"user_{len(name)}{ord(name[-1])}", email=f"{name}@Example.com"))

    def found(prefix: str) -> list[str]:
        return [user["email"] for user in get("users", root, email=prefix).body["items"]]

    assert found("ADA") == ["adam@example.com", "ada@example.com"]
    assert found("a%") == ["a%@example.com"]
    assert found("example") == []
    (ada,) = get("users", root, email="ada@").body["items"]
    assert (ada["name"], ada["role"], ada["is_active"]) == ("Ada Lovelace", "user", True)
    assert UUID(ada["organization_id"])
    everyone = get("users", root, limit="3").body
    assert len(everyone["items"]) == 3
    rest = get("users", root, limit="3", cursor=everyone["next_cursor"]).body
    assert {user["email"] for user in rest["items"]} == {"ada@example.com", "root@example.com"}


def test_backups_are_listed_newest_first_with_their_verdicts(system_db: Database, root: Customer) -> None:
    rows(
        system_db,
        """
        INSERT INTO platform.backups
            (name, kind, key, manifest_key, bytes, row_count, sha256, started_at, finished_at, drilled_at,
             differences, verified_at)
        SELECT 'backup_2026010' || day || '_000000', 'dump', 'k', 'm', 7, 5, repeat('0', 64), now(), now(),
               now(), CASE day WHEN 1 THEN '{}'::text[] ELSE '{rows: a.b was 2}' END,
               CASE day WHEN 1 THEN now() END
        FROM generate_series(1, 2) AS day
        """,
    )
    first = get("backups", root, limit="1").body
    assert [item["name"] for item in first["items"]] == ["backup_20260102_000000"]
    assert first["items"][0]["differences"] == ["rows: a.b was 2"]
    assert first["items"][0]["verified_at"] is None
    (second,) = get("backups", root, cursor=first["next_cursor"]).body["items"]
    assert (second["name"], second["differences"], second["bytes"]) == ("backup_20260101_000000", [], 7)
    assert second["verified_at"] is not None


def test_the_audit_log_is_read_newest_first_and_by_organisation(system_db: Database, root: Customer) -> None:
    ada = sign_up("user_ada")
    send("POST", "/v1/admin/service-keys", root.token, body={"name": "one", "scopes": ["read"]})
    rows(
        system_db,
        """
        INSERT INTO platform.audit_log (organization_id, actor, action, target, details)
        VALUES (%s, 'system', 'thing.noted', 'thing:1', '{"why": "not"}')
        """,
        ada.organization_id,
    )
    first = get("audit-log", root, limit="1").body
    (noted,) = first["items"]
    assert (noted["action"], noted["details"], noted["actor"]) == ("thing.noted", {"why": "not"}, "system")
    second = get("audit-log", root, cursor=first["next_cursor"]).body
    assert [entry["action"] for entry in second["items"]] == ["service_key.created"]
    of_ada = get("audit-log", root, organization_id=str(ada.organization_id)).body
    assert [entry["action"] for entry in of_ada["items"]] == ["thing.noted"]


# ---- service keys ----


def create(root: Customer, key: str | None = None, **fields: Any) -> Answer:
    body = {"name": "worker", "scopes": ["read", "credits:settle"]} | fields
    return send("POST", "/v1/admin/service-keys", root.token, body=body, key=key)


def test_a_service_key_is_shown_once_works_at_once_and_ends_at_once(
    system_db: Database, root: Customer
) -> None:
    ada = sign_up("user_ada")
    made = create(root)
    assert made.status == 201
    secret = made.body["key"]
    listed = get("service-keys", root)
    assert [key["id"] for key in listed.body["items"]] == [made.body["id"]]
    assert listed.body["items"][0]["scopes"] == ["credits:settle", "read"]
    kept = json.dumps([listed.body, rows(system_db, "SELECT * FROM platform.api_keys")], default=str)
    assert secret not in kept
    assert secret.rpartition("_")[2] not in kept
    assert send("GET", "/v1/credits", secret, organization=ada.organization_id).status == 200
    assert send("GET", "/v1/credits", secret).status == 400  # it must say for whom it acts
    assert send("POST", "/v1/credits/debits", secret, organization=ada.organization_id).status == 403
    for _ in range(2):
        assert send("DELETE", f"/v1/admin/service-keys/{made.body['id']}", root.token).status == 204
    assert send("GET", "/v1/credits", secret, organization=ada.organization_id).status == 401
    assert get("service-keys", root).body["items"][0]["revoked_at"] is not None
    assert [(actor, action) for actor, action, _ in actions(system_db)] == [
        (f"user:{root.user_id}", "service_key.created"),
        (f"user:{root.user_id}", "service_key.revoked"),
    ]


def test_the_repetition_of_a_creation_makes_no_second_key_and_does_not_show_the_first(
    system_db: Database, root: Customer
) -> None:
    first = create(root, key="key-1")
    again = create(root, key="key-1")
    assert (again.status, again.headers["idempotent-replayed"]) == (201, "true")
    assert again.body == {name: value for name, value in first.body.items() if name != "key"}
    assert len(rows(system_db, "SELECT 1 FROM platform.api_keys")) == 1
    stored_answers = rows(system_db, "SELECT body FROM platform.idempotency_keys")
    assert first.body["key"] not in json.dumps(stored_answers)
    assert create(root, key="key-1", name="another").status == 409


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": " "},
        {"name": "x" * 101},
        {"scopes": []},
        {"scopes": ["admin"]},
        {"scopes": ["read", "members:manage"]},
        {"scopes": "read"},
        {"expires_in": 1},
    ],
)
def test_a_key_that_cannot_be_is_refused(system_db: Database, root: Customer, fields: dict[str, Any]) -> None:
    assert create(root, **fields).status == 422
    assert rows(system_db, "SELECT 1 FROM platform.api_keys") == []


def test_an_organisations_key_is_not_the_admins_to_revoke_here(system_db: Database, root: Customer) -> None:
    mint(system_db, root.organization_id)
    (key,) = rows(system_db, "SELECT id FROM platform.api_keys")
    assert send("DELETE", f"/v1/admin/service-keys/{key['id']}", root.token).status == 404
    assert send("DELETE", f"/v1/admin/service-keys/{UNKNOWN}", root.token).status == 404
    assert get("service-keys", root).body["items"] == []
