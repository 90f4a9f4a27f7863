"""Taking a backup: lock, the check that nothing is hidden, one snapshot for dump and counts, manifest."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, LiteralString

import cluster_snapshot
import dump
import psycopg
import retention
import visibility
from aws_lambda_powertools import Logger
from botocore.exceptions import BotoCoreError, ClientError
from psycopg.rows import DictRow

from backplane import archives, connect, contents, maintenance_lock, pgtools
from backplane.archives import Bucket, Manifest
from backplane.config import Settings
from backplane.contents import Contents
from backplane.multipart import GRACE, Upload, bounded, part_size

LOCK_WAIT: Final = 60.0  # seconds to wait for a migration to end

Connection = psycopg.Connection[DictRow]

logger = Logger(child=True)


@dataclass(frozen=True)
class Progress:
    database_bytes: int
    dumped_bytes: int
    stored_bytes: int


class BackupError(RuntimeError):
    """There is no backup; the message says what to do."""


def take(
    settings: Settings,
    *,
    kind: str | None = None,
    ends: float,
    report: Callable[[Progress], None] = lambda _: None,
) -> Manifest:
    """Take a backup and forget those that are too old; its manifest, which is in the bucket.

    `ends`, on time.monotonic's clock, is when to give up. Raises whatever stood in the way, and leaves no
    half of a backup behind.
    """
    if not settings.backup_bucket:
        raise BackupError("there is no bucket for backups: set BACKUP_BUCKET")
    bucket = Bucket(archives.client(), settings.backup_bucket)
    with _session(settings, ends) as connection:
        size = _scalar(connection, "SELECT pg_database_size(current_database()) AS value")
        wanted = kind or ("cluster_snapshot" if _is_too_large(settings, size) else "dump")
        if wanted == "dump":
            visibility.check(connection)
            manifest = _dump(settings, connection, bucket, size, ends=ends, report=report)
        else:
            manifest = _snapshot(settings, connection, bucket, ends=ends)
        archives.record(connection, manifest)
        _retain(settings, connection, bucket, ends)
    return manifest


def _is_too_large(settings: Settings, size: int) -> bool:
    return settings.database_cluster is not None and size > settings.backup_snapshot_over_bytes


@contextmanager
def _session(settings: Settings, ends: float) -> Iterator[Connection]:
    """A direct connection as the backup's role, holding the maintenance lock."""
    with connect.connect(settings, direct=True) as connection:
        bounds = {"statement_timeout": _milliseconds(ends), **dump.WATCHFULNESS}
        connection.execute("; ".join(f"SET {name} = {value}" for name, value in bounds.items()).encode())
        wait = min(LOCK_WAIT, (ends - time.monotonic()) / 4)
        try:
            maintenance_lock.take(connection, wait)
        except maintenance_lock.BusyError as error:
            raise BackupError(f"{error}: the next backup comes by schedule, or invoke it again") from error
        try:
            yield connection
        finally:
            if not connection.closed:
                with suppress(psycopg.Error):  # the lock ends with the connection
                    maintenance_lock.release(connection)


# ---- a dump ----


def _dump(
    settings: Settings,
    connection: Connection,
    bucket: Bucket,
    size: int,
    *,
    ends: float,
    report: Callable[[Progress], None],
) -> Manifest:
    tool_version = _tool_version(connection)
    started_at, name = _name(bucket, ends)
    key = f"{archives.FOLDER}{name}{archives.DUMP}"
    # A dump is text, twice as long as the database at most, before compression.
    upload = Upload(bucket, key, "application/zstd", size=part_size(2 * size), ends=ends)
    whole = False
    try:
        with _exported(connection) as snapshot, _counting(connection) as counted:
            command, secret = dump.command(connect.parameters(settings, direct=True), snapshot)
            with pgtools.Tool(command, environment=secret) as tool:
                dumped = dump.stream(
                    tool, upload, ends=ends, report=lambda out, sent: report(Progress(size, out, sent))
                )
            found = counted.result(max(0.0, ends - time.monotonic()))
        version, whole = upload.complete(), True
        manifest = Manifest(
            kind="dump",
            key=key,
            manifest_key=f"{archives.FOLDER}{name}{archives.MANIFEST}",
            version_id=version,
            started_at=started_at,
            finished_at=datetime.now(UTC),
            bytes=dumped.bytes,
            sha256=dumped.sha256,
            dump_bytes=dumped.dump_bytes,
            tool_version=tool_version,
            **_about(connection),
            **found.model_dump(),
        )
        _put(bucket, manifest, ends)
    except BaseException:
        if whole:
            _discard(bucket, name)
        else:
            upload.abort()
        raise
    return manifest


def _name(bucket: Bucket, ends: float) -> tuple[datetime, str]:
    """The time and the name of a backup that begins now; a second has one."""
    while True:
        now = datetime.now(UTC).replace(microsecond=0)
        name = archives.name_at(now)
        taken = bounded(
            ends,
            partial(
                bucket.client.list_objects_v2,
                Bucket=bucket.name,
                Prefix=f"{archives.FOLDER}{name}",
                MaxKeys=1,
            ),
        )
        if not taken.get("Contents"):
            return now, name
        time.sleep(0.1)


