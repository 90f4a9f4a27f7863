"""A project's files over their routes: saved, read, restored; raced for, and cut off half-way."""

import hashlib
import itertools
import json
import urllib.request
from typing import Any
from uuid import UUID

import pytest
from tests import kills
from tests.callers import Customer, mint, send, sign_up, trust_our_tokens
from tests.counters import at_once, transaction
from tests.databases import Database
from tests.kills import Killed, end_the_session
from tests.ledgers import rows
from tests.processes import race
from tests.senders import Answer

from backplane import auth, buckets, db, file_changes, files, stored_objects
from backplane.archives import Bucket
from backplane.file_changes import NewFile
from backplane.problems import PlanLimitReached, Unavailable

TREE = {"App.tsx": "app", "src/a.ts": "é"}


@pytest.fixture
def ada(
    app_db: Database, files_bucket: Bucket, webhook_secrets: None, monkeypatch: pytest.MonkeyPatch
) -> Customer:
    trust_our_tokens(monkeypatch)
    return sign_up("user_ada")


@pytest.fixture
def project(ada: Customer) -> str:
    return new_project(ada.token)


def new_project(credential: str, **fields: Any) -> str:
    made = send("POST", "/v1/projects", credential, body={"title": "Fitness", **fields})
    assert made.status == 201, made.body
    project_id: str = made.body["id"]
    return project_id


def save(
    credential: str, project: str, named: dict[str, str | None], *, key: str | None = None, **fields: Any
) -> Answer:
    listed = [{"path": path, "content": content} for path, content in named.items()]
    return send(
        "POST", f"/v1/projects/{project}/files", credential, key=key, body={"files": listed, **fields}
    )


def saved(credential: str, project: str, named: dict[str, str | None], **fields: Any) -> Any:
    answer = save(credential, project, named, **fields)
    assert answer.status == 201, answer.body
    return answer.body


def listed(credential: str, project: str, **query: str) -> Answer:
    return send("GET", f"/v1/projects/{project}/files", credential, query=query or None)


def content(credential: str, project: str, path: str, **query: str) -> Answer:
    return send("GET", f"/v1/projects/{project}/files/content", credential, query={"path": path, **query})


def history(credential: str, project: str) -> list[dict[str, Any]]:
    answer = send("GET", f"/v1/projects/{project}/versions", credential, query={"limit": "100"})
    assert answer.status == 200, answer.body
    items: list[dict[str, Any]] = answer.body["items"]
    return items


def used(database: Database) -> int:
    counters = rows(database, "SELECT used FROM billing.usage_counters WHERE key = 'site.storage_bytes'")
    return sum(row["used"] for row in counters)


def objects(database: Database) -> list[dict[str, Any]]:
    return rows(database, "SELECT * FROM storage.objects ORDER BY id")


def in_bucket(bucket: Bucket) -> dict[str, int]:
    answer = bucket.client.list_objects_v2(Bucket=bucket.name)
    return {each["Key"]: each["Size"] for each in answer.get("Contents", ())}


def assert_exact(database: Database, bucket: Bucket) -> None:
    """What counts is what is stored, and every version's object is there and is what the version says."""
    stored = {row["s3_key"]: row["bytes"] for row in objects(database) if row["state"] == "stored"}
    assert used(database) == sum(stored.values())
    assert stored.items() <= in_bucket(bucket).items()
    for version in rows(database, "SELECT * FROM projects.file_versions"):
        body = buckets.read(version["s3_key"], version["s3_version"], version["sha256"])
        assert [file["path"] for file in version["files"]] == list(json.loads(body)["files"])


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310  moto's, on this machine
        body: bytes = response.read()
    return body


# ---- a version after the other ----


