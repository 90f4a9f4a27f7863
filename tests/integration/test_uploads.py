"""Uploads: granted, posted to S3, landed in any order; what is stored, deleted, purged and compared."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import file_landed
import pytest
import storage_upkeep
from tests.callers import Customer, moment, send, sign_up, trust_our_tokens
from tests.databases import Database
from tests.ledgers import rows
from tests.posts import post
from tests.processes import race
from tests.senders import Answer, invoke

from backplane import buckets, db, stored_objects, uploads
from backplane.archives import Bucket

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"


@pytest.fixture
def ada(
    app_db: Database, files_bucket: Bucket, webhook_secrets: None, monkeypatch: pytest.MonkeyPatch
) -> Customer:
    trust_our_tokens(monkeypatch)
    return sign_up("user_ada")


@pytest.fixture
def project(ada: Customer) -> str:
    made = send("POST", "/v1/projects", ada.token, body={"title": "Fitness"})
    project_id: str = made.body["id"]
    return project_id


def ask(credential: str, project: str, **fields: Any) -> Answer:
    body = {"name": "logo.png", "content_type": "image/png", "bytes": 100} | fields
    return send("POST", f"/v1/projects/{project}/uploads", credential, body=body)


def granted(credential: str, project: str, **fields: Any) -> Any:
    answer = ask(credential, project, **fields)
    assert answer.status == 201, answer.body
    return answer.body


def storage(credential: str) -> Any:
    answer = send("GET", "/v1/storage", credential)
    assert answer.status == 200, answer.body
    return answer.body


def event(bucket: Bucket, key: str, *, nth: int = -1, times: int = 1) -> dict[str, Any]:
    """What the queue has of the key's n-th version, having had it so many times."""
    answer = bucket.client.list_object_versions(Bucket=bucket.name, Prefix=key)
    found = sorted(answer["Versions"], key=lambda version: version["LastModified"])[nth]
    return record(key, found["VersionId"], found["Size"], times=times)


def record(key: str, version: str, size: int, *, times: int = 1) -> dict[str, Any]:
    told = {"key": key, "size": size, "etag": "0", "version-id": version, "sequencer": "0"}
    body = {"source": "aws.s3", "detail-type": "Object Created", "detail": {"object": told}}
    return {
        "messageId": str(uuid4()),
        "attributes": {"ApproximateReceiveCount": str(times)},
        "body": json.dumps(body),
    }


def land(database: Database, *records: dict[str, Any]) -> list[str]:
    """The ids of the messages that failed."""
    with database.as_role("backplane_system"):
        answer = invoke(file_landed.handler, {"Records": list(records)})
    return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]


def upkeep(database: Database, **event: Any) -> Any:
    with database.as_role("backplane_system"):
        return invoke(storage_upkeep.handler, event)


def objects(database: Database) -> list[dict[str, Any]]:
    return rows(database, "SELECT * FROM storage.objects ORDER BY id")


def events(database: Database) -> list[str]:
    found = rows(database, "SELECT type FROM platform.outbox WHERE type LIKE 'file.%%' ORDER BY id")
    return [row["type"] for row in found]


def versions(bucket: Bucket) -> int:
    return len(bucket.client.list_object_versions(Bucket=bucket.name).get("Versions", ()))


def key_of(grant: Any) -> str:
    key: str = grant["fields"]["key"]
    return key


# ---- the grant ----


def test_a_grant_allows_one_key_one_type_and_so_many_bytes_for_a_quarter_of_an_hour(
    ada: Customer, project: str, files_bucket: Bucket
) -> None:
    """Moto enforces no policy, so what S3 would is read from what was signed."""
    grant = granted(ada.token, project, bytes=1234)
    policy = json.loads(base64.b64decode(grant["fields"]["policy"]))
    key = f"uploads/{project}/{grant['object_id']}"
    assert grant["fields"]["key"] == key
    assert grant["fields"]["Content-Type"] == "image/png"
    conditions = policy["conditions"]
    for needed in (
        {"bucket": files_bucket.name},
        {"key": key},
        {"Content-Type": "image/png"},
        ["content-length-range", 1, 1234],
        {"x-amz-algorithm": "AWS4-HMAC-SHA256"},
    ):
        assert needed in conditions
    assert not [each for each in conditions if isinstance(each, list) and each[0] == "starts-with"]
    for until in (policy["expiration"].replace("Z", "+00:00"), grant["expires_at"]):
        assert abs(moment(until) - datetime.now(UTC) - timedelta(minutes=15)) < timedelta(minutes=2)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"bytes": 0}, 422),
        ({"bytes": 2**63}, 422),
        ({"bytes": "5"}, 422),
        ({"bytes": 101 * 1024**2}, 413),
        ({"content_type": "text/html"}, 422),
        ({"content_type": "image/png; charset=x"}, 422),
        ({"name": ""}, 422),
        ({"name": "a/b"}, 422),
        ({"name": "a\x00"}, 422),
        ({"name": "x" * 256}, 422),
    ],
    ids=str,
)
def test_what_may_not_be_uploaded_is_not_granted(
    app_db: Database, ada: Customer, project: str, fields: dict[str, Any], status: int
) -> None:
    assert ask(ada.token, project, **fields).status == status
    assert objects(app_db) == []
    assert storage(ada.token)["used_bytes"] == 0


