"""Projects deleted long ago: what was in them goes, once, and what others need of them stays."""

import itertools
from typing import Any
from uuid import UUID

import project_purge
import pytest
import storage_upkeep
from psycopg import sql
from tests import kills
from tests.callers import Customer, mint, send, sign_up, trust_our_tokens
from tests.databases import Database
from tests.kills import Killed, end_the_session
from tests.ledgers import assert_books_balance, rows
from tests.senders import invoke

from backplane import db
from backplane.archives import Bucket

# What stays of a purged project beside its row.
KEPT = {"projects.generations", "storage.objects", "deploys.deployments"}


@pytest.fixture
def ada(
    app_db: Database, files_bucket: Bucket, webhook_secrets: None, monkeypatch: pytest.MonkeyPatch
) -> Customer:
    trust_our_tokens(monkeypatch)
    return sign_up("user_ada")


@pytest.fixture
def project(app_db: Database, ada: Customer) -> str:
    """With two versions of files, an upload, a conversation, a share, a deployment and a generation."""
    project_id: str = new_project(ada)
    path = f"/v1/projects/{project_id}"
    send("PATCH", path, ada.token, body={"config": {"color": "blue"}, "is_favorite": True, "tags": ["a"]})
    send("POST", f"{path}/messages", ada.token, body={"role": "user", "content": "hello"})
    send("POST", f"{path}/shares", ada.token, body={"email": "bob@example.com"})
    rows(
        app_db,
        """
        INSERT INTO deploys.deployments
            (organization_id, project_id, type, platform, project_name, next_poll_at)
        VALUES (%s, %s, 'manual', 'web', 'Fitness', now())
        """,
        ada.organization_id,
        project_id,
    )
    for text in "12":
        save(ada, project_id, text)
    upload = {"name": "logo.png", "content_type": "image/png", "bytes": 1000}
    send("POST", f"{path}/uploads", ada.token, body=upload)
    asked = {"agent_type": "frontend", "prompt": "Make it blue", "operation": "ai_text_chat"}
    started = send("POST", f"{path}/generations", ada.token, body=asked).body
    server = mint(app_db, None, ["generations:finish"])
    done = {"lock_token": started["lock_token"], "response": "Done", "tokens_used": 1}
    path = f"/v1/generations/{started['id']}/complete"
    assert send("POST", path, server, body=done, organization=ada.organization_id).status == 200
    return project_id


def new_project(customer: Customer) -> Any:
    return send("POST", "/v1/projects", customer.token, body={"title": "Fitness"}).body["id"]


def save(customer: Customer, project: str, text: str) -> None:
    body = {"files": [{"path": "a", "content": text}]}
    assert send("POST", f"/v1/projects/{project}/files", customer.token, body=body).status == 201


def delete(database: Database, customer: Customer, project: str, *, days: int) -> None:
    assert send("DELETE", f"/v1/projects/{project}", customer.token).status == 204
    age = "UPDATE projects.projects SET deleted_at = deleted_at - make_interval(days => %s) WHERE id = %s"
    rows(database, age, days, project)


def upkeep(database: Database, **event: Any) -> Any:
    with database.as_role("backplane_system"):
        return invoke(storage_upkeep.handler, event)


def used(database: Database) -> int:
    counted = rows(database, "SELECT used FROM billing.usage_counters WHERE key = 'site.storage_bytes'")
    return sum(row["used"] for row in counted)


def left(database: Database, project: str) -> dict[str, int]:
    """Rows of every table that are a project's own."""
    tables = rows(
        database,
        """
        SELECT c.table_schema, c.table_name
        FROM information_schema.columns AS c
        JOIN information_schema.tables AS t USING (table_schema, table_name)
        WHERE c.column_name = 'project_id' AND t.table_type = 'BASE TABLE'
        """,
    )
    counts = {}
    with database.connect() as owner:
        for table in tables:
            name = sql.Identifier(table["table_schema"], table["table_name"])
            query = sql.SQL("SELECT count(*) AS n FROM {} WHERE project_id = %s").format(name)
            row = owner.execute(query, [project]).fetchone()
            counts[f"{table['table_schema']}.{table['table_name']}"] = (row or {})["n"]
    return {name: count for name, count in counts.items() if count}


