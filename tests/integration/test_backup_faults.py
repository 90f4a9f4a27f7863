"""Backups that are killed, cut and starved: what is completed is whole, and nothing else is completed."""

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from tests.backups import dumps, read_whole, take, uploads
from tests.databases import Database
from tests.ledgers import rows
from tests.s3_proxy import FAULTS, Fault, S3Proxy

from backplane import archives, maintenance_lock, pgtools
from backplane.archives import Bucket
from backplane.multipart import UploadError

SEEDS = range(5)


@pytest.fixture
def loaded(database: Database) -> Database:
    """About 12 MB that do not compress: a dump in several parts."""
    rows(
        database,
        """
        INSERT INTO platform.webhook_inbox (provider, event_id, event_type, body, status, occurred_at)
        SELECT 'stripe', 'evt_' || n, 'invoice.paid',
               (
                   SELECT string_agg(sha256(convert_to(n || '/' || m, 'UTF8')), '')
                   FROM generate_series(1, 64) AS m
               ),
               'processed', now()
        FROM generate_series(1, 6000) AS n
        """,
    )
    return database


@pytest.fixture
def break_pg_dump(
    bucket: Bucket, tmp_path: Path, pg_tools: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Puts a pg_dump in place that does what a line of shell says; PG_DUMP in it runs the real one."""

    def put(line: str) -> None:
        script = tmp_path / "pg_dump"
        script.write_text(
            f"""#!/bin/sh
case "$1" in --version) exec "{pg_tools}/pg_dump" --version;; esac
{line.replace("PG_DUMP", f'"{pg_tools}/pg_dump" "$@"')}
"""
        )
        script.chmod(0o755)
        monkeypatch.setenv("PG_TOOLS", str(tmp_path))

    return put


def through(proxy: S3Proxy, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The same bucket, seen through the proxy by a client that gives up sooner."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    return Bucket(archives.client(), bucket.name)


def assert_whatever_is_completed_is_whole(bucket: Bucket) -> None:
    """A dump without a manifest is no backup, but if it is there, it must not be half of one."""
    manifests = {each.name for each in bucket.backups()}
    assert manifests <= set(dumps(bucket)), "a manifest without its dump"
    for name in manifests:
        read_whole(bucket, name)
    for name in set(dumps(bucket)) - manifests:
        import zstandard

        body = bucket.client.get_object(Bucket=bucket.name, Key=f"{archives.FOLDER}{name}{archives.DUMP}")
        inflater = zstandard.ZstdDecompressor().decompressobj()
        inflater.decompress(body["Body"].read())
        assert inflater.eof


def lock_is_free(database: Database) -> bool:
    """The server notices the end of a session a moment after it."""
    with database.connect() as other:
        maintenance_lock.take(other, 30)
    return True


# ---- pg_dump ----


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("PG_DUMP | head -c 34; exit 1", "exited with 1"),  # a header, and then the end
        ("PG_DUMP | head -c 3000000; kill -9 $$", "was ended by SIGKILL"),
        ("PG_DUMP | head -c 9000000; kill -TERM $$", "was ended by SIGTERM"),
        ("PG_DUMP; echo 'too late' >&2; exit 1", "too late"),
        ("exit 0", "pg_dump wrote nothing"),
        ("echo 'no such thing' >&2; exit 1", "no such thing"),
    ],
)
def test_a_pg_dump_that_ends_badly_completes_nothing(
    loaded: Database, bucket: Bucket, break_pg_dump: Callable[[str], None], end: str, said: str
) -> None:
    break_pg_dump(end)
    with pytest.raises(Exception, match=said):
        take(loaded, bucket)
    assert list(bucket.objects()) == uploads(bucket) == []
    assert lock_is_free(loaded)


def test_a_session_that_is_terminated_in_the_middle_completes_nothing(
    loaded: Database, bucket: Bucket, tmp_path: Path, break_pg_dump: Callable[[str], None]
) -> None:
    """The dump stops for a moment half-way, and there the administrator ends every session of the role."""
    marker = tmp_path / "half-way"
    break_pg_dump(
        f"""
