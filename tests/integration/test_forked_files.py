"""Forks take the files along: all of a project or none of it, and counted."""

import itertools
from typing import Any
from uuid import UUID

import project_forks
import pytest
from tests import kills
from tests.callers import Customer, send, sign_up, trust_our_tokens
from tests.databases import Database
from tests.kills import Killed, end_the_session
from tests.ledgers import rows
from tests.senders import Answer

from backplane import auth, buckets, db, files
from backplane.archives import Bucket

TREE = {"App.tsx": "app", "src/a.ts": "é\x00"}


@pytest.fixture
def ada(
    app_db: Database, files_bucket: Bucket, webhook_secrets: None, monkeypatch: pytest.MonkeyPatch
) -> Customer:
    trust_our_tokens(monkeypatch)
    return sign_up("user_ada")


@pytest.fixture
def source(ada: Customer) -> str:
    """Version 2 is in force; version 1 is nobody else's."""
    made = send("POST", "/v1/projects", ada.token, body={"title": "Fitness"})
    project_id: str = made.body["id"]
    save(ada, project_id, {"old": "secret"})
    save(ada, project_id, TREE)
    return project_id


def save(customer: Customer, project: str, named: dict[str, str]) -> Any:
    listed = [{"path": path, "content": content} for path, content in named.items()]
    body = {"files": listed, "operation": "replace"}
    answer = send("POST", f"/v1/projects/{project}/files", customer.token, body=body)
    assert answer.status == 201, answer.body
    return answer.body


def fork(customer: Customer, project: str, *, key: str | None = None, **fields: Any) -> Answer:
    return send("POST", f"/v1/projects/{project}/fork", customer.token, body=fields, key=key)


def listed(customer: Customer, project: str) -> Any:
    return send("GET", f"/v1/projects/{project}/files", customer.token).body


def contents(customer: Customer, project: str) -> dict[str, str]:
    path = f"/v1/projects/{project}/files/content"
    return {
        file["path"]: send("GET", path, customer.token, query={"path": file["path"]}).body["content"]
        for file in listed(customer, project)["files"]
    }


def projects(database: Database) -> int:
    return len(rows(database, "SELECT 1 FROM projects.projects"))


def objects(database: Database) -> list[dict[str, Any]]:
    return rows(database, "SELECT * FROM storage.objects ORDER BY id")


def assert_exact(database: Database) -> None:
    """Each organisation's count is what it has, and every version is there and what it says."""
    counted = rows(
        database, "SELECT organization_id, used FROM billing.usage_counters WHERE key = 'site.storage_bytes'"
    )
    for counter in counted:
        own = [row for row in objects(database) if row["organization_id"] == counter["organization_id"]]
        assert counter["used"] == sum(row["bytes"] for row in own if row["state"] in {"granted", "stored"})
    for version in rows(database, "SELECT * FROM projects.file_versions"):
        buckets.read(version["s3_key"], version["s3_version"], version["sha256"])


def test_a_fork_has_the_files_in_force_as_its_first_version_and_they_count(
    app_db: Database, ada: Customer, source: str
) -> None:
    made = fork(ada, source, key="k").body
    assert contents(ada, made["id"]) == TREE
    mine, theirs = listed(ada, made["id"]), listed(ada, source)
    assert (mine["version"], theirs["version"]) == (1, 2)
    assert {name: mine[name] for name in ("sha256", "total_bytes", "files")} == {
        name: theirs[name] for name in ("sha256", "total_bytes", "files")
    }
    (entry,) = send("GET", f"/v1/projects/{made['id']}/versions", ada.token).body["items"]
    assert (entry["base_version"], entry["created_by"]) == (0, str(ada.user_id))
    assert entry["s3_key"].startswith(f"projects/{made['id']}/files-v")
    assert_exact(app_db)
    assert fork(ada, source, key="k").body == made
    assert projects(app_db) == 2

    save(ada, made["id"], {"App.tsx": "changed"})  # each goes its own way
    assert contents(ada, source) == TREE
    assert listed(ada, made["id"])["version"] == 2
    assert_exact(app_db)