def test_what_was_in_a_project_goes_when_nobody_may_restore_it_any_more(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket
) -> None:
    other = new_project(ada)
    save(ada, other, "stays")
    before, full = used(app_db), left(app_db, project)
    assert {"projects.file_versions", "projects.messages", "projects.settings"} | KEPT < full.keys()
    delete(app_db, ada, project, days=29)
    assert upkeep(app_db)["projects"] == 0
    with app_db.as_role("backplane_system"):  # as if it had been restored and deleted anew since it was due
        assert not db.run(lambda tx: project_purge.purge(tx, UUID(project), days=30))
    assert send("POST", f"/v1/projects/{project}/restore", ada.token).status == 200
    content = send("GET", f"/v1/projects/{project}/files/content", ada.token, query={"path": "a"})
    assert content.body["content"] == "2"

    delete(app_db, ada, project, days=31)
    assert used(app_db) == before
    versions = "SELECT bytes FROM storage.objects WHERE project_id = %s AND kind = 'files'"
    counted = before - sum(row["bytes"] for row in rows(app_db, versions, project))
    rows(app_db, "UPDATE storage.objects SET expires_at = clock_timestamp() WHERE kind = 'files'")
    assert upkeep(app_db) == {"ok": True, "expired": 0, "projects": 1, "purged": 2}
    assert left(app_db, project).keys() == KEPT
    assert used(app_db) == counted
    listed = files_bucket.client.list_objects_v2(Bucket=files_bucket.name)["Contents"]
    assert [each["Key"].split("/")[1] for each in listed] == [other]
    [upload] = rows(app_db, "SELECT state FROM storage.objects WHERE kind = 'upload'")
    assert upload["state"] == "granted"  # it is the organisation's, and outlives its project
    [kept] = rows(app_db, "SELECT title, purged_at, tags FROM projects.projects WHERE id = %s", project)
    assert (kept["title"], kept["tags"]) == ("Fitness", [])
    assert [row["prompt"] for row in rows(app_db, "SELECT prompt FROM projects.generations")] == [""]

    restored = send("POST", f"/v1/projects/{project}/restore", ada.token)
    assert (restored.status, restored.body["code"]) == (404, "not_found")
    assert "too long ago" in restored.body["detail"]
    listed = send("GET", "/v1/projects", ada.token, query={"deleted": "true"}).body["items"]
    assert listed == []
    told = rows(app_db, "SELECT count(*) AS n FROM platform.outbox WHERE type = 'project.purged'")
    assert told == [{"n": 1}]
    assert upkeep(app_db, compare=True)["ok"]
    assert left(app_db, project).keys() == KEPT
    assert used(app_db) == counted
    assert_books_balance(app_db, ada.organization_id)


def test_a_purge_that_is_killed_anywhere_is_whole_or_not_there(
    app_db: Database, ada: Customer, project: str
) -> None:
    def die() -> None:
        raise Killed

    delete(app_db, ada, project, days=31)
    before, full = used(app_db), left(app_db, project)
    with app_db.as_role("backplane_system"):
        for number in itertools.count(1):
            try:
                with kills.at_statement(number, die):
                    assert db.run(lambda tx: project_purge.due(tx, days=30, limit=9)) != []
                    assert db.run(lambda tx: project_purge.purge(tx, UUID(project), days=30))
                break
            except Killed:
                end_the_session(app_db)
                db.reset()
            assert (used(app_db), left(app_db, project)) == (before, full)
        assert number > 12
        assert not db.run(lambda tx: project_purge.purge(tx, UUID(project), days=30))
    assert left(app_db, project).keys() == KEPT


def test_one_project_that_cannot_be_purged_stops_no_other(app_db: Database, ada: Customer) -> None:
    first, second = new_project(ada), new_project(ada)
    for number, project in enumerate((first, second)):
        delete(app_db, ada, project, days=40 - number)
    rows(
        app_db,
        f"""
        CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'not this one'; END $$;
        CREATE TRIGGER refuse BEFORE UPDATE ON projects.projects
            FOR EACH ROW WHEN (OLD.id = '{first}') EXECUTE FUNCTION public.refuse()
        """,
    )
    answer = upkeep(app_db)
    assert (answer["ok"], answer["projects"]) == (False, 1)
    rows(app_db, "DROP TRIGGER refuse ON projects.projects")
    answer = upkeep(app_db)
    assert (answer["ok"], answer["projects"]) == (True, 1)
