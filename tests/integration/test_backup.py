"""The backup: what it stores, what it refuses, and whom it waits for."""

import hashlib
import json
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import cluster_snapshot
import dump
import psycopg
import pytest
import taking
import visibility
from psycopg.rows import dict_row
from tests import rows as sample
from tests.backups import dumps, read_whole, settings, take, uploads
from tests.databases import Database, create_database, drop_database, on
from tests.ledgers import rows
from tests.senders import invoke

import backup
from backplane import archives, config, contents, maintenance_lock, pgtools, restores
from backplane.archives import Bucket
from backplane.multipart import MIN_PART

UNPROTECTED = """
    CREATE SCHEMA shop;
    CREATE TABLE shop.orders (id bigint);
    GRANT USAGE ON SCHEMA shop TO backplane_backup;
"""


@pytest.fixture
def populated(database: Database) -> Database:
    with database.connect() as owner:
        sample.populate(owner)
    return database


def stored(bucket: Bucket, key: str) -> bytes:
    body: bytes = bucket.client.get_object(Bucket=bucket.name, Key=key)["Body"].read()
    return body


def call(
    database: Database, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, event: dict[str, Any], **more: float
) -> Any:
    monkeypatch.setenv("BACKUP_BUCKET", bucket.name)
    with database.as_role("backplane_backup"):
        config.settings.cache_clear()
        return invoke(backup.handler, event, **more)


def metrics_in(said: str) -> dict[str, Any]:
    """The one EMF record among what was written to standard output."""
    (record,) = [json.loads(line) for line in said.splitlines() if '"_aws"' in line]
    found: dict[str, Any] = record
    return found


# ---- what is stored ----