def test_whoever_forks_anothers_public_project_stores_its_files_as_his_own(
    app_db: Database, ada: Customer, source: str
) -> None:
    bob = sign_up("user_bob")
    made = fork(bob, source).body
    assert contents(bob, made["id"]) == TREE
    owners = rows(app_db, "SELECT organization_id FROM storage.objects ORDER BY id")
    assert owners[-1]["organization_id"] == bob.organization_id
    used = send("GET", "/v1/storage", bob.token).body
    assert [item["project_id"] for item in used["items"]] == [made["id"]]
    assert used["used_bytes"] == used["items"][0]["bytes"]
    rows(app_db, "UPDATE projects.projects SET is_public = false")
    assert fork(bob, source).status == 404
    assert len(objects(app_db)) == 3
    assert_exact(app_db)


def test_a_project_whose_files_are_all_deleted_is_forked_without_any(
    app_db: Database, ada: Customer, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(ada, source, {})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the port that discards: nobody listens
    made = fork(ada, source)
    assert (made.status, listed(ada, made.body["id"])["version"]) == (201, 0)


def test_what_a_fork_lacks_leaves_nothing_of_it(
    app_db: Database, ada: Customer, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = {row["id"] for row in objects(app_db)}
    with monkeypatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        assert fork(ada, source).body["code"] == "unavailable"
    rows(app_db, "UPDATE billing.plan_limits SET value = 100 WHERE key = 'site.storage_bytes'")
    assert fork(ada, source).body["code"] == "plan_limit_reached"
    rows(app_db, "UPDATE billing.plan_limits SET value = -1 WHERE key = 'site.storage_bytes'")
    rows(app_db, "UPDATE billing.plan_limits SET value = 1 WHERE key = 'app.projects'")
    assert fork(ada, source).body["code"] == "plan_limit_reached"
    newest = rows(app_db, "SELECT s3_key FROM storage.objects ORDER BY id LIMIT 1 OFFSET 1")[0]["s3_key"]
    rows(app_db, "UPDATE billing.plan_limits SET value = -1 WHERE key = 'app.projects'")
    rows(app_db, "UPDATE projects.file_versions SET s3_version = 'gone' WHERE s3_key = %s", newest)
    assert fork(ada, source).status in {500, 503}
    assert projects(app_db) == 1
    assert {row["state"] for row in objects(app_db) if row["id"] not in stored} == {"deleted"}


def test_a_fork_that_is_killed_anywhere_is_whole_or_not_there(
    app_db: Database, ada: Customer, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise Killed

    caller = auth.authenticate({"authorization": f"Bearer {ada.token}"})

    def commit(work: Any) -> Any:
        return db.run(work, organization_id=ada.organization_id)

    def forked() -> Any:
        return project_forks.fork(caller, UUID(source), project_forks.Fork(), commit)

    # A process that is gone gives nothing back.
    monkeypatch.setattr(files, "give_back", lambda granted: None)
    with monkeypatch.context() as patched:
        patched.setattr(buckets, "copy", die)
        with pytest.raises(Killed):
            forked()
    for number in itertools.count(1, 2):  # every second
        try:
            with kills.at_statement(number, die):
                made = forked()
            break
        except Killed:
            end_the_session(app_db)
            db.reset()
        assert projects(app_db) == 1
        assert len(rows(app_db, "SELECT 1 FROM projects.file_versions")) == 2
    assert number > 15
    assert contents(ada, str(made.id)) == TREE

    strays = [row["id"] for row in objects(app_db) if row["state"] == "granted"]
    assert len(strays) > 5
    rows(app_db, "UPDATE storage.objects SET expires_at = clock_timestamp()")
    save(ada, source, {"more": "x"})  # who needs room gives back what is over
    assert {row["state"] for row in objects(app_db) if row["id"] in strays} == {"expired"}
    assert_exact(app_db)
