"""Generations that bring files: everything that they made counts at once, or nothing of it does."""

import itertools
import json
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

import generations
import pytest
from tests import kills
from tests.callers import Customer, mint, send, sign_up, trust_our_tokens
from tests.databases import Database
from tests.kills import Killed, end_the_session
from tests.ledgers import assert_books_balance, rows
from tests.posts import post
from tests.senders import Answer

from backplane import auth, buckets, db, files
from backplane.archives import Bucket
from backplane.problems import Conflict

MADE = [{"path": "App.tsx", "content": "blue"}, {"path": "src/a.ts", "content": "é"}]
SAID = [{"role": "user", "content": "Make it blue"}, {"role": "assistant", "content": "It is blue."}]


@pytest.fixture
def ada(
    app_db: Database, files_bucket: Bucket, webhook_secrets: None, monkeypatch: pytest.MonkeyPatch
) -> Customer:
    trust_our_tokens(monkeypatch)
    monkeypatch.setenv("MAX_BODY_BYTES", str(6 * 1024**2))
    return sign_up("user_ada")


@pytest.fixture
def server(app_db: Database, ada: Customer) -> str:
    """A service key that may end generations, and upload their bundles."""
    return mint(app_db, None, ["read", "files:write", "generations:finish"])


@pytest.fixture
def project(ada: Customer) -> str:
    made = send("POST", "/v1/projects", ada.token, body={"title": "Fitness"})
    project_id: str = made.body["id"]
    return project_id


def start(ada: Customer, project: str) -> Any:
    body = {"agent_type": "frontend", "prompt": "Make it blue", "operation": "ai_image_generation"}
    answer = send("POST", f"/v1/projects/{project}/generations", ada.token, body=body)
    assert answer.status == 201, answer.body
    return answer.body


def complete(
    server: str, ada: Customer, started: Any, *, key: str | None = None, lock_token: str = "", **fields: Any
) -> Answer:
    body = {"lock_token": lock_token or started["lock_token"], "response": "Done", "tokens_used": 3, **fields}
    path = f"/v1/generations/{started['id']}/complete"
    return send("POST", path, server, body=body, key=key, organization=ada.organization_id)


def save(ada: Customer, project: str, path: str, content: str, **fields: Any) -> int:
    body = {"files": [{"path": path, "content": content}], **fields}
    answer = send("POST", f"/v1/projects/{project}/files", ada.token, body=body)
    assert answer.status == 201, answer.body
    version: int = answer.body["version"]
    return version


def contents(ada: Customer, project: str) -> dict[str, str]:
    found = send("GET", f"/v1/projects/{project}/files", ada.token).body["files"]
    path = f"/v1/projects/{project}/files/content"
    return {
        file["path"]: send("GET", path, ada.token, query={"path": file["path"]}).body["content"]
        for file in found
    }


def standing(ada: Customer, project: str) -> dict[str, Any]:
    """What a completion changes, all of it."""
    balance = send("GET", "/v1/credits", ada.token).body
    seen = send("GET", f"/v1/projects/{project}", ada.token).body
    (generation,) = send("GET", f"/v1/projects/{project}/generations", ada.token).body["items"]
    return {
        "credits": (balance["available"], balance["held"]),
        "messages": seen["message_count"],
        "works": seen["update_in_progress"],
        "status": generation["status"],
        "version": send("GET", f"/v1/projects/{project}/files", ada.token).body["version"],
    }


WORKING = {"credits": (95, 5), "messages": 0, "works": True, "status": "in_progress", "version": 0}
DONE = {"credits": (95, 0), "messages": 2, "works": False, "status": "completed", "version": 1}


def objects(database: Database) -> list[dict[str, Any]]:
    return rows(database, "SELECT * FROM storage.objects ORDER BY id")


def assert_exact(database: Database, organization_id: UUID) -> None:
    """Every version is there and what it says, what counts is what is stored, and the books balance."""
    stored = {row["s3_key"]: row["bytes"] for row in objects(database) if row["state"] == "stored"}
    counted = rows(database, "SELECT used FROM billing.usage_counters WHERE key = 'site.storage_bytes'")
    assert sum(row["used"] for row in counted) == sum(stored.values())
    listed = dict(each for part in buckets.listing("projects/") for each in part)
    assert stored.items() <= listed.items()
    for version in rows(database, "SELECT * FROM projects.file_versions"):
        body = buckets.read(version["s3_key"], version["s3_version"], version["sha256"])
        assert [file["path"] for file in version["files"]] == list(json.loads(body)["files"])
    assert_books_balance(database, organization_id)