def test_it_stores_two_objects_and_answers_what_they_are(
    populated: Database, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = call(populated, bucket, monkeypatch, {}, seconds=120)
    name = archives.name_in(answer["key"])
    assert answer["ok"] is True
    assert answer["key"] == f"backups/{name}.dump.zst"
    assert answer["manifest_key"] == f"backups/{name}.json"
    assert sorted(bucket.objects()) == sorted([answer["key"], answer["manifest_key"]])
    data = stored(bucket, answer["key"])
    assert (len(data), hashlib.sha256(data).hexdigest()) == (answer["bytes"], answer["sha256"])
    assert answer["seconds"] > 0
    assert uploads(bucket) == []
    record = metrics_in(capsys.readouterr().out)
    assert (record["BackupSucceeded"], record["stage"]) == ([1.0], "dev")
    assert record["BackupBytes"] == [answer["bytes"]]
    assert record["BackupRows"][0] > 50


def test_the_manifest_says_what_was_in_the_database(populated: Database, bucket: Bucket) -> None:
    manifest = take(populated, bucket)
    written = json.loads(stored(bucket, manifest.manifest_key))
    tables = rows(
        populated,
        """
        SELECT format('%s.%s', schemaname, relname) AS name
        FROM pg_stat_user_tables
        """.replace("%", "%%"),
    )
    assert set(written["rows"]) == {table["name"] for table in tables}
    assert written["rows"].pop("platform.backups") == 2, "its own row came after its snapshot"
    for table, count in written["rows"].items():
        assert rows(populated, f"SELECT count(*) AS n FROM {table}") == [{"n": count}], table
    assert written["kind"] == "dump"
    assert written["bytes"] == len(stored(bucket, manifest.key))
    assert written["server_version"].startswith("18")
    assert written["tool_version"].startswith("18")
    assert {"backplane_app", "backplane_migrator"} <= {role["name"] for role in written["roles"]}
    assert written["extensions"]["plpgsql"]
    assert written["row_security"]["credits.entries"].startswith("enabled; forced; ")
    assert str(urlsplit(populated.backup).password) not in json.dumps(written)
    assert next(iter(written)) == "format", "what it is comes first"


def test_the_archive_is_read_to_its_end_and_is_whole(populated: Database, bucket: Bucket) -> None:
    manifest = take(populated, bucket)
    read_whole(bucket, manifest.name)
    dumped = b"".join(archives.decompress(manifest, bucket.read(manifest)))
    assert dumped.startswith(b"PGDMP")
    assert len(dumped) == manifest.dump_bytes


def test_it_is_recorded_and_listed(populated: Database, bucket: Bucket) -> None:
    manifest = take(populated, bucket)
    (recorded,) = rows(populated, "SELECT * FROM platform.backups WHERE bytes > 1")
    assert recorded["name"] == manifest.name
    assert recorded["sha256"] == manifest.sha256
    assert recorded["row_count"] == sum(manifest.rows.values())
    assert recorded["verified_at"] is None
    assert [each.name for each in bucket.backups()] == [manifest.name]


def test_rows_that_come_while_it_runs_are_neither_dumped_nor_counted(
    populated: Database, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One snapshot for both: were they apart, no restored count would ever agree."""
    read = contents.read

    def write_first(*args: Any, **named: Any) -> contents.Contents:
        rows(
            populated,
            "INSERT INTO tenancy.organizations (name) SELECT 'Latecomers' FROM generate_series(1, 5)",
        )
        return read(*args, **named)

    monkeypatch.setattr(contents, "read", write_first)
    manifest = take(populated, bucket)
    assert manifest.rows["tenancy.organizations"] == 2
    dumped = b"".join(archives.decompress(manifest, bucket.read(manifest)))
    assert b"Organisation 1" in dumped
    assert b"Latecomers" not in dumped


def test_two_in_one_second_have_two_names(database: Database, bucket: Bucket) -> None:
    names = {take(database, bucket).name for _ in range(3)}
    assert len(names) == 3
    assert len(bucket.backups()) == 3


def test_a_large_one_goes_up_in_parts(
    database: Database, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        FROM generate_series(1, 9000) AS n
        """,
    )
    told: list[taking.Progress] = []
    manifest = taking.take(settings(database, bucket), ends=time.monotonic() + 100, report=told.append)
    assert manifest.bytes > 2 * MIN_PART
    read_whole(bucket, manifest.name)
    head = bucket.client.head_object(Bucket=bucket.name, Key=manifest.key, PartNumber=1)
    assert head["PartsCount"] >= 3
    assert [step.dumped_bytes for step in told] == sorted(step.dumped_bytes for step in told)
    assert told[-1].dumped_bytes == manifest.dump_bytes


def test_an_empty_database_has_a_backup_too(server_url: str, database: Database, bucket: Bucket) -> None:
    """The roles are the server's; what is missing is our schema, where it would be recorded."""
    create_database(server_url, f"{database.name}_empty")
    try:
        with pytest.raises(psycopg.errors.InvalidSchemaName):
            taking.take(
                settings(database, bucket).model_copy(
                    update={"database_url": _secret(on(database.backup, f"{database.name}_empty"))}
                ),
                ends=time.monotonic() + 60,
            )
        (name,) = dumps(bucket)
        read_whole(bucket, name)
    finally:
        drop_database(server_url, f"{database.name}_empty")


def _secret(url: str) -> Any:
    return config.Settings(database_url=url).database_url  # type: ignore[arg-type]


# ---- what is refused ----


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("SELECT 1", r"shop\.orders \(no SELECT\)"),
        ("GRANT SELECT ON shop.orders TO backplane_backup", r"shop\.orders \(no row-level security\)"),
        (
            "CALL platform.protect('shop.orders'); DROP POLICY backup_read ON shop.orders",
            r"shop\.orders \(no policy USING \(true\)\)",
        ),
        (
            """
            CALL platform.protect('shop.orders');
            DROP POLICY backup_read ON shop.orders;
            CREATE POLICY a_few ON shop.orders FOR SELECT TO backplane_backup USING (id > 0)
            """,
            r"shop\.orders \(no policy USING \(true\)\)",
        ),
        (
            """
            CALL platform.protect('shop.orders');
            CREATE POLICY less ON shop.orders AS RESTRICTIVE FOR SELECT TO public USING (id > 0)
            """,
            r"shop\.orders \(a restrictive policy\)",
        ),
        (
            "CALL platform.protect('shop.orders'); REVOKE USAGE ON SCHEMA shop FROM backplane_backup",
            r"shop\.orders \(no USAGE on its schema\)",
        ),
        (
            "CALL platform.protect('shop.orders'); CREATE SEQUENCE shop.numbers",
            r"shop\.numbers \(no SELECT\)",
        ),
    ],
)
def test_a_table_that_it_would_not_see_whole_is_refused_before_anything_is_stored(
    database: Database, bucket: Bucket, statement: str, why: str
) -> None:
    rows(database, UNPROTECTED)
    rows(database, statement)
    with pytest.raises(visibility.HiddenError, match=why) as refused:
        take(database, bucket)
    assert "platform.protect" in str(refused.value)
    assert list(bucket.objects()) == uploads(bucket) == []