def test_a_save_makes_a_version_that_reads_back(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket
) -> None:
    assert listed(ada.token, project).body == {
        "version": 0, "sha256": None, "total_bytes": 0, "files": [], "download_url": None,
    }  # fmt: skip
    answer = saved(ada.token, project, dict(TREE), message="First")
    assert answer["version"] == 1
    assert answer["counts"] == {"created": 2, "updated": 0, "unchanged": 0, "deleted": 0}
    assert answer["total_bytes"] == 5
    found = listed(ada.token, project).body
    assert (found["version"], found["sha256"], found["total_bytes"]) == (1, answer["sha256"], 5)
    assert found["files"] == [
        {"path": path, "bytes": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        for path, text in sorted(TREE.items())
    ]
    body = fetch(found["download_url"])
    assert json.loads(body) == {"files": TREE}
    assert hashlib.sha256(body).hexdigest() == answer["sha256"]
    assert content(ada.token, project, "src/a.ts").body == found["files"][1] | {"version": 1, "content": "é"}
    assert in_bucket(files_bucket) == {answer["s3_key"]: len(body)}
    assert used(app_db) == len(body)
    assert_exact(app_db, files_bucket)


def test_each_save_begins_from_the_newest_and_keeps_what_it_does_not_name(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket
) -> None:
    saved(ada.token, project, dict(TREE))
    second = saved(ada.token, project, {"b": "b"})
    assert second["counts"] == {"created": 1, "updated": 0, "unchanged": 0, "deleted": 0}
    third = saved(ada.token, project, {"App.tsx": None}, operation="delete", base_version=2)
    assert third["version"] == 3
    assert [file["path"] for file in listed(ada.token, project).body["files"]] == ["b", "src/a.ts"]
    assert [file["path"] for file in listed(ada.token, project, version="1").body["files"]] == sorted(TREE)
    assert content(ada.token, project, "App.tsx").status == 404
    assert content(ada.token, project, "App.tsx", version="2").body["content"] == "app"
    assert listed(ada.token, project, version="4").status == 404
    entries = history(ada.token, project)
    assert [(entry["version"], entry["base_version"], entry["files"]) for entry in entries] == [
        (3, 2, 2), (2, 1, 3), (1, 0, 2),
    ]  # fmt: skip
    assert entries[0]["created_by"] == str(ada.user_id)
    assert_exact(app_db, files_bucket)


def test_keys_name_the_time_and_ascend_also_within_a_millisecond(
    ada: Customer, project: str, app_db: Database
) -> None:
    first = saved(ada.token, project, {"a": "1"})
    assert first["s3_key"].startswith(f"projects/{project}/files-v")
    ahead = int(first["s3_key"].rpartition("-v")[2].removesuffix(".json")) + 3_600_000  # its clock ran ahead
    rows(app_db, "UPDATE projects.file_versions SET epoch_ms = %s", ahead)
    rows(  # what a save of the next millisecond left that was cut off
        app_db,
        """
        INSERT INTO storage.objects
            (organization_id, kind, s3_key, name, content_type, bytes, expires_at, state, deleted_at)
        SELECT organization_id, kind, %s, name, content_type, bytes, expires_at, 'expired', clock_timestamp()
        FROM storage.objects
        """,
        f"projects/{project}/files-v{ahead + 1}.json",
    )
    keys = [saved(ada.token, project, {"a": text})["s3_key"] for text in "23"]
    assert keys == [f"projects/{project}/files-v{ahead + number}.json" for number in (2, 3)]


def test_unchanged_contents_make_no_version(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket
) -> None:
    first = saved(ada.token, project, dict(TREE))
    again = saved(ada.token, project, dict(TREE), operation="replace")
    assert again == first | {"counts": {"created": 0, "updated": 0, "unchanged": 2, "deleted": 0}}
    assert len(history(ada.token, project)) == len(in_bucket(files_bucket)) == 1
    assert len(objects(app_db)) == 1


def test_a_restored_version_is_a_new_one(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket
) -> None:
    first = saved(ada.token, project, dict(TREE))
    saved(ada.token, project, {"only": "this"}, operation="replace")
    path = f"/v1/projects/{project}/versions/1/restore"
    answer = send("POST", path, ada.token, body={"message": "Back"}, key="back")
    assert (answer.status, answer.body["version"], answer.body["sha256"]) == (201, 3, first["sha256"])
    assert answer.body["counts"] == {"created": 2, "updated": 0, "unchanged": 0, "deleted": 1}
    assert send("POST", path, ada.token, body={"message": "Back"}, key="back").body == answer.body
    assert send("POST", path, ada.token, body={"base_version": 2}).body["code"] == "version_conflict"
    assert send("POST", path.replace("/1/", "/9/"), ada.token, body={}).status == 404
    entry = history(ada.token, project)[0]
    assert (entry["restored_from"], entry["message"]) == (1, "Back")
    assert len(history(ada.token, project)) == 3
    assert_exact(app_db, files_bucket)


def test_a_save_on_an_older_version_is_a_conflict_that_names_the_newest(
    app_db: Database, ada: Customer, project: str
) -> None:
    saved(ada.token, project, {"a": "1"}, base_version=0)
    saved(ada.token, project, {"a": "2"}, base_version=1)
    for base in (0, 1, 3):
        answer = save(ada.token, project, {"a": "3"}, base_version=base)
        assert (answer.status, answer.body["code"]) == (409, "version_conflict")
        assert answer.body["newest_version"] == 2
    assert len(objects(app_db)) == 2


def test_a_repeated_save_answers_the_first_version(ada: Customer, project: str) -> None:
    first = save(ada.token, project, {"a": "1"}, operation="create", key="k")
    saved(ada.token, project, {"a": "2"})
    again = save(ada.token, project, {"a": "1"}, operation="create", key="k")
    assert (again.status, again.body) == (201, first.body)
    assert again.headers["idempotent-replayed"] == "true"
    assert save(ada.token, project, {"a": "4"}, operation="create", key="k").status == 409
    assert content(ada.token, project, "a").body["content"] == "2"


# ---- what is refused ----


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"files": [{"path": "../a", "content": "x"}]}, 422),
        ({"files": [{"path": "a\x00", "content": "x"}]}, 422),
        ({"files": [{"path": "a"}]}, 422),
        ({"files": []}, 422),
        ({"files": [{"path": "a", "content": "x", "mode": 1}]}, 422),
        ({"files": [{"path": "a", "content": "x"}], "base_version": -1}, 422),
        ({"files": [{"path": "a", "content": "x"}], "base_version": 2**63}, 422),
        ({"files": [{"path": "a", "content": "x"}], "message": "\x00"}, 422),
        ({"files": [{"path": "a", "content": "x"}], "operation": "merge"}, 422),
        ({"files": [{"path": "a", "content": "x"}], "operation": "update"}, 404),
        ({"files": [{"path": "b", "content": "x"}], "operation": "create"}, 409),
    ],
    ids=str,
)
def test_a_save_that_cannot_be_does_nothing(
    app_db: Database, ada: Customer, project: str, body: dict[str, Any], status: int
) -> None:
    saved(ada.token, project, {"b": "b"})
    assert send("POST", f"/v1/projects/{project}/files", ada.token, body=body).status == status
    assert len(objects(app_db)) == len(history(ada.token, project)) == 1