PG_DUMP | (head -c 2000000; touch "{marker}"; while [ -e "{marker}" ]; do sleep 0.05; done; cat)
exit 1
""",
    )

    def end_sessions() -> None:
        while not marker.exists():
            time.sleep(0.02)
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'backplane_backup'"
        rows(loaded, query)
        marker.unlink()

    threading.Thread(target=end_sessions, daemon=True).start()
    with pytest.raises((psycopg.OperationalError, pgtools.ToolError)):
        take(loaded, bucket)
    assert list(bucket.objects()) == uploads(bucket) == []


def test_a_pg_dump_that_hangs_is_ended_when_the_time_is_up(
    database: Database, bucket: Bucket, tmp_path: Path, break_pg_dump: Callable[[str], None]
) -> None:
    pid = tmp_path / "pid"
    break_pg_dump(f'echo $$ > "{pid}"; exec sleep 600')
    with pytest.raises(TimeoutError, match="the time was up"):
        take(database, bucket, seconds=3)
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()
    assert list(bucket.objects()) == uploads(bucket) == []
    assert lock_is_free(database)


def test_a_table_that_somebody_has_locked_is_not_waited_for_beyond_the_time(
    database: Database, bucket: Bucket
) -> None:
    with database.connect() as other, other.transaction():
        other.execute("LOCK TABLE identity.users IN ACCESS EXCLUSIVE MODE")
        with pytest.raises((TimeoutError, psycopg.errors.QueryCanceled)):
            take(database, bucket, seconds=4)
    assert list(bucket.objects()) == uploads(bucket) == []


# ---- S3 ----


def fail_at(kind: str, fault: Fault, times: int = 1000) -> Callable[[str, str], Fault]:
    """That many requests of a kind fail; a kind is a method and a part of the path."""
    left = [times]
    method, part = kind.split(" ", 1)

    def decide(asked: str, path: str) -> Fault:
        if asked == method and part in path and left[0] > 0:
            left[0] -= 1
            return fault
        return "pass"

    return decide


BEGIN, PART, COMPLETE, MANIFEST = "POST ?uploads", "PUT partNumber=", "POST uploadId=", "PUT .json"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", [BEGIN, PART, COMPLETE, MANIFEST])
def test_one_failed_call_is_made_again(
    database: Database, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, kind: str, fault: Fault
) -> None:
    with S3Proxy(bucket.client.meta.endpoint_url, fail_at(kind, fault, times=1)) as proxy:
        manifest = take(database, through(proxy, bucket, monkeypatch))
    assert dumps(bucket) == [manifest.name]
    read_whole(bucket, manifest.name)


@pytest.mark.parametrize("kind", [BEGIN, PART, COMPLETE])
def test_a_call_that_fails_for_good_leaves_nothing(
    loaded: Database, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with S3Proxy(bucket.client.meta.endpoint_url, fail_at(kind, "refuse")) as proxy:
        seen = through(proxy, bucket, monkeypatch)
        with pytest.raises(UploadError, match="could not be"):
            take(loaded, seen)
    assert list(bucket.objects()) == uploads(bucket) == []
    assert lock_is_free(loaded)


def test_a_completion_whose_every_answer_is_lost_is_found_to_have_happened(
    database: Database, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with S3Proxy(bucket.client.meta.endpoint_url, fail_at(COMPLETE, "reset after")) as proxy:
        manifest = take(database, through(proxy, bucket, monkeypatch))
    read_whole(bucket, manifest.name)


def test_a_dump_whose_manifest_cannot_be_stored_is_taken_back(
    database: Database, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with S3Proxy(bucket.client.meta.endpoint_url, fail_at(MANIFEST, "refuse")) as proxy:
        seen = through(proxy, bucket, monkeypatch)
        with pytest.raises(Exception, match="PutObject"):
            take(database, seen)
    assert list(bucket.objects()) == []
    assert rows(database, "SELECT name FROM platform.backups") == []


@pytest.mark.parametrize("kind", [PART, COMPLETE, MANIFEST])
def test_an_s3_that_hangs_is_given_up_when_the_time_is_up(
    loaded: Database, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with S3Proxy(bucket.client.meta.endpoint_url, fail_at(kind, "hang")) as proxy:
        seen = through(proxy, bucket, monkeypatch)
        with pytest.raises(TimeoutError, match="the time was up"):
            take(loaded, seen, seconds=8)
    assert bucket.backups() == []
    assert_whatever_is_completed_is_whole(bucket)
    assert lock_is_free(loaded)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_fails_and_whenever_pg_dump_dies_what_is_completed_is_whole(
    loaded: Database,
    bucket: Bucket,
    break_pg_dump: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    chance = random.Random(seed)
    if chance.random() < 0.6:
        length = chance.choice([0, 5, 34, chance.randrange(100_000), chance.randrange(26_000_000)])
        how = chance.choice(["kill -9 $$", "exit 1", "kill -TERM $$"])
        break_pg_dump(f"PG_DUMP | head -c {length}; {how}")
    share = chance.choice([0.1, 0.4, 0.8])

    def decide(_method: str, _path: str) -> Fault:
        return chance.choice(FAULTS) if chance.random() < share else "pass"

    with S3Proxy(bucket.client.meta.endpoint_url, decide) as proxy:
        seen = through(proxy, bucket, monkeypatch)
        try:
            manifest = take(loaded, seen, seconds=30)
        except Exception:  # noqa: BLE001  whichever it was: what it leaves is what counts
            manifest = None
    assert_whatever_is_completed_is_whole(bucket)
    recorded = {row["name"] for row in rows(loaded, "SELECT name FROM platform.backups")}
    assert recorded <= {each.name for each in bucket.backups()}
    if manifest:
        read_whole(bucket, manifest.name)
        assert recorded == {manifest.name}
    assert lock_is_free(loaded)
