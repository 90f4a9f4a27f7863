"""An organisation's own API keys: who makes them, what they open, when they end, how they are used."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import organization_keys
import pytest
from tests.callers import FUNCTIONS, Customer, debit, moment, send, sign_up, token, trust_our_tokens
from tests.databases import Database
from tests.ledgers import rows
from tests.senders import Answer

from backplane import auth, db, keys
from backplane.problems import Forbidden
from backplane.scopes import SCOPES_OF_KEY


@pytest.fixture
def ada(app_db: Database, monkeypatch: pytest.MonkeyPatch) -> Customer:
    trust_our_tokens(monkeypatch)
    return sign_up()


def create(customer: Customer | str, *, key: str | None = None, **fields: Any) -> Answer:
    credential = customer if isinstance(customer, str) else customer.token
    return send("POST", "/v1/api-keys", credential, body={"name": "robot"} | fields, key=key)


def listed(customer: Customer) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = send("GET", "/v1/api-keys", customer.token).body["items"]
    return items


def revoke(customer: Customer | str, key_id: object) -> int:
    credential = customer if isinstance(customer, str) else customer.token
    return send("DELETE", f"/v1/api-keys/{key_id}", credential).status


def test_a_key_is_shown_once_opens_its_scopes_and_ends_at_once(app_db: Database, ada: Customer) -> None:
    made = create(ada, scopes=["read", "credits:spend", "read"])
    assert made.status == 201
    secret = made.body["key"]
    assert made.body["scopes"] == ["credits:spend", "read"]
    [shown] = listed(ada)
    assert shown == {name: value for name, value in made.body.items() if name != "key"}
    assert (shown["state"], shown["created_by"], shown["use_count"]) == ("active", str(ada.user_id), 0)
    kept = json.dumps(
        rows(app_db, "SELECT k.*, a.* FROM platform.api_keys k, platform.audit_log a"), default=str
    )
    assert secret.rpartition("_")[2] not in kept
    assert debit(secret, key="k").status == 201
    assert send("POST", "/v1/projects", secret, body={"title": "Fitness"}).status == 403
    for _ in range(2):
        assert revoke(ada, shown["id"]) == 204
    refused = send("GET", "/v1/credits", secret)
    assert (refused.status, "revoked" in refused.body["detail"]) == (401, True)
    [ended] = listed(ada)
    assert (ended["state"], ended["revoked_at"] is None) == ("revoked", False)
    log = rows(app_db, "SELECT actor, action, target, organization_id FROM platform.audit_log ORDER BY id")
    assert [entry["action"] for entry in log] == ["api_key.created", "api_key.revoked"]
    assert {(entry["actor"], entry["target"], entry["organization_id"]) for entry in log} == {
        (f"user:{ada.user_id}", f"key:{shown['id']}", ada.organization_id)
    }


def test_a_repeated_creation_makes_no_second_key_and_does_not_show_the_first(
    app_db: Database, ada: Customer
) -> None:
    first = create(ada, key="key-1")
    again = create(ada, key="key-1")
    assert (again.status, again.headers["idempotent-replayed"]) == (201, "true")
    assert again.body == {name: value for name, value in first.body.items() if name != "key"}
    assert len(listed(ada)) == 1
    assert create(ada, key="key-1", name="another").status == 409
    assert first.body["key"] not in json.dumps(rows(app_db, "SELECT body FROM platform.idempotency_keys"))


@pytest.mark.parametrize(
    ("scopes", "rights"),
    [
        (None, (True, False, False)),
        (["read"], (True, False, False)),
        (["read", "credits:spend"], (True, True, False)),
        (["read", "files:write"], (True, True, True)),
        (["projects:write"], (False, True, True)),
    ],
)
def test_scopes_are_told_as_rights_to_read_write_and_delete(
    ada: Customer, scopes: Sequence[str] | None, rights: tuple[bool, ...]
) -> None:
    body = create(ada).body if scopes is None else create(ada, scopes=scopes).body
    assert (body["can_read"], body["can_write"], body["can_delete"]) == rights


def test_the_scopes_that_are_told_as_deleting_are_those_that_delete() -> None:
    deleting = {
        route.scope
        for router, _ in FUNCTIONS.values()
        for route in router.routes
        if route.method == "DELETE" and route.scope in SCOPES_OF_KEY["organization"] - {"read"}
    }
    assert deleting == organization_keys.DELETING


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": " "},
        {"name": "x" * 101},
        {"scopes": []},
        {"scopes": ["credits:settle"]},
        {"scopes": ["generations:finish"]},
        {"scopes": ["keys:manage"]},
        {"scopes": "read"},
        {"expires_at": "2020-01-01T00:00:00Z"},
        {"expires_at": "2099-01-01T00:00:00"},
        {"expires_at": "9999-12-31T23:59:59-23:00"},
        {"expires_at": 4070908800},
        {"expires_at": "4070908800"},
        {"expires_at": "soon"},
        {"created_by": "somebody"},
    ],
    ids=str,
)
def test_a_key_that_cannot_be_is_refused(ada: Customer, fields: dict[str, Any]) -> None:
    refused = create(ada, **fields)
    assert refused.status == 422
    assert refused.body["errors"]
    assert listed(ada) == []


def test_a_key_ends_when_it_expires(app_db: Database, ada: Customer) -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    made = create(ada, expires_at=at.isoformat()).body
    assert moment(made["expires_at"]) == at
    assert send("GET", "/v1/credits", made["key"]).status == 200
    rows(app_db, "UPDATE platform.api_keys SET expires_at = now()")
    refused = send("GET", "/v1/credits", made["key"])
    assert (refused.status, "expired" in refused.body["detail"]) == (401, True)
    assert [key["state"] for key in listed(ada)] == ["expired"]


def test_only_people_who_manage_keys_see_make_and_revoke_them(app_db: Database, ada: Customer) -> None:
    made = create(ada, scopes=sorted(SCOPES_OF_KEY["organization"])).body
    acme = {
        role: token(f"user_{role}", org_id="org_acme", org_role=f"org:{role}") for role in ("admin", "editor")
    }
    of_acme = create(acme["admin"]).body
    for credential in (acme["editor"], made["key"]):
        assert create(credential).status == 403
        assert send("GET", "/v1/api-keys", credential).status == 403
        assert revoke(credential, of_acme["id"]) == 403
    assert revoke(ada, of_acme["id"]) == 404  # another organisation's
    assert send("GET", "/v1/api-keys", of_acme["key"]).status == 403
    assert {key["id"] for key in listed(ada)} == {made["id"]}


def test_nobody_gives_a_scope_that_he_lacks(app_db: Database, ada: Customer) -> None:
    narrow = auth.Caller(
        kind="user",
        organization_id=ada.organization_id,
        user_id=ada.user_id,
        key_id=None,
        role="admin",
        scopes=frozenset({"keys:manage", "read"}),
        is_platform_admin=False,
    )
    wanted = organization_keys.NewKey(name="more", scopes=["read", "credits:spend"])
    with (
        pytest.raises(Forbidden, match="credits:spend"),
        db.transaction(organization_id=ada.organization_id) as tx,
    ):
        organization_keys.create(tx, wanted, narrow)
    assert listed(ada) == []


def test_keys_are_listed_newest_first_in_parts(ada: Customer) -> None:
    made = [create(ada, name=f"robot {number}").body["id"] for number in range(3)]
    first = send("GET", "/v1/api-keys", ada.token, query={"limit": "2"}).body
    rest = send("GET", "/v1/api-keys", ada.token, query={"cursor": first["next_cursor"]}).body
    assert [key["id"] for key in first["items"] + rest["items"]] == made[::-1]
    assert rest["next_cursor"] is None


# ---- last use ----


def count_writes(database: Database) -> None:
    rows(database, "CREATE TABLE public.written (uses bigint)")
    rows(database, "GRANT INSERT ON public.written TO PUBLIC")
    rows(
        database,
        """
        CREATE FUNCTION public.note_write() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
        BEGIN
            INSERT INTO public.written VALUES (NEW.use_count - OLD.use_count);
            RETURN NEW;
        END
        $$
        """,
    )
    rows(
        database,
        """
        CREATE TRIGGER note_write AFTER UPDATE OF last_used_at ON platform.api_keys
        FOR EACH ROW EXECUTE FUNCTION public.note_write()
        """,
    )


def written(database: Database) -> list[int]:
    return [row["uses"] for row in rows(database, "SELECT uses FROM public.written")]


def a_minute_passes(database: Database) -> None:
    rows(database, "ALTER TABLE platform.api_keys DISABLE TRIGGER note_write")
    rows(database, "UPDATE platform.api_keys SET last_used_at = last_used_at - interval '1 minute'")
    rows(database, "ALTER TABLE platform.api_keys ENABLE TRIGGER note_write")


def test_a_burst_of_a_thousand_requests_writes_its_use_once(
    app_db: Database, ada: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = create(ada).body["key"]
    count_writes(app_db)
    statements: list[str] = []
    call = db.call

    def counted(query: Any, params: Any = None, **options: Any) -> Any:
        statements.append(str(query))
        return call(query, params, **options)

    monkeypatch.setattr(db, "call", counted)
    for _ in range(1000):
        auth.authenticate({"authorization": f"Bearer {secret}"})
    assert len(statements) == 1001  # the look-up of each, and one write
    assert written(app_db) == [1]
    a_minute_passes(app_db)
    auth.authenticate({"authorization": f"Bearer {secret}"})
    assert written(app_db) == [1, 1000]
    [key] = listed(ada)
    assert key["use_count"] == 1001
    assert moment(key["last_used_at"]) <= datetime.now(UTC)


def test_of_processes_that_write_a_use_at_once_one_does_and_none_waits(
    app_db: Database, ada: Customer
) -> None:
    key_id = create(ada).body["id"]
    count_writes(app_db)

    def use(_: int) -> Any:
        with app_db.connect("backplane_app") as connection:
            row = connection.execute(
                "SELECT platform.count_key_uses(%s, 1, '1 minute') AS counted", [key_id]
            ).fetchone()
        return row and row["counted"]

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(use, range(24))) == 1
    assert written(app_db) == [1]
    a_minute_passes(app_db)
    with app_db.connect() as holder, holder.transaction():
        holder.execute("SELECT 1 FROM platform.api_keys WHERE id = %s FOR UPDATE", [key_id])
        assert use(0) is False  # somebody has the row: it is left to the next use
    assert use(0) is True


def test_what_cannot_be_written_does_not_fail_the_request_and_is_not_counted_twice(
    app_db: Database, ada: Customer
) -> None:
    secret = create(ada).body["key"]
    rows(
        app_db,
        "REVOKE EXECUTE ON FUNCTION platform.count_key_uses(uuid, bigint, interval) FROM backplane_app",
    )
    rows(
        app_db,
        """
        CREATE OR REPLACE FUNCTION platform.count_key_uses(p_id uuid, p_uses bigint, p_rest interval)
        RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no time' USING ERRCODE = '57014'; END $$
        """,
    )
    rows(app_db, "GRANT EXECUTE ON FUNCTION platform.count_key_uses(uuid, bigint, interval) TO backplane_app")
    assert send("GET", "/v1/credits", secret).status == 200
    assert keys._uses[UUID(listed(ada)[0]["id"])] == 0
