"""Proves the newest backup: restores it into a scratch database and compares what is there with the manifest.

    {}                                    the newest backup
    {"name": "backup_20260131_034500"}    that one

Answers {ok, key, seconds, differences[]}, and records the verdict in platform.backups. A drill that could
not be held is raised, and says nothing of the backup; the metric RestoreDrillSucceeded tells both.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext
from psycopg.rows import dict_row

import scratch
from backplane import archives, connect, db, pgtools, restores, roles
from backplane.archives import ArchiveError, Bucket, Manifest
from backplane.config import Settings, settings

MARGIN: Final = 30.0  # seconds kept back to drop the database, record the verdict and answer

logger = Logger()
metrics = Metrics(namespace="Backplane", service="backplane")


@dataclass(frozen=True)
class Verdict:
    name: str
    key: str
    seconds: float
    differences: list[str]
    manifest: Manifest | None  # None: not even that can be read

    @property
    def ok(self) -> bool:
        return not self.differences


@logger.inject_lambda_context(clear_state=True)
@metrics.log_metrics
def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:
    remaining = context.get_remaining_time_in_millis() / 1000
    db.set_deadline(remaining)
    verdict: Verdict | None = None
    try:
        verdict = drill(settings(), event.get("name"), ends=time.monotonic() + remaining - MARGIN)
        _record(verdict)
    except Exception:  # the edge: it is said once, with its cause, and the invocation fails
        logger.exception("no drill was held")
        raise
    finally:
        metrics.add_dimension(name="stage", value=settings().stage)
        succeeded = verdict is not None and verdict.ok
        metrics.add_metric(name="RestoreDrillSucceeded", unit=MetricUnit.Count, value=int(succeeded))
    answer = {
        "ok": verdict.ok,
        "key": verdict.key,
        "seconds": verdict.seconds,
        "differences": verdict.differences,
    }
    (logger.info if verdict.ok else logger.error)("drilled", extra=answer)
    return answer


def drill(settings: Settings, name: str | None, *, ends: float) -> Verdict:
    """Restore a backup, the newest unless named, and say what differs.

    Raises scratch.DrillError, and what the server, S3 or the clock have against it.
    """
    if not settings.backup_bucket:
        raise scratch.DrillError("there is no bucket of backups: set BACKUP_BUCKET")
    bucket = Bucket(archives.client(), settings.backup_bucket)
    began = time.monotonic()
    name = archives.name_in(name) if name else _newest(bucket)
    manifest: Manifest | None = None
    try:
        manifest = bucket.manifest(name)
        restores.verify(manifest, bucket.read(manifest), ends=ends)
        found = _restored(settings, bucket, manifest, ends)
    except (ArchiveError, pgtools.ToolError) as error:
        found = [str(error)]
    key = manifest.key if manifest else f"{archives.FOLDER}{name}{archives.DUMP}"
    return Verdict(name, key, round(time.monotonic() - began, 3), found, manifest)


def _newest(bucket: Bucket) -> str:
    backups = bucket.backups()
    if not backups:
        raise scratch.DrillError(f"there is no backup in {bucket.name}: invoke backup first")
    return backups[0].name


def _restored(settings: Settings, bucket: Bucket, manifest: Manifest, ends: float) -> list[str]:
    """What differs in a scratch database that the backup was restored into."""
    with scratch.database(_server(settings), manifest.database) as parameters:
        with psycopg.connect(autocommit=True, row_factory=dict_row, **parameters) as connection:
            roles.ensure_roles(connection, {})
        restores.restore(manifest, bucket.read(manifest), parameters, ends=ends)
        with psycopg.connect(autocommit=True, row_factory=dict_row, **parameters) as connection:
            milliseconds = max(1000, int((ends - time.monotonic()) * 1000))
            connection.execute(f"SET statement_timeout = {milliseconds}".encode())
            return restores.compare(connection, manifest)


def _server(settings: Settings) -> dict[str, Any]:
    """Where scratch databases are made: the drill's own server, or the live one, past a pooler."""
    there = settings.model_copy(
        update={
            "database_url": settings.drill_database_url or settings.database_url,
            "database_direct_url": None,
            "database_host": settings.drill_database_host or settings.database_host,
            "database_user": None,
            "database_iam_resource_id": None,
            "database_secret_arn": settings.drill_database_secret_arn,
        }
    )
    return connect.parameters(there)


def _record(verdict: Verdict) -> None:
    """The backup's row, made here where the backup could not make it, with the verdict."""

    def write(tx: db.Tx) -> None:
        if verdict.manifest:
            archives.record(tx, verdict.manifest)
        tx.execute(
            """
            UPDATE platform.backups
            SET drilled_at = clock_timestamp(),
                drill_seconds = %(seconds)s,
                differences = %(differences)s,
                verified_at = CASE WHEN %(ok)s THEN clock_timestamp() END
            WHERE name = %(name)s
            """,
            vars(verdict) | {"ok": verdict.ok, "manifest": None},
        )

    db.run(write)