def test_a_protected_table_is_taken(database: Database, bucket: Bucket) -> None:
    rows(database, UNPROTECTED)
    rows(database, "CALL platform.protect('shop.orders'); INSERT INTO shop.orders VALUES (1), (2)")
    assert take(database, bucket).rows["shop.orders"] == 2


def test_a_partitioned_table_is_counted_once_and_with_its_parts(database: Database, bucket: Bucket) -> None:
    rows(
        database,
        """
        CREATE SCHEMA shop;
        GRANT USAGE ON SCHEMA shop TO backplane_backup;
        CREATE TABLE shop.views (id bigint) PARTITION BY RANGE (id);
        CREATE TABLE shop.views_1 PARTITION OF shop.views FOR VALUES FROM (0) TO (10);
        CREATE TABLE shop.views_2 PARTITION OF shop.views FOR VALUES FROM (10) TO (20);
        CALL platform.protect('shop.views');
        CALL platform.protect('shop.views_1');
        CALL platform.protect('shop.views_2');
        INSERT INTO shop.views SELECT generate_series(1, 15);
        """,
    )
    counted = take(database, bucket).rows
    assert (counted["shop.views"], counted["shop.views_1"], counted["shop.views_2"]) == (15, 9, 6)


def test_the_owner_may_not_back_up(database: Database, bucket: Bucket) -> None:
    """Who is not bound by row-level security would not notice that a policy is missing."""
    with pytest.raises(RuntimeError, match="refusing to serve"):
        taking.take(
            settings(database, bucket).model_copy(update={"database_url": _secret(database.owner)}),
            ends=time.monotonic() + 60,
        )


def test_without_a_bucket_it_says_what_is_missing(database: Database) -> None:
    with pytest.raises(taking.BackupError, match="set BACKUP_BUCKET"):
        taking.take(
            config.Settings(database_url=database.backup),  # type: ignore[arg-type]
            ends=time.monotonic() + 60,
        )


def test_an_older_pg_dump_than_the_server_is_refused(
    database: Database, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgtools, "version", lambda _: "15.4")
    with pytest.raises(taking.BackupError, match=r"pg_dump 15\.4 can't dump PostgreSQL 18"):
        take(database, bucket)


def test_an_unknown_kind_is_refused(
    database: Database, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="unknown kind 'tape'"):
        call(database, bucket, monkeypatch, {"kind": "tape"})


