"""A user's own settings: his defaults, what they may be, and whose timezone they move."""

from typing import Any
from uuid import uuid4

import pytest
import runner
from migration_file import read_folder
from tests.callers import ROOT, Customer, mint, send, sign_up, token, trust_our_tokens
from tests.databases import Database
from tests.ledgers import rows
from tests.senders import Answer, clerk_user, post_clerk

from backplane import db, roles

DEFAULTS = {
    "theme": "light",
    "language": "en",
    "timezone": "UTC",
    "email_notifications": True,
    "default_project_template": None,
    "last_workspace_id": None,
}


@pytest.fixture
def ada(app_db: Database, webhook_secrets: None, monkeypatch: pytest.MonkeyPatch) -> Customer:
    trust_our_tokens(monkeypatch)
    return sign_up()


def settings(customer: Customer, **place: Any) -> Any:
    answer = send("GET", "/v1/settings", customer.token, **place)
    assert answer.status == 200, answer.body
    return answer.body


def change(customer: Customer, *, organization: object = None, **body: Any) -> Answer:
    return send("PATCH", "/v1/settings", customer.token, body=body, organization=organization)


def zones(database: Database) -> dict[str, str]:
    found = rows(database, "SELECT name, timezone FROM tenancy.organizations")
    return {row["name"]: row["timezone"] for row in found}


def test_everybody_begins_with_the_defaults_and_changes_what_he_names(
    app_db: Database, ada: Customer
) -> None:
    bob = sign_up("user_bob")
    assert settings(ada) == DEFAULTS
    changed = change(ada, theme="dark", language="DE-at", default_project_template="saas")
    assert changed.body == DEFAULTS | {
        "theme": "dark",
        "language": "de-AT",
        "default_project_template": "saas",
    }
    assert change(ada, default_project_template=None, email_notifications=False).status == 200
    assert settings(ada) == DEFAULTS | {"theme": "dark", "language": "de-AT", "email_notifications": False}
    assert settings(bob) == DEFAULTS


def test_what_no_setting_can_be_is_refused(ada: Customer) -> None:
    for body in (
        {},
        {"theme": "pink"},
        {"theme": None},
        {"language": "english"},
        {"language": "xx"},
        {"timezone": "Mars/Olympus"},
        {"timezone": "europe/berlin"},
        {"timezone": "right/UTC"},
        {"email_notifications": "yes"},
        {"default_project_template": " "},
        {"last_workspace_id": 7},
        {"last_workspace_id": "mine"},
        {"user_id": str(ada.user_id)},
    ):
        refused = send("PATCH", "/v1/settings", ada.token, body=body)
        assert (refused.status, bool(refused.body["errors"])) == (422, True), body
    assert settings(ada) == DEFAULTS


def test_a_timezone_is_his_personal_organisations_wherever_he_acts(app_db: Database, ada: Customer) -> None:
    acme = send("POST", "/v1/organizations", ada.token, body={"name": "Acme"}).body["id"]
    assert change(ada, organization=acme, timezone="Asia/Kathmandu").body["timezone"] == "Asia/Kathmandu"
    assert zones(app_db) == {"Personal": "Asia/Kathmandu", "Acme": "UTC"}
    assert settings(ada, organization=acme)["timezone"] == "Asia/Kathmandu"
    refused = change(ada, timezone="Nowhere", theme="dark")
    assert refused.status == 422
    assert settings(ada)["theme"] == "light"  # nothing half done


def test_the_last_workspace_is_one_that_he_may_enter(app_db: Database, ada: Customer) -> None:
    bob = sign_up("user_bob")
    acme = send("POST", "/v1/organizations", ada.token, body={"name": "Acme"}).body["id"]
    assert change(ada, last_workspace_id=acme).body["last_workspace_id"] == acme
    for named in (acme, str(ada.organization_id), str(uuid4())):
        refused = change(bob, last_workspace_id=named)
        assert (refused.status, refused.body["errors"][0]["type"]) == (422, "not_a_member")
    assert send("DELETE", f"/v1/organizations/{acme}", ada.token).status == 204
    assert settings(ada)["last_workspace_id"] is None
    at_clerk = sign_up("user_ada", org_id="org_acme", org_role="org:member").organization_id
    assert change(ada, last_workspace_id=str(at_clerk)).body["last_workspace_id"] == str(at_clerk)
    assert change(ada, last_workspace_id=None).body["last_workspace_id"] is None


def test_settings_are_a_persons_and_nobody_elses(app_db: Database, ada: Customer) -> None:
    key = mint(app_db, ada.organization_id, ["read", "projects:write"])
    for method, body in (("GET", None), ("PATCH", {"theme": "dark"})):
        assert send(method, "/v1/settings", key, body=body).status == 403
    change(ada, theme="dark")
    visiting = send("GET", "/v1/settings", token(ROOT), organization=ada.organization_id)
    assert visiting.body == DEFAULTS  # his own

    def seen(tx: db.Tx) -> list[Any]:
        return tx.execute("SELECT user_id FROM identity.settings").fetchall()

    assert db.run(seen, organization_id=ada.organization_id) == []
    assert db.run(seen, user_id=ada.user_id) == [{"user_id": ada.user_id}]


def test_settings_go_with_their_user_and_a_tombstone_has_none(app_db: Database, ada: Customer) -> None:
    change(ada, language="fr")
    with app_db.as_role("backplane_system"):
        for user in ("user_ada", "user_never_seen"):
            assert post_clerk(clerk_user(user, kind="deleted")).body["status"] == "processed"
    assert rows(app_db, "SELECT 1 FROM identity.settings") == []


def test_who_came_before_there_were_settings_has_them_after_the_migration(empty_database: Database) -> None:
    [file] = runner.FOLDER.glob("*_account_settings.sql")
    versions = [migration.version for migration in read_folder(runner.FOLDER)]
    version = file.name.partition("_")[0]
    with empty_database.connect() as owner:
        roles.ensure_roles(owner, {})
        runner.up(owner, versions[versions.index(version) - 1])
        owner.execute(
            """
            INSERT INTO identity.users (clerk_id, deleted_at)
            VALUES ('user_old', NULL), ('user_older', NULL), ('user_gone', now())
            """
        )
        owner.execute(
            """
            INSERT INTO tenancy.organizations (personal_user_id, name, timezone)
            SELECT id, 'Old', 'Asia/Kathmandu' FROM identity.users WHERE clerk_id = 'user_old'
            """
        )
        assert runner.up(owner, version) == [version]
        given = owner.execute(
            """
            SELECT u.clerk_id, s.theme, s.timezone
            FROM identity.settings AS s
            JOIN identity.users AS u ON u.id = s.user_id
            ORDER BY u.clerk_id
            """
        ).fetchall()
    assert given == [
        {"clerk_id": "user_old", "theme": "light", "timezone": "Asia/Kathmandu"},
        {"clerk_id": "user_older", "theme": "light", "timezone": "UTC"},
    ]