def test_a_file_may_hold_whatever_text_json_can(ada: Customer, project: str) -> None:
    text = 'NUL \x00, "quotes" \\ \u2028 \U0001f600\r\n'
    saved(ada.token, project, {"a": text})
    assert content(ada.token, project, "a").body["content"] == text
    assert save(ada.token, project, {"a": "\ud800"}).status == 400


def test_versions_count_against_the_plans_storage(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket
) -> None:
    size = len(json.dumps({"files": {"a": "x" * 1000}}, separators=(",", ":")))
    rows(app_db, "UPDATE billing.plan_limits SET value = %s WHERE key = 'site.storage_bytes'", 2 * size)
    saved(ada.token, project, {"a": "x" * 1000})
    saved(ada.token, project, {"a": "y" * 1000})
    refused = save(ada.token, project, {"a": "z"})
    assert (refused.status, refused.body["code"]) == (403, "plan_limit_reached")
    assert content(ada.token, project, "a").body["content"] == "y" * 1000
    assert used(app_db) == 2 * size
    assert_exact(app_db, files_bucket)


def test_others_read_the_newest_version_of_a_public_project_and_nothing_else(
    app_db: Database, ada: Customer, project: str
) -> None:
    saved(ada.token, project, {"a": "old secret"})
    saved(ada.token, project, {"a": "new"})
    bob = sign_up("user_bob").token
    rows(app_db, "UPDATE projects.projects SET is_public = true")
    assert content(bob, project, "a").body["content"] == "new"
    assert listed(bob, project, version="2").status == 200
    assert listed(bob, project, version="1").status == content(bob, project, "a", version="1").status == 404
    assert save(bob, project, {"a": "mine"}).status == 403
    assert send("GET", f"/v1/projects/{project}/versions", bob).status == 403
    rows(app_db, "UPDATE projects.projects SET is_public = false")
    assert listed(bob, project).status == save(bob, project, {"a": "mine"}).status == 404


def test_an_editor_of_a_shared_project_saves_on_its_organisations_account(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket
) -> None:
    saved(ada.token, project, {"a": "1"})
    bob = sign_up("user_bob", email="bob@example.com")
    share = """
        INSERT INTO projects.shares
            (organization_id, project_id, email, role, token_hash, expires_at, user_id, accepted_at)
        VALUES (%s, %s, 'bob@example.com', %s, sha256('token'), now(), %s, now())
    """
    rows(app_db, share, ada.organization_id, project, "editor", bob.user_id)
    assert saved(bob.token, project, {"a": "2"}, key="k") == saved(bob.token, project, {"a": "2"}, key="k")
    assert {row["organization_id"] for row in objects(app_db)} == {ada.organization_id}
    assert [entry["created_by"] for entry in history(bob.token, project)] == [
        str(bob.user_id),
        str(ada.user_id),
    ]
    rows(app_db, "UPDATE projects.shares SET role = 'viewer'")
    assert save(bob.token, project, {"a": "3"}).status == 403
    assert content(bob.token, project, "a").body["content"] == "2"
    assert_exact(app_db, files_bucket)