# ---- all of it at once ----


def test_a_completion_settles_says_saves_and_lets_go_at_once(
    app_db: Database, ada: Customer, server: str, project: str
) -> None:
    started = start(ada, project)
    done = complete(server, ada, started, files=MADE, messages=SAID, key="k")
    assert (done.status, done.body["status"], done.body["files_version"]) == (200, "completed", 1)
    assert standing(ada, project) == DONE
    assert contents(ada, project) == {"App.tsx": "blue", "src/a.ts": "é"}
    (entry,) = send("GET", f"/v1/projects/{project}/versions", ada.token).body["items"]
    assert entry["created_by"] == str(ada.user_id)  # whose generation it is, not the server
    told = rows(app_db, "SELECT type FROM platform.outbox WHERE type ~ '^(files|generation)' ORDER BY id")
    assert [row["type"] for row in told] == ["files.saved", "generation.completed"]
    save(ada, project, "App.tsx", "green")
    again = complete(server, ada, started, files=MADE, messages=SAID, key="k")
    assert again.headers["idempotent-replayed"] == "true"
    keyless = complete(server, ada, started, files=MADE, messages=SAID)
    assert done.body == again.body == keyless.body
    assert contents(ada, project)["App.tsx"] == "green"
    assert len(objects(app_db)) == 2
    assert_exact(app_db, ada.organization_id)


def test_a_lock_token_that_opens_nothing_puts_nothing(
    app_db: Database, ada: Customer, server: str, project: str
) -> None:
    started = start(ada, project)
    wrong = complete(server, ada, started, files=MADE, lock_token="0" * 43)
    rows(app_db, "UPDATE projects.generations SET lock_expires_at = now()")
    for refused in (wrong, complete(server, ada, started, files=MADE)):
        assert (refused.status, refused.body["code"]) == (409, "invalid_state")
    assert objects(app_db) == []
    assert [each for part in buckets.listing("") for each in part] == []


def test_what_the_files_lack_leaves_the_generation_to_be_ended_otherwise(
    app_db: Database, ada: Customer, server: str, project: str
) -> None:
    """Nothing is settled, and the lock still opens."""
    base = {"version": save(ada, project, "App.tsx", "red")}
    started = start(ada, project)
    rows(app_db, "UPDATE billing.plan_limits SET value = 60 WHERE key = 'site.storage_bytes'")
    for sent, status, code in (
        ({"files": MADE}, 403, "plan_limit_reached"),
        ({"files": MADE, "base_version": 0}, 409, "version_conflict"),
        ({"files": MADE, "files_operation": "create"}, 409, "conflict"),
        ({"files": [{"path": "../a", "content": ""}]}, 422, "invalid_request"),
        ({"files": [{"path": "a"}]}, 422, "invalid_request"),
        ({"files": MADE, "bundle_id": str(UUID(int=0))}, 422, "invalid_request"),
        ({"bundle_id": str(UUID(int=0))}, 404, "not_found"),
    ):
        refused = complete(server, ada, started, messages=SAID, **sent)
        assert (refused.status, refused.body["code"]) == (status, code), sent
        assert standing(ada, project) == WORKING | base
    without = complete(server, ada, started, messages=SAID, files=[])
    assert (without.status, without.body["files_version"]) == (200, None)
    assert standing(ada, project) == DONE | base
    assert_exact(app_db, ada.organization_id)


def test_files_that_change_nothing_make_no_version_and_an_empty_replacement_takes_all_away(
    app_db: Database, ada: Customer, server: str, project: str
) -> None:
    save(ada, project, "App.tsx", "blue")
    same = complete(server, ada, start(ada, project), files=MADE[:1])
    assert same.body["files_version"] == 1
    emptied = complete(server, ada, start(ada, project), files=[], files_operation="replace")
    assert emptied.body["files_version"] == 2
    assert contents(ada, project) == {}
    assert_exact(app_db, ada.organization_id)


def test_more_than_a_request_holds_comes_as_a_bundle(
    app_db: Database, ada: Customer, server: str, project: str
) -> None:
    started = start(ada, project)
    large = {f"src/{number}.ts": "x" * 100_000 for number in range(80)}
    data = json.dumps({"files": large | {"nul": "\x00"}}).encode()
    path = f"/v1/projects/{project}/files/bundles"
    grant = send("POST", path, server, body={"bytes": len(data)}, organization=ada.organization_id).body
    early = complete(server, ada, started, bundle_id=grant["object_id"])
    assert (early.status, early.body["code"]) == (409, "invalid_state")
    post(grant, data)
    done = complete(server, ada, started, bundle_id=grant["object_id"], messages=SAID)
    assert (done.status, done.body["files_version"]) == (200, 1)
    assert standing(ada, project) == DONE
    again = complete(server, ada, started, bundle_id=grant["object_id"], messages=SAID)
    assert again.body == done.body
    assert_exact(app_db, ada.organization_id)  # the bundle counts no longer