def test_a_failure_is_raised_and_measured(
    database: Database, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows(database, UNPROTECTED)
    with pytest.raises(visibility.HiddenError):
        call(database, bucket, monkeypatch, {})
    record = metrics_in(capsys.readouterr().out)
    assert record["BackupSucceeded"] == [0.0]
    assert "BackupBytes" not in record


# ---- one at a time ----


def test_a_migration_under_way_is_waited_for_and_then_refused(database: Database, bucket: Bucket) -> None:
    with database.connect() as migrating:
        maintenance_lock.take(migrating, 1)
        with pytest.raises(taking.BackupError, match="held the maintenance lock"):
            take(database, bucket, seconds=4)
        assert list(bucket.objects()) == []
        waiting = threading.Timer(0.5, maintenance_lock.release, [migrating])
        waiting.start()
        take(database, bucket)
        waiting.join()


def test_it_holds_the_lock_while_it_runs_and_lets_go_of_it(
    database: Database, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = contents.read

    def try_meanwhile(*args: Any, **named: Any) -> contents.Contents:
        with database.connect() as other, pytest.raises(maintenance_lock.BusyError):
            maintenance_lock.take(other, 0)
        return read(*args, **named)

    monkeypatch.setattr(contents, "read", try_meanwhile)
    take(database, bucket)
    with database.connect() as other:
        maintenance_lock.take(other, 0)


def test_two_at_once_are_one_after_the_other(database: Database, bucket: Bucket) -> None:
    taken: list[str] = []
    threads = [threading.Thread(target=lambda: taken.append(take(database, bucket).name)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == 2
    assert dumps(bucket) == sorted(taken)
    for name in taken:
        read_whole(bucket, name)


def test_the_server_notices_soon_when_a_backup_is_cut_off(database: Database, bucket: Bucket) -> None:
    """A frozen function says no farewell, and its locks would stop migrations for hours."""
    with taking._session(settings(database, bucket), time.monotonic() + 60) as session:
        for name, value in dump.WATCHFULNESS.items():
            assert session.execute(f"SHOW {name}".encode()).fetchall() == [{name: str(value)}]
    _, environment = dump.command({"host": "x"}, "snapshot")
    assert "-c tcp_keepalives_idle=60" in environment["PGOPTIONS"]


# ---- the direct way ----


def test_it_goes_around_a_pooler(database: Database, bucket: Bucket) -> None:
    with pytest.raises(psycopg.OperationalError):
        take(database, bucket, database_direct_url="postgresql://nobody@127.0.0.1:1/nowhere")
    taken = taking.take(
        config.Settings(
            database_url="postgresql://nobody@127.0.0.1:1/nowhere",  # type: ignore[arg-type]
            database_direct_url=database.backup,  # type: ignore[arg-type]
            backup_bucket=bucket.name,
        ),
        ends=time.monotonic() + 60,
    )
    read_whole(bucket, taken.name)


# ---- a cluster's snapshot ----


@pytest.fixture
def cluster(bucket: Bucket) -> str:
    import boto3

    name = f"cluster-{bucket.name}"
    boto3.client("rds").create_db_cluster(
        DBClusterIdentifier=name,
        Engine="aurora-postgresql",
        MasterUsername="master",
        MasterUserPassword="password1",
    )
    cluster_snapshot._client.cache_clear()
    return name


def test_above_a_size_the_cluster_has_a_snapshot_instead(
    database: Database, bucket: Bucket, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_CLUSTER", cluster)
    monkeypatch.setenv("BACKUP_SNAPSHOT_OVER_BYTES", "1000")
    answer = call(database, bucket, monkeypatch, {}, seconds=120)
    assert answer["ok"] is True
    assert ":cluster-snapshot:backplane-backup-2" in answer["key"]
    assert (answer["bytes"], answer["sha256"]) == (0, None)
    manifest = bucket.manifest(archives.name_in(answer["manifest_key"]))
    assert manifest.kind == "cluster_snapshot"
    assert manifest.snapshot is not None
    assert (manifest.snapshot.cluster, manifest.snapshot.status) == (cluster, "available")
    assert list(bucket.objects()) == [answer["manifest_key"]]
    (recorded,) = rows(database, "SELECT kind, key FROM platform.backups")
    assert recorded == {"kind": "cluster_snapshot", "key": answer["key"]}


def test_a_flag_asks_for_either_way(
    database: Database, bucket: Bucket, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_CLUSTER", cluster)
    snapshot = call(database, bucket, monkeypatch, {"kind": "cluster_snapshot"}, seconds=120)
    assert "cluster-snapshot" in snapshot["key"]
    monkeypatch.setenv("BACKUP_SNAPSHOT_OVER_BYTES", "1000")
    dumped = call(database, bucket, monkeypatch, {"kind": "dump"}, seconds=120)
    assert dumped["key"].endswith(".dump.zst")


def test_without_a_cluster_there_is_no_snapshot(
    database: Database, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(taking.BackupError, match="set DATABASE_CLUSTER"):
        call(database, bucket, monkeypatch, {"kind": "cluster_snapshot"})
    monkeypatch.setenv("BACKUP_SNAPSHOT_OVER_BYTES", "1000")
    assert call(database, bucket, monkeypatch, {}, seconds=120)["key"].endswith(".dump.zst")


def test_a_snapshot_cannot_be_read_as_an_archive(database: Database, bucket: Bucket, cluster: str) -> None:
    manifest = taking.take(
        settings(database, bucket, database_cluster=cluster),
        kind="cluster_snapshot",
        ends=time.monotonic() + 60,
    )
    with pytest.raises(archives.ArchiveError, match="snapshot of the cluster"):
        restores.verify(manifest, iter(()), ends=time.monotonic() + 60)


# ---- keeping ----


def plant(bucket: Bucket, manifest: archives.Manifest, *names: str) -> None:
    """Copies of a backup as of other days."""
    for name in names:
        dump, said = f"backups/{name}.dump.zst", f"backups/{name}.json"
        copy = manifest.model_copy(update={"manifest_key": said})
        if manifest.kind == "dump":
            copy = copy.model_copy(update={"key": dump})
            source = {"Bucket": bucket.name, "Key": manifest.key}
            bucket.client.copy_object(Bucket=bucket.name, Key=dump, CopySource=source)
        bucket.client.put_object(Bucket=bucket.name, Key=said, Body=copy.as_json().encode())


def test_old_ones_go_and_the_newest_verified_stays(database: Database, bucket: Bucket) -> None:
    first = take(database, bucket)
    bucket.client.delete_object(Bucket=bucket.name, Key=first.manifest_key)  # taken long ago, then
    old = [f"backup_202601{day:02}_000000" for day in range(1, 6)]
    plant(bucket, first, *old)
    rows(
        database,
        """
        INSERT INTO platform.backups
            (name, kind, key, manifest_key, bytes, row_count, sha256, started_at, finished_at, drilled_at,
             differences, verified_at)
        SELECT 'backup_2026010' || day || '_000000', 'dump', 'k', 'm', 1, 1, repeat('0', 64), now(), now(),
               now(), '{}', CASE WHEN day = 2 THEN now() END
        FROM generate_series(1, 5) AS day
        """,
    )
    newest = take(database, bucket, backup_keep_daily=1, backup_keep_weekly=0, backup_keep_monthly=0)
    assert {each.name for each in bucket.backups()} == {newest.name, "backup_20260102_000000"}
    assert dumps(bucket) == sorted([first.name, newest.name, "backup_20260102_000000"]), "a stray has a day"
    left = rows(database, "SELECT name FROM platform.backups WHERE deleted_at IS NULL ORDER BY 1")
    assert [row["name"] for row in left] == sorted([first.name, newest.name, "backup_20260102_000000"])


def test_a_dump_without_a_manifest_goes_after_a_day(database: Database, bucket: Bucket) -> None:
    stray = "backups/backup_20260101_000000.dump.zst"
    bucket.client.put_object(Bucket=bucket.name, Key=stray, Body=b"half")
    bucket.client.put_object(Bucket=bucket.name, Key="backups/notes.txt", Body=b"a person's")
    take(database, bucket)
    assert stray not in set(bucket.objects())
    assert stored(bucket, "backups/notes.txt") == b"a person's"


def test_a_snapshot_goes_with_its_manifest(database: Database, bucket: Bucket, cluster: str) -> None:
    import boto3

    manifest = taking.take(
        settings(database, bucket, database_cluster=cluster),
        kind="cluster_snapshot",
        ends=time.monotonic() + 60,
    )

    def snapshots() -> list[str]:
        listed = boto3.client("rds").describe_db_cluster_snapshots(DBClusterIdentifier=cluster)
        return [each["DBClusterSnapshotArn"] for each in listed["DBClusterSnapshots"]]

    assert manifest.key in snapshots()
    plant(bucket, manifest, "backup_20260101_000000")
    bucket.client.delete_object(Bucket=bucket.name, Key=manifest.manifest_key)  # taken long ago, then
    newest = take(database, bucket, backup_keep_daily=1, backup_keep_weekly=0, backup_keep_monthly=0)
    assert manifest.key not in snapshots()
    assert [each.name for each in bucket.backups()] == [newest.name]


def test_failing_to_delete_is_no_failed_backup(
    database: Database, bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    first = take(database, bucket)
    plant(bucket, first, "backup_20260101_000000")
    bucket.client.put_object(Bucket=bucket.name, Key="backups/backup_20260101_000000.json", Body=b"{torn")
    second = take(database, bucket, backup_keep_daily=1, backup_keep_weekly=0, backup_keep_monthly=0)
    assert second.name in {each.name for each in bucket.backups()}
    assert "old backups could not be deleted" in caplog.text


def connected(database: Database) -> int:
    with psycopg.connect(database.owner, row_factory=dict_row) as connection:
        found = connection.execute(
            "SELECT count(*) AS n FROM pg_stat_activity WHERE usename = 'backplane_backup' AND datname = %s",
            [database.name],
        ).fetchone()
    assert found is not None
    count: int = found["n"]
    return count


def test_no_connection_is_left_open(database: Database, bucket: Bucket) -> None:
    take(database, bucket)
    deadline = time.monotonic() + 30
    while connected(database) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert connected(database) == 0