GRANTEE = """
import sys, json
import files
from tests.senders import call, http_event
token, project = sys.argv[1:]
headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    body = json.dumps({"name": "a", "content_type": "image/png", "bytes": 1000})
    event = http_event("POST", f"/v1/projects/{project}/uploads", body=body, headers=headers)
    print(call(files.handler, event).status, flush=True)
"""


def test_processes_that_race_for_the_last_bytes_get_those_and_no_more(
    app_db: Database, ada: Customer, project: str
) -> None:
    rows(app_db, "UPDATE billing.plan_limits SET value = 7999 WHERE key = 'site.storage_bytes'")
    said = [status for own in race(GRANTEE, *([ada.token, project] for _ in range(4))) for status in own]
    assert (said.count("201"), said.count("403")) == (7, 13)
    assert storage(ada.token)["used_bytes"] == 7000


def test_more_than_two_gigabytes_are_counted(
    app_db: Database, ada: Customer, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backplane import config

    monkeypatch.setenv("MAX_UPLOAD_BYTES", str(5 * 1024**3))
    config.settings.cache_clear()
    rows(app_db, "UPDATE billing.plan_limits SET value = %s WHERE key = 'site.storage_bytes'", 7 * 1024**3)
    granted(ada.token, project, bytes=4 * 1024**3)
    assert ask(ada.token, project, bytes=4 * 1024**3).body["code"] == "plan_limit_reached"
    assert storage(ada.token)["used_bytes"] == 4 * 1024**3


# ---- landing ----


def test_an_upload_is_reserved_then_stored_as_it_is_and_told(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket
) -> None:
    grant = granted(ada.token, project)
    assert (storage(ada.token)["used_bytes"], storage(ada.token)["items"]) == (100, [])
    assert post(grant, PNG) in {200, 204}
    told = event(files_bucket, key_of(grant))
    assert land(app_db, told) == []
    found = storage(ada.token)
    assert (found["used_bytes"], found["limit_bytes"]) == (len(PNG), 100 * 1024**2)
    (item,) = found["items"]
    assert (item["id"], item["name"], item["bytes"]) == (grant["object_id"], "logo.png", len(PNG))
    assert (item["width"], item["height"]) == (None, None)  # its header says nothing of them
    assert land(app_db, told, told) == []  # it comes more than once
    assert storage(ada.token)["used_bytes"] == len(PNG)
    assert events(app_db) == ["file.stored"]


def test_an_image_has_the_size_that_its_header_says_however_late(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket
) -> None:
    thumbnail = b"\xff\xe1\xea\x62" + bytes(60_000)
    jpeg = b"\xff\xd8" + thumbnail * 2 + b"\xff\xc0\x00\x11\x08\x01\xe0\x02\x80" + bytes(100_000)
    grant = granted(ada.token, project, name="a.jpg", content_type="image/jpeg", bytes=len(jpeg))
    post(grant, jpeg)
    assert land(app_db, event(files_bucket, key_of(grant))) == []
    (item,) = storage(ada.token)["items"]
    assert (item["width"], item["height"]) == (640, 480)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ((b"#!/bin/sh", {}), "first bytes"),
        ((b"", {}), "first bytes"),
        ((PNG + b"x" * 100, {}), "granted"),
        ((PNG, {"Content-Type": "text/html"}), "says that it is text/html"),
    ],
    ids=["another kind", "nothing", "too large", "another type"],
)
def test_what_is_not_what_was_granted_is_rejected_and_taken_away(
    app_db: Database, ada: Customer, files_bucket: Bucket, sent: tuple[bytes, dict[str, str]], reason: str
) -> None:
    project = send("POST", "/v1/projects", ada.token, body={"title": "Fitness"}).body["id"]
    grant = granted(ada.token, project)
    data, fields = sent
    post(grant, data, **fields)
    told = event(files_bucket, key_of(grant))
    assert land(app_db, told, told) == []
    (row,) = objects(app_db)
    assert row["state"] == "rejected"
    assert reason in row["reason"]
    assert storage(ada.token)["used_bytes"] == versions(files_bucket) == 0
    assert events(app_db) == ["file.rejected"]