def test_a_deleted_projects_files_are_gone_until_it_is_restored(ada: Customer, project: str) -> None:
    saved(ada.token, project, {"a": "1"})
    send("DELETE", f"/v1/projects/{project}", ada.token)
    assert listed(ada.token, project).status == save(ada.token, project, {"a": "2"}).status == 404
    send("POST", f"/v1/projects/{project}/restore", ada.token)
    assert content(ada.token, project, "a").body["content"] == "1"


def test_a_key_needs_its_scope(app_db: Database, ada: Customer, project: str) -> None:
    assert save(mint(app_db, ada.organization_id, ["files:write"]), project, {"a": "1"}).status == 201
    assert save(mint(app_db, ada.organization_id, ["projects:write"]), project, {"a": "2"}).status == 403


# ---- at once, and cut off ----


def outer(ada: Customer, project: str, named: dict[str, str], **fields: Any) -> files.Saved:
    """A save that a test may come between: it is not the function's one request at a time."""
    caller = auth.authenticate({"authorization": f"Bearer {ada.token}"})
    change = files.Change("upsert", [NewFile(*each) for each in named.items()], **fields)
    return files.save(
        caller, UUID(project), change, lambda work: db.run(work, organization_id=ada.organization_id)
    )


def test_whoever_saves_between_the_halves_of_a_save_loses_nothing(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, others = buckets.put_once, ["first", "second"]

    def put_late(key: str, body: bytes, sha256: str) -> str:
        version = put(key, body, sha256)
        if others:
            with monkeypatch.context() as alone:
                alone.setattr(buckets, "put_once", put)
                saved(ada.token, project, {others[-1]: "theirs"})
            others.pop()
        return version

    saved(ada.token, project, dict(TREE))
    with monkeypatch.context() as patched:
        patched.setattr(buckets, "put_once", put_late)
        assert outer(ada, project, {"mine": "mine"}).version == 4
    assert [file["path"] for file in listed(ada.token, project).body["files"]] == sorted(
        [*TREE, "first", "second", "mine"]
    )
    assert [row["state"] for row in objects(app_db)].count("deleted") == 2
    assert_exact(app_db, files_bucket)

    others.append("third")
    with monkeypatch.context() as patched:
        patched.setattr(buckets, "put_once", put_late)
        with pytest.raises(files.VersionConflict):
            outer(ada, project, {"mine": "other"}, base_version=4)
    assert content(ada.token, project, "mine").body["content"] == "mine"
    assert_exact(app_db, files_bucket)


def test_a_save_that_changes_nothing_is_judged_anew_where_others_saved_meanwhile(
    ada: Customer, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply, others = file_changes.apply, ["theirs"]

    def apply_and_wait(*args: Any) -> Any:
        made = apply(*args)
        if others:
            saved(ada.token, project, {"App.tsx": others.pop()})
        return made

    saved(ada.token, project, dict(TREE))
    monkeypatch.setattr(file_changes, "apply", apply_and_wait)
    assert outer(ada, project, dict(TREE)).version == 3
    assert content(ada.token, project, "App.tsx").body["content"] == "app"


# Saves a file of its own again and again, each time with another content, and says which version it became.
EDITOR = """
import sys
import files
from tests.senders import call, http_event
import json
token, project, name = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
for number in range(10):
    body = json.dumps({"files": [{"path": name, "content": str(number)}]})
    headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
    event = http_event("POST", f"/v1/projects/{project}/files", body=body, headers=headers)
    answer = call(files.handler, event)
    assert answer.status == 201, answer.body
    print(answer.body["version"], flush=True)
"""


def test_editors_that_race_find_every_save_of_theirs_among_the_versions(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket
) -> None:
    names = ["ada", "bob"]
    said = race(EDITOR, *([ada.token, project, name] for name in names))
    versions = {int(version): name for name, own in zip(names, said, strict=True) for version in own}
    assert sorted(versions) == list(range(1, 21))
    for version, name in versions.items():
        number = str([v for v in sorted(versions) if versions[v] == name].index(version))
        assert content(ada.token, project, name, version=str(version)).body["content"] == number
    assert len(listed(ada.token, project).body["files"]) == 2
    assert_exact(app_db, files_bucket)


def test_the_last_bytes_are_given_to_one_of_many(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket
) -> None:
    """Twenty reserve at once where three have room."""
    rows(app_db, "UPDATE billing.plan_limits SET value = 3000 WHERE key = 'site.storage_bytes'")
    owner = stored_objects.Owner(ada.organization_id, UUID(project), None)

    def reserve(_: int) -> bool:
        with transaction(app_db, ada.organization_id) as tx:
            try:
                stored_objects.reserve_files(tx, owner, name="version 1", size=1000, epoch_ms=1)
            except PlanLimitReached:
                return False
            return True

    assert sum(at_once(20, reserve)) == 3
    assert used(app_db) == 3000
    assert len({row["s3_key"] for row in objects(app_db)}) == 3


def test_a_save_that_is_killed_anywhere_is_whole_or_not_there(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        raise Killed

    acknowledged = saved(ada.token, project, {"a": "0"})["version"]
    for number in itertools.count(1):
        with monkeypatch.context() as patched:
            # A process that is gone gives nothing back.
            patched.setattr(files, "give_back", lambda granted: None)
            try:
                with kills.at_statement(number, die):
                    acknowledged = outer(ada, project, {"a": str(number)}).version
                break
            except Killed:
                end_the_session(app_db)
                db.reset()
        newest = listed(ada.token, project).body["version"]
        assert newest == acknowledged
        assert content(ada.token, project, "a").body["content"] == "0"
    assert number > 10
    assert content(ada.token, project, "a").body["content"] == str(number)
    strays = [row["s3_key"] for row in objects(app_db) if row["state"] == "granted"]
    assert len(strays) > 1
    assert used(app_db) == sum(row["bytes"] for row in objects(app_db))

    rows(app_db, "UPDATE storage.objects SET expires_at = clock_timestamp()")
    saved(ada.token, project, {"a": "more"})  # who needs room gives back what is over
    assert {row["state"] for row in objects(app_db) if row["s3_key"] in strays} == {"expired"}
    assert_exact(app_db, files_bucket)


def test_a_save_that_took_longer_than_its_grant_is_refused(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = buckets.put_once

    def put_slowly(key: str, body: bytes, sha256: str) -> str:
        rows(app_db, "UPDATE storage.objects SET expires_at = clock_timestamp()")
        db.run(lambda tx: stored_objects.expire(tx, ada.organization_id), organization_id=ada.organization_id)
        return put(key, body, sha256)

    with monkeypatch.context() as patched:
        patched.setattr(buckets, "put_once", put_slowly)
        with pytest.raises(Unavailable):
            outer(ada, project, {"a": "1"})
    assert listed(ada.token, project).body["version"] == 0


def test_without_storage_a_save_is_refused_and_gives_its_bytes_back(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(ada.token, project, {"a": "1"})
    before = used(app_db)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the port that discards: nobody listens
    answer = save(ada.token, project, {"a": "2"}, operation="replace")
    assert (answer.status, answer.body["code"]) == (503, "unavailable")
    assert used(app_db) == before
    assert [row["state"] for row in objects(app_db)] == ["stored", "deleted"]


# ---- what is in the bucket ----


def test_a_put_whose_answer_was_lost_finds_itself_there(ada: Customer, files_bucket: Bucket) -> None:
    sha256 = hashlib.sha256(b"{}").hexdigest()
    version = buckets.put_once("projects/p/files-v1.json", b"{}", sha256)
    assert buckets.put_once("projects/p/files-v1.json", b"{}", sha256) == version
    with pytest.raises(buckets.BrokenObjectError, match="taken"):
        buckets.put_once("projects/p/files-v1.json", b"[]", hashlib.sha256(b"[]").hexdigest())


def test_an_object_that_was_put_over_is_not_read_and_one_that_is_gone_is_said(
    ada: Customer, project: str, files_bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    key = saved(ada.token, project, {"a": "1"})["s3_key"]
    files_bucket.client.put_object(Bucket=files_bucket.name, Key=key, Body=b'{"files": {"a": "forged"}}')
    assert content(ada.token, project, "a").body["content"] == "1"
    first = files_bucket.client.list_object_versions(Bucket=files_bucket.name)["Versions"][-1]["VersionId"]
    files_bucket.client.delete_object(Bucket=files_bucket.name, Key=key, VersionId=first)
    answer = content(ada.token, project, "a")
    assert (answer.status, answer.body["code"]) == (500, "internal_error")
    assert "gone from the bucket" in caplog.text
    forged = files_bucket.client.head_object(Bucket=files_bucket.name, Key=key)["VersionId"]
    with pytest.raises(buckets.BrokenObjectError, match="SHA-256"):
        buckets.read(key, forged, "0" * 64)