@contextmanager
def _exported(connection: Connection) -> Iterator[str]:
    """A transaction whose snapshot pg_dump shares, so that both see the same rows."""
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    try:
        yield _scalar(connection, "SELECT pg_export_snapshot() AS value")
    finally:
        if not connection.closed:
            with suppress(psycopg.Error):
                connection.execute("ROLLBACK")


@contextmanager
def _counting(connection: Connection) -> Iterator[Future[Contents]]:
    """What the database holds, read on this connection while the block runs; given up if the block fails."""
    given_up = threading.Event()

    def check(*_: object) -> None:
        if given_up.is_set():
            raise BackupError("given up")

    with ThreadPoolExecutor(1, thread_name_prefix="counting") as thread:
        counted = thread.submit(contents.read, connection, counted=check)
        try:
            yield counted
        except BaseException:
            given_up.set()
            while not counted.done():
                with suppress(psycopg.Error):
                    connection.cancel_safe(timeout=2)
                wait([counted], timeout=0.5)
            raise


def _put(bucket: Bucket, manifest: Manifest, ends: float) -> None:
    put = partial(bucket.client.put_object, ContentType="application/json")
    body = manifest.as_json().encode()
    bounded(ends, partial(put, Bucket=bucket.name, Key=manifest.manifest_key, Body=body))


def _discard(bucket: Bucket, name: str) -> None:
    """A dump whose manifest could not be written is no backup: nobody could tell what is in it."""
    for suffix in (archives.MANIFEST, archives.DUMP):
        with suppress(BotoCoreError, ClientError, TimeoutError):
            key = f"{archives.FOLDER}{name}{suffix}"
            bounded(
                time.monotonic() + GRACE,
                partial(bucket.client.delete_object, Bucket=bucket.name, Key=key),
            )


def _tool_version(connection: Connection) -> str:
    """pg_dump's, which must not be older than the server. Raises BackupError."""
    version = pgtools.version("pg_dump")
    if int(version.split(".")[0]) < connection.info.server_version // 10_000:
        raise BackupError(
            f"pg_dump {version} can't dump PostgreSQL {connection.info.server_version // 10_000}: lock newer "
            f"wheels in layers/pgtools/requirements.in"
        )
    return version


def _about(connection: Connection) -> dict[str, Any]:
    return {
        "database": connection.info.dbname,
        "server_version": _scalar(connection, "SELECT current_setting('server_version') AS value"),
        "roles": connection.execute(_ROLES).fetchall(),
    }


_ROLES: Final = """
    SELECT r.rolname AS name, r.rolcanlogin AS can_login,
           ARRAY(
               SELECT g.rolname::text
               FROM pg_auth_members AS m
               JOIN pg_roles AS g ON g.oid = m.roleid
               WHERE m.member = r.oid
               ORDER BY 1
           ) AS member_of
    FROM pg_roles AS r
    WHERE r.rolname !~ '^(pg_|rds)'
    ORDER BY 1
"""


# ---- a cluster snapshot ----


def _snapshot(settings: Settings, connection: Connection, bucket: Bucket, *, ends: float) -> Manifest:
    if not settings.database_cluster:
        raise BackupError("there is no cluster to take a snapshot of: set DATABASE_CLUSTER, or take a dump")
    started_at, name = _name(bucket, ends)
    taken = cluster_snapshot.take(settings.database_cluster, name, ends=ends)
    manifest = Manifest(
        kind="cluster_snapshot",
        key=taken.arn,
        manifest_key=f"{archives.FOLDER}{name}{archives.MANIFEST}",
        started_at=started_at,
        finished_at=datetime.now(UTC),
        bytes=0,
        sha256=None,
        dump_bytes=0,
        tool_version=None,
        snapshot=taken,
        **_about(connection),
        **Contents.empty().model_dump(),
    )
    # Kept where the manifest can't be written: RDS tags it, and its name says whose it is.
    _put(bucket, manifest, time.monotonic() + GRACE)
    return manifest


# ---- afterwards ----


def _retain(settings: Settings, connection: Connection, bucket: Bucket, ends: float) -> None:
    """Delete what is too old. Failing to is said, and is no reason to call the backup failed."""
    policy = retention.Policy(
        settings.backup_keep_daily, settings.backup_keep_weekly, settings.backup_keep_monthly
    )
    try:
        verified = connection.execute(
            "SELECT name FROM platform.backups WHERE verified_at IS NOT NULL AND deleted_at IS NULL"
        ).fetchall()
        deleted = bounded(ends, partial(retention.apply, bucket, policy, [row["name"] for row in verified]))
        if deleted:
            connection.execute("SELECT platform.record_backups_deleted(%s)", [deleted])
            logger.info("deleted old backups", extra={"names": deleted})
    except (archives.ArchiveError, BotoCoreError, ClientError, psycopg.Error, TimeoutError):
        logger.exception("old backups could not be deleted")


def _scalar(connection: Connection, query: LiteralString) -> Any:
    row = connection.execute(query).fetchone()
    assert row is not None  # noqa: S101  each of these queries has exactly one
    return row["value"]


def _milliseconds(ends: float) -> int:
    return max(1000, int((ends - time.monotonic()) * 1000))