# ---- meanwhile, and cut off ----


def ended(ada: Customer, started: Any, **fields: Any) -> Any:
    """A completion that a test may come between: it is not the function's one request at a time."""
    caller = auth.Caller(
        "service_key", ada.organization_id, None, UUID(int=1), None, frozenset({"generations:finish"}), False
    )
    sent = {"lock_token": started["lock_token"], "response": "Done", "tokens_used": 3, "messages": SAID}
    body = generations.Completion.model_validate_json(json.dumps(sent | {"files": MADE} | fields))

    def commit(work: Any) -> Any:
        return db.run(work, organization_id=ada.organization_id)

    return generations.complete(UUID(started["id"]), body, caller, commit)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], Any]]:
    """What comes between a completion's object and its commit, the last first."""
    put = buckets.put_once
    others: list[Callable[[], Any]] = []

    def put_late(key: str, body: bytes, sha256: str) -> str:
        version = put(key, body, sha256)
        if others:
            with monkeypatch.context() as alone:
                alone.setattr(buckets, "put_once", put)
                others.pop()()
        return version

    monkeypatch.setattr(buckets, "put_once", put_late)
    return others


def test_whoever_saves_while_a_generation_ends_loses_nothing_and_whoever_ends_it_first_wins(
    app_db: Database, ada: Customer, server: str, project: str, meanwhile: list[Callable[[], Any]]
) -> None:
    started = start(ada, project)
    meanwhile += [partial(save, ada, project, "mine", number) for number in "12"]
    assert ended(ada, started).files_version == 3
    assert contents(ada, project) == {"App.tsx": "blue", "src/a.ts": "é", "mine": "1"}

    twice = start(ada, project)
    changed = [{"path": "App.tsx", "content": "green"}]
    meanwhile.append(lambda: complete(server, ada, twice, files=changed))
    late = [{"path": "App.tsx", "content": "late"}]
    assert ended(ada, twice, files=late).files_version == 4  # the other one's, told again
    assert contents(ada, project)["App.tsx"] == "green"

    given_up = start(ada, project)
    path = f"/v1/generations/{given_up['id']}/fail"
    fail = {"lock_token": given_up["lock_token"], "error_message": "x"}
    meanwhile.append(lambda: send("POST", path, server, body=fail, organization=ada.organization_id))
    with pytest.raises(Conflict):
        ended(ada, given_up, files=late)
    assert contents(ada, project)["App.tsx"] == "green"
    (stray,) = [row for row in objects(app_db) if row["state"] == "granted"]  # the second of `twice`
    rows(app_db, "UPDATE storage.objects SET expires_at = clock_timestamp() WHERE id = %s", stray["id"])
    save(ada, project, "more", "x")
    assert_exact(app_db, ada.organization_id)


def test_a_completion_that_is_killed_anywhere_is_whole_or_not_there(
    app_db: Database, ada: Customer, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise Killed

    started = start(ada, project)
    # A process that is gone gives nothing back.
    monkeypatch.setattr(files, "give_back", lambda granted: None)
    with monkeypatch.context() as patched:
        patched.setattr(buckets, "put_once", die)
        with pytest.raises(Killed):
            ended(ada, started)
    for number in itertools.count(1, 2):  # every second
        try:
            with kills.at_statement(number, die):
                assert ended(ada, started).files_version == 1
            break
        except Killed:
            end_the_session(app_db)
            db.reset()
        assert standing(ada, project) == WORKING
    assert number > 20
    assert standing(ada, project) == DONE
    assert ended(ada, started).files_version == 1  # whoever did not hear the answer asks again
    assert contents(ada, project) == {"App.tsx": "blue", "src/a.ts": "é"}

    strays = [row["s3_key"] for row in objects(app_db) if row["state"] == "granted"]
    assert len(strays) > 5
    rows(app_db, "UPDATE storage.objects SET expires_at = clock_timestamp()")
    save(ada, project, "more", "x")  # who needs room gives back what is over
    assert {row["state"] for row in objects(app_db) if row["s3_key"] in strays} == {"expired"}
    assert_exact(app_db, ada.organization_id)