def test_what_is_put_over_a_stored_object_is_taken_away(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket
) -> None:
    grant = granted(ada.token, project)
    post(grant, PNG)
    first = event(files_bucket, key_of(grant))
    land(app_db, first)
    post(grant, PNG + b"again")
    second = next(
        record(key_of(grant), each["VersionId"], each["Size"])
        for each in files_bucket.client.list_object_versions(Bucket=files_bucket.name)["Versions"]
        if each["VersionId"] not in first["body"]
    )
    assert land(app_db, second, first, second) == []
    assert versions(files_bucket) == 1
    assert storage(ada.token)["items"][0]["bytes"] == len(PNG)
    body = files_bucket.client.get_object(Bucket=files_bucket.name, Key=key_of(grant))["Body"].read()
    assert body == PNG


def test_two_deliveries_of_one_landing_at_once_store_and_count_it_once(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = granted(ada.token, project)
    post(grant, PNG)
    look = buckets.look

    def look_and_wait(key: str, version: str, length: int) -> Any:
        landed = look(key, version, length)
        row = db.run(lambda tx: uploads.of_key(tx, key))
        assert landed is not None
        assert row is not None
        assert db.run(lambda tx: uploads.store(tx, row, landed))  # the other delivery is quicker
        return landed

    monkeypatch.setattr(buckets, "look", look_and_wait)
    assert land(app_db, event(files_bucket, key_of(grant))) == []
    assert versions(files_bucket) == 1
    assert storage(ada.token)["used_bytes"] == len(PNG)
    assert events(app_db) == ["file.stored"]


def test_an_upload_that_lands_after_its_grant_is_taken_away(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket
) -> None:
    grant = granted(ada.token, project)
    rows(app_db, "UPDATE storage.objects SET expires_at = clock_timestamp()")
    assert storage(ada.token)["used_bytes"] == 0
    post(grant, PNG)
    assert land(app_db, event(files_bucket, key_of(grant))) == []
    assert versions(files_bucket) == 0
    assert [row["state"] for row in objects(app_db)] == ["expired"]
    assert events(app_db) == []


def test_an_object_nobody_was_granted_comes_again_and_is_then_recorded(
    app_db: Database, ada: Customer, files_bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "uploads/unknown"
    files_bucket.client.put_object(Bucket=files_bucket.name, Key=key, Body=b"x")
    for times in (1, 2):
        early = event(files_bucket, key, times=times)
        assert land(app_db, early) == [early["messageId"]]
    assert rows(app_db, "SELECT * FROM storage.unknown_objects") == []
    for _ in range(2):
        assert land(app_db, event(files_bucket, key, times=3)) == []
    (row,) = rows(app_db, "SELECT s3_key, bytes FROM storage.unknown_objects")
    assert row == {"s3_key": key, "bytes": 1}
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if "UnknownObjects" in line]
    assert lines[-1]["UnknownObjects"][-1] == 1.0
    assert versions(files_bucket) == 1  # a person looks


def test_a_message_that_cannot_be_read_stops_no_other(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket
) -> None:
    grant = granted(ada.token, project)
    post(grant, PNG)
    broken = record("x", "v", 1) | {"body": "{"}
    assert land(app_db, broken, event(files_bucket, key_of(grant))) == [broken["messageId"]]
    assert events(app_db) == ["file.stored"]


def test_an_object_that_is_gone_when_it_is_told_of_is_let_be(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket
) -> None:
    grant = granted(ada.token, project)
    post(grant, PNG)
    told = event(files_bucket, key_of(grant))
    buckets.delete_version(key_of(grant), json.loads(told["body"])["detail"]["object"]["version-id"])
    assert land(app_db, told) == []
    assert [row["state"] for row in objects(app_db)] == ["granted"]


# ---- the end ----


def test_a_deleted_object_counts_no_longer_and_is_purged_later(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket
) -> None:
    grant = granted(ada.token, project)
    post(grant, PNG)
    land(app_db, event(files_bucket, key_of(grant)))
    path = f"/v1/storage/{grant['object_id']}"
    assert send("DELETE", path, sign_up("user_bob").token).status == 404
    assert send("DELETE", path, ada.token).status == 204
    assert send("DELETE", path, ada.token).status == 404
    assert storage(ada.token) == storage(ada.token) | {"used_bytes": 0, "items": []}
    assert upkeep(app_db)["purged"] == 0  # its grant is not over: it might be uploaded again
    rows(app_db, "UPDATE storage.objects SET expires_at = clock_timestamp()")
    assert upkeep(app_db)["purged"] == 1
    assert "Contents" not in files_bucket.client.list_objects_v2(Bucket=files_bucket.name)
    assert upkeep(app_db)["purged"] == 0


def test_what_lands_while_it_is_deleted_is_deleted(
    app_db: Database, ada: Customer, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant, release = granted(ada.token, project), stored_objects.release

    def landed_meanwhile(*args: Any, of: stored_objects.State, **changes: Any) -> bool:
        if of == "granted":
            rows(app_db, "UPDATE storage.objects SET state = 'stored', s3_version = '1', stored_at = now()")
        return release(*args, of=of, **changes)

    monkeypatch.setattr(stored_objects, "release", landed_meanwhile)
    assert send("DELETE", f"/v1/storage/{grant['object_id']}", ada.token).status == 204
    assert storage(ada.token) == storage(ada.token) | {"used_bytes": 0, "items": []}


def test_a_version_of_files_can_be_deleted_unless_it_is_in_force(
    app_db: Database, ada: Customer, project: str
) -> None:
    for text in "12":
        body = {"files": [{"path": "a", "content": text}]}
        send("POST", f"/v1/projects/{project}/files", ada.token, body=body)
    newest, oldest = storage(ada.token)["items"]
    for path, field in (("/v1/storage", "id"), (f"/v1/projects/{project}/versions", "version")):
        first = send("GET", path, ada.token, query={"limit": "1"}).body
        rest = send("GET", path, ada.token, query={"cursor": first["next_cursor"]}).body
        assert rest["next_cursor"] is None
        assert len({item[field] for item in first["items"] + rest["items"]}) == 2
        assert len(rest["items"]) == 1
    refused = send("DELETE", f"/v1/storage/{newest['id']}", ada.token)
    assert (refused.status, refused.body["code"]) == (409, "invalid_state")
    assert send("DELETE", f"/v1/storage/{oldest['id']}", ada.token).status == 204
    listed = send("GET", f"/v1/projects/{project}/versions", ada.token).body["items"]
    assert [entry["version"] for entry in listed] == [2]
    assert send("POST", f"/v1/projects/{project}/versions/1/restore", ada.token, body={}).status == 404
    assert storage(ada.token)["used_bytes"] == newest["bytes"]


def test_what_was_granted_and_never_came_is_given_back_each_hour(
    app_db: Database, ada: Customer, project: str
) -> None:
    granted(ada.token, project)
    assert upkeep(app_db)["expired"] == 0
    rows(app_db, "UPDATE storage.objects SET expires_at = clock_timestamp()")
    assert upkeep(app_db)["expired"] == 1
    used = rows(app_db, "SELECT used FROM billing.usage_counters WHERE key = 'site.storage_bytes'")
    assert [row["used"] for row in used] == [0]


def test_the_comparison_finds_nothing_where_all_is_well_and_each_kind_of_drift(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = []
    for _ in range(4):
        grant = granted(ada.token, project)
        post(grant, PNG)
        land(app_db, event(files_bucket, key_of(grant)))
        keys.append(key_of(grant))
    body = {"files": [{"path": "a", "content": "x"}]}
    send("POST", f"/v1/projects/{project}/files", ada.token, body=body)
    rows(app_db, "UPDATE storage.objects SET stored_at = clock_timestamp() - interval '2 hours'")
    assert upkeep(app_db, compare=True) == {
        "ok": True, "expired": 0, "projects": 0, "purged": 0,
        "drift": {"missing": 0, "unknown": 0, "different": 0, "miscounted": 0, "told": []},
    }  # fmt: skip

    client, name = files_bucket.client, files_bucket.name
    client.delete_object(Bucket=name, Key=keys[0])
    client.put_object(Bucket=name, Key=keys[1], Body=b"other")
    client.put_object(Bucket=name, Key="projects/stray", Body=b"x")
    rows(
        app_db,
        """
        UPDATE storage.objects
        SET state = 'deleted', deleted_at = clock_timestamp(), purged_at = clock_timestamp()
        WHERE s3_key = %s
        """,
        keys[3],
    )
    rows(app_db, "UPDATE billing.usage_counters SET used = used + 1 WHERE key = 'site.storage_bytes'")
    capsys.readouterr()
    answer = upkeep(app_db, compare=True)
    assert not answer["ok"]
    told = answer["drift"].pop("told")
    assert answer["drift"] == {"missing": 1, "unknown": 2, "different": 1, "miscounted": 1}
    assert sorted(line.partition(":")[0] for line in told) == [
        "different", "miscounted", "missing", "unknown", "unknown",
    ]  # fmt: skip
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"StorageDrift"' in line]
    assert lines[-1]["StorageDrift"] == [5.0]


@pytest.mark.usefixtures("files_bucket")
def test_a_download_bears_its_uploads_name_whatever_its_letters() -> None:
    url = buckets.download_url("uploads/a", "1", 'Über "uns".jpg')
    (named,) = parse_qs(urlsplit(url).query)["response-content-disposition"]
    assert named == "attachment; filename=\"_ber _uns_.jpg\"; filename*=UTF-8''%C3%9Cber%20%22uns%22.jpg"


# ---- bundles ----


def bundle(credential: str, project: str, data: bytes, size: int | None = None) -> str:
    body = {"bytes": size or len(data)}
    grant = send("POST", f"/v1/projects/{project}/files/bundles", credential, body=body)
    assert grant.status == 201, grant.body
    post(grant.body, data)
    bundle_id: str = grant.body["object_id"]
    return bundle_id


def save_bundle(credential: str, project: str, bundle_id: str, **fields: Any) -> Answer:
    body = {"bundle_id": bundle_id, **fields}
    return send("POST", f"/v1/projects/{project}/files", credential, body=body)


def test_more_than_a_request_holds_is_saved_from_a_bundle(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket
) -> None:
    files = {f"src/{number}.ts": "x" * 100_000 for number in range(80)}
    data = json.dumps({"files": files}, separators=(",", ":")).encode()
    assert len(data) > 6 * 1024**2
    bundle_id = bundle(ada.token, project, data)
    answer = save_bundle(ada.token, project, bundle_id, operation="replace")
    assert (answer.status, answer.body["counts"]["created"]) == (201, 80)
    assert save_bundle(ada.token, project, bundle_id).status == 404
    assert land(app_db, event(files_bucket, f"uploads/{project}/{bundle_id}")) == []  # told of too late
    found = storage(ada.token)
    assert [(item["kind"], item["bytes"]) for item in found["items"]] == [("files", found["used_bytes"])]
    assert events(app_db) == []
    assert rows(app_db, "SELECT count(*) AS n FROM storage.objects WHERE state = 'deleted'")[0]["n"] == 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{", "The bundle is not JSON"),
        (b"\xff", "The bundle is not UTF-8"),
        (b"[]", "The bundle must be"),
        (b'{"files": {"a": 1}}', "The bundle must be"),
        (b'{"files": {"../a": ""}}', "1 of the paths"),
    ],
    ids=str,
)
def test_a_bundle_that_is_none_saves_nothing_and_stays(
    ada: Customer, project: str, data: bytes, says: str
) -> None:
    bundle_id = bundle(ada.token, project, data)
    for _ in range(2):
        refused = save_bundle(ada.token, project, bundle_id)
        assert (refused.status, refused.body["detail"][: len(says)]) == (422, says)
    assert storage(ada.token)["used_bytes"] == len(data)


def test_a_bundle_that_is_never_saved_is_given_back(
    app_db: Database, ada: Customer, project: str, files_bucket: Bucket
) -> None:
    bundle_id = bundle(ada.token, project, b'{"files": {"a": ""}}')
    assert land(app_db, event(files_bucket, f"uploads/{project}/{bundle_id}")) == []
    assert storage(ada.token)["used_bytes"] == 20
    rows(app_db, "UPDATE storage.objects SET expires_at = clock_timestamp()")
    answer = upkeep(app_db)
    assert (answer["expired"], answer["purged"]) == (1, 1)
    assert save_bundle(ada.token, project, bundle_id).status == 404
    assert storage(ada.token)["used_bytes"] == 0


def test_a_bundle_is_its_projects_and_must_have_been_uploaded_as_granted(ada: Customer, project: str) -> None:
    bob, data = sign_up("user_bob"), b'{"files": {"a": "one byte more"}}'
    path = f"/v1/projects/{project}/files/bundles"
    grant = send("POST", path, ada.token, body={"bytes": len(data) - 1}).body
    refused = save_bundle(ada.token, project, grant["object_id"])
    assert (refused.status, refused.body["code"]) == (409, "invalid_state")
    post(grant, data)
    assert save_bundle(ada.token, project, grant["object_id"]).status == 422
    for customer in (ada, bob):
        other = send("POST", "/v1/projects", customer.token, body={"title": "Other"}).body["id"]
        assert save_bundle(customer.token, other, grant["object_id"]).status == 404
    body = {"bundle_id": grant["object_id"], "files": []}
    assert send("POST", f"/v1/projects/{project}/files", ada.token, body=body).status == 422
