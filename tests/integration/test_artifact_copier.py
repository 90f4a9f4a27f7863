"""Copies of builds' artefacts: whole, once and counted; or a failure that is told and leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import urllib.request
from collections.abc import Iterator
from hashlib import sha256
from typing import Any
from uuid import UUID

import artifact_copier
import copying
import pytest
from tests.artefacts import CONTENT, HERE, TYPE, Artefacts
from tests.backups import uploads
from tests.callers import send, sign_up, trust_our_tokens
from tests.databases import ROLES, Database, create_database, drop_database, on
from tests.deploys import NOON, Deployed, announced, deploy, steps, stored, tell, told
from tests.ledgers import rows
from tests.processes import race
from tests.s3_proxy import Fault, S3Proxy
from tests.senders import invoke

from backplane import artifacts, config
from backplane.archives import Bucket
from backplane.artifacts import State
from backplane.deployment_reports import Urls
from backplane.downloads import PUBLIC, Reach

BUILD = "147a3212-49fd-446f-b4e3-a6519acf264a"
LIMIT = 100 * 1024**2  # of the free plan


@pytest.fixture(scope="module")
def database(server_url: str, role_passwords: dict[str, str], template: str) -> Iterator[Database]:
    """One for all: each test has an organisation of its own."""
    name = f"artifact_copier_{os.getpid()}"
    create_database(server_url, name, template)
    urls = [on(server_url, name, user=role, password=role_passwords[role]) for role in ROLES]
    yield Database(name, on(server_url, name), *urls)
    drop_database(server_url, name)


@pytest.fixture
def artefacts() -> Iterator[Artefacts]:
    with Artefacts() as server:
        yield server


@pytest.fixture
def deployed(system_db: Database, files_bucket: Bucket) -> Deployed:
    return deploy(system_db, BUILD)


def offer(database: Database, deployed: Deployed, url: str) -> UUID:
    """The build ends well, and leaves this."""
    report = told(
        "successful",
        urls=Urls(android=url, archive=url),
        app_version="1.0.2",
        build_number="123",
        artifact_expires_at=NOON,
    )
    assert tell(database, deployed, report) == "applied"
    found: UUID = artifact(database, deployed)["id"]
    return found


def artifact(database: Database, deployed: Deployed) -> dict[str, Any]:
    found = rows(database, "SELECT * FROM deploys.artifacts WHERE deployment_id = %s", deployed.id)
    assert len(found) == 1
    return found[0]


def copy(artifact_id: UUID, *, reach: Reach = HERE, seconds: float = 60.0) -> State | None:
    return copying.copy(artifact_id, ends=time.monotonic() + seconds, reach=reach)


def come_due(database: Database, artifact_id: UUID) -> None:
    rows(database, "UPDATE deploys.artifacts SET next_attempt_at = now() WHERE id = %s", artifact_id)


def objects(database: Database, deployed: Deployed) -> list[dict[str, Any]]:
    return rows(
        database,
        "SELECT * FROM storage.objects WHERE organization_id = %s ORDER BY id",
        deployed.organization_id,
    )


def counted(database: Database, deployed: Deployed) -> int:
    found = rows(
        database,
        "SELECT used FROM billing.usage_counters WHERE organization_id = %s AND key = 'site.storage_bytes'",
        deployed.organization_id,
    )
    return found[0]["used"] if found else 0


def fill(database: Database, deployed: Deployed, used: int) -> None:
    rows(
        database,
        """
        INSERT INTO billing.usage_counters (organization_id, key, period_start, used)
        VALUES (%s, 'site.storage_bytes', '-infinity', %s)
        ON CONFLICT (organization_id, key, period_start) DO UPDATE SET used = EXCLUDED.used
        """,
        deployed.organization_id,
        used,
    )


def failures(database: Database, deployed: Deployed) -> list[dict[str, Any]]:
    return of(deployed, announced(database, "artifact.failed"))


def of(deployed: Deployed, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in events if each["deployment_id"] == str(deployed.id)]


def assert_copied(database: Database, deployed: Deployed, bucket: Bucket, content: bytes = CONTENT) -> None:
    """The artefact is in the bucket, once, and counts as much as it is."""
    now = artifact(database, deployed)
    assert (now["state"], now["error"], now["next_attempt_at"]) == ("stored", None, None)
    assert (now["bytes"], now["sha256"]) == (len(content), sha256(content).hexdigest())
    (kept,) = [each for each in objects(database, deployed) if each["state"] == "stored"]
    assert kept["id"] == now["object_id"]
    assert kept["bytes"] == counted(database, deployed) == len(content)
    there = bucket.client.get_object(Bucket=bucket.name, Key=kept["s3_key"], VersionId=kept["s3_version"])
    assert there["Body"].read() == content
    assert uploads(bucket) == []


def assert_nothing_left(database: Database, deployed: Deployed, bucket: Bucket) -> None:
    """Neither in the bucket, nor counted; and the deployment is what it was."""
    assert bucket.client.list_objects_v2(Bucket=bucket.name)["KeyCount"] == 0
    assert uploads(bucket) == []
    assert counted(database, deployed) == 0
    assert stored(database, deployed)["status"] == "successful"


# ---- copied ----


def test_what_a_build_left_is_offered_copied_counted_and_told(
    system_db: Database,
    deployed: Deployed,
    artefacts: Artefacts,
    files_bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(artifact_copier, "REACH", HERE)
    offer(system_db, deployed, artefacts.url("/whole"))
    (data,) = of(deployed, announced(system_db, "artifact.offered"))
    message = {"messageId": "1", "body": json.dumps({"detail": {"data": data}})}
    for _ in range(2):  # queues deliver twice
        assert invoke(artifact_copier.handler, {"Records": [message]}) == {"batchItemFailures": []}
    assert artefacts.asked == ["/whole"]
    assert_copied(system_db, deployed, files_bucket)
    (kept,) = objects(system_db, deployed)
    assert (kept["kind"], kept["content_type"]) == ("artifact", TYPE)
    assert kept["name"] == "android-1.0.2-123"
    assert kept["s3_key"].startswith(f"artifacts/{deployed.project_id}/")
    assert steps(system_db, deployed)[-1] == ("artifact_stored", "successful")
    assert stored(system_db, deployed)["status"] == "successful"


def test_the_copy_is_downloaded_from_its_deployment_until_that_is_deleted(
    system_db: Database,
    artefacts: Artefacts,
    files_bucket: Bucket,
    webhook_secrets: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trust_our_tokens(monkeypatch)
    with system_db.as_role("backplane_app"):
        ada = sign_up()
    deployed = deploy(system_db, BUILD, organization_id=ada.organization_id)
    artifact_id = offer(system_db, deployed, artefacts.url("/whole"))
    path = f"/v1/deployments/{deployed.id}"
    with system_db.as_role("backplane_app"):
        (waiting,) = send("GET", path, ada.token).body["artifacts"]
    assert (waiting["state"], waiting["download_url"]) == ("pending", None)
    with system_db.as_role("backplane_system"):
        assert copy(artifact_id) == "stored"
    with system_db.as_role("backplane_app"):
        (kept,) = send("GET", path, ada.token).body["artifacts"]
        with urllib.request.urlopen(kept["download_url"], timeout=60) as response:  # noqa: S310  moto's
            assert response.read() == CONTENT
        assert (kept["bytes"], kept["sha256"]) == (len(CONTENT), sha256(CONTENT).hexdigest())
        used = send("GET", "/v1/storage", ada.token).body
        assert (used["used_bytes"], [each["kind"] for each in used["items"]]) == (len(CONTENT), ["artifact"])
        assert send("DELETE", path, ada.token).status == 204
        assert send("GET", "/v1/storage", ada.token).body["used_bytes"] == 0
    assert [each["state"] for each in objects(system_db, deployed)] == ["deleted"]


def test_only_what_a_provider_told_of_a_build_that_ended_well_is_offered(system_db: Database) -> None:
    urls = Urls(android="https://expo.dev/a.aab")
    for report in (
        told("failed", urls=urls),
        told("successful", urls=urls, source="user"),
        told("successful", urls=urls, provider="vercel"),
        told("successful", urls=Urls(web="https://example.com")),
        told("successful", build="a-submission", job="submission", urls=urls),
    ):
        deployed = deploy(system_db, BUILD)
        tell(system_db, deployed, report)
        assert rows(system_db, "SELECT 1 FROM deploys.artifacts WHERE deployment_id = %s", deployed.id) == []


def test_of_both_platforms_each_leaves_its_own(system_db: Database) -> None:
    deployed = deploy(system_db, "android", "ios", platform="all")
    for platform in ("android", "ios"):
        url = f"https://expo.dev/{platform}"
        report = told("successful", build=platform, urls=Urls(**{platform: url, "archive": url}))
        assert tell(system_db, deployed, report) == "applied"
    found = rows(
        system_db,
        "SELECT kind, source_url FROM deploys.artifacts WHERE deployment_id = %s ORDER BY kind",
        deployed.id,
    )
    assert [(row["kind"], row["source_url"]) for row in found] == [
        ("android", "https://expo.dev/android"),
        ("ios", "https://expo.dev/ios"),
    ]


def test_what_comes_without_a_length_is_counted_in_the_end(
    system_db: Database, deployed: Deployed, artefacts: Artefacts, files_bucket: Bucket
) -> None:
    assert copy(offer(system_db, deployed, artefacts.url("/chunked"))) == "stored"
    assert_copied(system_db, deployed, files_bucket)


def test_a_large_one_streams_through_a_little_memory(
    system_db: Database, deployed: Deployed, files_bucket: Bucket
) -> None:
    with Artefacts() as artefacts:  # S3's client is made by the first
        assert copy(offer(system_db, deploy(system_db, BUILD), artefacts.url("/whole"))) == "stored"
    content = os.urandom(1024**2) * 64
    with Artefacts(content) as artefacts:
        artifact_id = offer(system_db, deployed, artefacts.url("/whole"))
        tracemalloc.start()
        try:
            assert copy(artifact_id, seconds=300) == "stored"
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < len(content) / 2
    assert artifact(system_db, deployed)["sha256"] == sha256(content).hexdigest()


# ---- not copied ----


@pytest.mark.parametrize(
    ("path", "reach", "state", "reason"),
    [
        ("/cut", HERE, "pending", "it ended after"),
        ("/cut-chunks", HERE, "pending", "it broke off"),
        (f"/claims?{len(CONTENT) + 5}", HERE, "pending", "it ended after"),
        (f"/claims?{10**12}", HERE, "failed", "at most"),
        ("/endless", HERE, "failed", "more than"),
        ("/missing", HERE, "failed", "answered 404"),
        ("/to?https://127.0.0.1/", Reach(), "failed", "HTTPS"),
        ("/to?https://169.254.169.254/latest", "first only", "failed", "not on the public internet"),
        ("/to?https://127.0.0.1/", "first only", "failed", "not on the public internet"),
        ("/whole", PUBLIC, "failed", "not one of HTTPS"),
    ],
)
def test_what_cannot_be_had_is_a_failure_that_leaves_nothing(
    system_db: Database,
    deployed: Deployed,
    artefacts: Artefacts,
    files_bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    *,
    path: str,
    reach: Any,
    state: str,
    reason: str,
) -> None:
    monkeypatch.setenv("MAX_ARTIFACT_BYTES", str(8 * 1024**2))
    config.settings.cache_clear()
    if reach == "first only":
        reach = FirstOnly(loopback=True)
    artifact_id = offer(system_db, deployed, artefacts.url(path))
    assert copy(artifact_id, reach=reach) == state
    now = artifact(system_db, deployed)
    assert now["state"] == state
    assert reason in now["error"]
    assert "http://" not in now["error"]
    assert_nothing_left(system_db, deployed, files_bucket)
    assert copy(artifact_id, reach=reach) is None  # it rests, or is given up
    announcements = failures(system_db, deployed)
    if state == "failed":
        assert [each["next_attempt_at"] for each in announcements] == [None]
        assert steps(system_db, deployed)[-1] == ("artifact_failed", "successful")
    else:
        assert announcements == []


class FirstOnly(Reach):
    """The first hop may be reached, no other."""

    asked = 0

    def allows(self, address: str) -> bool:
        FirstOnly.asked += 1
        return FirstOnly.asked % 2 == 1


def test_what_fails_in_passing_is_tried_again_later_each_time_until_it_comes(
    system_db: Database, deployed: Deployed, artefacts: Artefacts, files_bucket: Bucket
) -> None:
    artefacts.fails = 2
    artifact_id = offer(system_db, deployed, artefacts.url("/flaky"))
    for _ in range(2):
        assert copy(artifact_id) == "pending"
        assert copy(artifact_id) is None
        come_due(system_db, artifact_id)
    assert copy(artifact_id) == "stored"
    assert_copied(system_db, deployed, files_bucket)
    assert artifact(system_db, deployed)["attempts"] == 3


def test_what_never_comes_is_given_up_and_told(
    system_db: Database, deployed: Deployed, artefacts: Artefacts
) -> None:
    artefacts.fails = 100
    artifact_id = offer(system_db, deployed, artefacts.url("/flaky"))
    states = []
    for _ in range(artifacts.MAX_ATTEMPTS):
        come_due(system_db, artifact_id)
        states.append(copy(artifact_id))
    assert states == ["pending"] * (artifacts.MAX_ATTEMPTS - 1) + ["failed"]
    (told_of,) = failures(system_db, deployed)
    assert told_of["reason"] == "It could not be copied: its server answered 503."
    assert invoke(artifact_copier.handler, {}, seconds=900)["ok"]


def test_over_the_plans_storage_it_is_told_at_once_and_comes_when_there_is_room(
    system_db: Database, deployed: Deployed, artefacts: Artefacts, files_bucket: Bucket
) -> None:
    for path in ("/whole", "/chunked"):
        theirs = deploy(system_db, BUILD)
        fill(system_db, theirs, LIMIT - len(CONTENT) + 1)
        artifact_id = offer(system_db, theirs, artefacts.url(path))
        assert copy(artifact_id) == "pending"
        assert "There is no room for it." in artifact(system_db, theirs)["error"]
        (told_of,) = failures(system_db, theirs)
        assert told_of["next_attempt_at"] is not None
        assert counted(system_db, theirs) == LIMIT - len(CONTENT) + 1
        fill(system_db, theirs, 0)
        come_due(system_db, artifact_id)
        assert copy(artifact_id) == "stored"
        assert artifact(system_db, theirs)["state"] == "stored"
        assert counted(system_db, theirs) == len(CONTENT)
        assert len(failures(system_db, theirs)) == 1
    assert uploads(files_bucket) == []


@pytest.mark.parametrize("operation", ["uploads", "uploadId"])
def test_a_bucket_that_takes_nothing_is_tried_again(
    system_db: Database,
    deployed: Deployed,
    artefacts: Artefacts,
    files_bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    *,
    operation: str,
) -> None:
    """At the beginning, and at every part: begun is aborted, counted is given back."""

    def decide(method: str, path: str) -> Fault:
        return "refuse" if method != "DELETE" and operation in path else "pass"

    artifact_id = offer(system_db, deployed, artefacts.url("/whole"))
    with S3Proxy(os.environ["AWS_ENDPOINT_URL"], decide) as proxy, monkeypatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", proxy.url)
        assert copy(artifact_id) == "pending"
    assert artifact(system_db, deployed)["error"] == "It could not be stored."
    assert_nothing_left(system_db, deployed, files_bucket)
    come_due(system_db, artifact_id)
    assert copy(artifact_id) == "stored"
    assert_copied(system_db, deployed, files_bucket)


# ---- at once, and cut off ----

COPY = """
import sys, time
from uuid import UUID
import copying
from backplane import db
from tests.artefacts import HERE
db.connection()
print("ready", flush=True)
sys.stdin.readline()
print(copying.copy(UUID(sys.argv[1]), ends=time.monotonic() + 60, reach=HERE), flush=True)
"""


def test_of_several_at_once_one_copies(
    system_db: Database,
    deployed: Deployed,
    artefacts: Artefacts,
    files_bucket: Bucket,
) -> None:
    artifact_id = offer(system_db, deployed, artefacts.url("/whole"))
    said = race(COPY, *([str(artifact_id)] for _ in range(3)))
    assert sorted(word for each in said for word in each) == ["None", "None", "stored"]
    assert artefacts.asked == ["/whole"]
    assert_copied(system_db, deployed, files_bucket)


def test_a_copier_killed_half_way_is_followed_by_another(
    system_db: Database, deployed: Deployed, artefacts: Artefacts, files_bucket: Bucket
) -> None:
    artifact_id = offer(system_db, deployed, artefacts.url("/half"))
    killed = subprocess.Popen(
        [sys.executable, "-c", COPY, str(artifact_id)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    with killed:
        assert killed.stdin is not None
        killed.stdin.write(b"go\n")
        killed.stdin.flush()
        for _ in range(6000):
            if uploads(files_bucket):
                break
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
    assert len(uploads(files_bucket)) == 1  # which the bucket's lifecycle takes away
    assert artifact(system_db, deployed)["state"] == "copying"
    assert counted(system_db, deployed) == len(CONTENT)
    artefacts.released.set()
    assert copy(artifact_id) is None  # it may be at work yet
    rows(
        system_db,
        "UPDATE storage.objects SET expires_at = now() WHERE organization_id = %s",
        deployed.organization_id,
    )
    come_due(system_db, artifact_id)  # its lease is over
    assert copy(artifact_id) == "stored"
    files_bucket.client.abort_multipart_upload(Bucket=files_bucket.name, **_first_upload(files_bucket))
    assert_copied(system_db, deployed, files_bucket)
    assert [each["state"] for each in objects(system_db, deployed)] == ["expired", "stored"]


def _first_upload(bucket: Bucket) -> dict[str, str]:
    (found,) = bucket.client.list_multipart_uploads(Bucket=bucket.name)["Uploads"]
    return {"Key": found["Key"], "UploadId": found["UploadId"]}


def test_one_that_is_cut_off_each_time_is_given_up(
    system_db: Database, deployed: Deployed, artefacts: Artefacts
) -> None:
    artifact_id = offer(system_db, deployed, artefacts.url("/whole"))
    rows(
        system_db,
        "UPDATE deploys.artifacts SET state = 'copying', attempts = %s WHERE id = %s",
        artifacts.MAX_ATTEMPTS,
        artifact_id,
    )
    assert copy(artifact_id) == "failed"
    assert len(failures(system_db, deployed)) == 1
    assert artefacts.asked == []


def test_who_comes_back_after_another_took_over_changes_nothing(
    system_db: Database,
    deployed: Deployed,
    artefacts: Artefacts,
    files_bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifact_id = offer(system_db, deployed, artefacts.url("/whole"))
    stream = copying._streamed

    def overtaken(*arguments: Any) -> artifacts.Copy:
        """While this one streams, its lease ends, and another copies."""
        monkeypatch.setattr(copying, "_streamed", stream)
        made = stream(*arguments)
        come_due(system_db, artifact_id)
        assert copy(artifact_id) == "stored"
        return made

    monkeypatch.setattr(copying, "_streamed", overtaken)
    assert copy(artifact_id) is None
    assert_copied(system_db, deployed, files_bucket)
    assert [each["state"] for each in objects(system_db, deployed)] == ["deleted", "stored"]


def test_the_schedule_picks_up_what_the_queue_lost(
    system_db: Database,
    deployed: Deployed,
    artefacts: Artefacts,
    files_bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(artifact_copier, "REACH", HERE)
    rows(system_db, "DELETE FROM deploys.artifacts WHERE next_attempt_at IS NOT NULL")
    offer(system_db, deployed, artefacts.url("/whole"))
    assert invoke(artifact_copier.handler, {}, seconds=100) == {"ok": True}  # no time for a large one
    assert invoke(artifact_copier.handler, {}, seconds=900) == {"ok": True, "stored": 1}
    assert_copied(system_db, deployed, files_bucket)


def test_what_a_deleted_deployment_left_is_not_copied(
    system_db: Database, deployed: Deployed, artefacts: Artefacts
) -> None:
    artifact_id = offer(system_db, deployed, artefacts.url("/whole"))
    rows(system_db, "UPDATE deploys.deployments SET deleted_at = now() WHERE id = %s", deployed.id)
    assert copy(artifact_id) is None
    assert artifact(system_db, deployed)["state"] == "failed"
    assert artefacts.asked == []


def test_nothing_deployed_lets_the_copier_reach_its_own_network() -> None:
    assert artifact_copier.REACH == PUBLIC == Reach(loopback=False)
    assert not [name for name in config.Settings.model_fields if "reach" in name or "loopback" in name]


def test_a_message_that_is_not_ours_ends_among_the_dead_letters() -> None:
    answer = invoke(artifact_copier.handler, {"Records": [{"messageId": "7", "body": "{}"}]})
    assert answer == {"batchItemFailures": [{"itemIdentifier": "7"}]}
