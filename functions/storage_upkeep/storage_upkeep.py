"""The bucket kept in step with its rows: each hour what is over is given back and taken away, what was in
projects deleted long ago with it, and each night both are compared.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import project_purge
import psycopg
import storage_comparison
from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from backplane import buckets, db, stored_objects
from backplane.config import settings
from backplane.problems import Problem

BATCH = 1000  # objects; what one call of S3's takes
MARGIN = 30.0  # seconds kept back

logger = Logger()
metrics = Metrics(namespace="Backplane", service="backplane")


@logger.inject_lambda_context(clear_state=True)
@metrics.log_metrics
def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answers {ok, expired, projects, purged}; of {"compare": true} also {drift: {…}}, which the log names.

    `ok` is false where bucket and rows differ, or a project could not be purged: the next hour tries again.
    """
    remaining = context.get_remaining_time_in_millis() / 1000
    db.set_deadline(remaining)
    ends = time.monotonic() + remaining - MARGIN
    metrics.add_dimension(name="stage", value=settings().stage)
    expired = _expire(ends)
    projects, failed = _purge_projects(ends)
    answer: dict[str, Any] = {
        "ok": not failed,
        "expired": expired,
        "projects": projects,
        "purged": _purge(ends),
    }
    metrics.add_metric(name="GrantsExpired", unit=MetricUnit.Count, value=answer["expired"])
    metrics.add_metric(name="ProjectsPurged", unit=MetricUnit.Count, value=answer["projects"])
    metrics.add_metric(name="ObjectsPurged", unit=MetricUnit.Count, value=answer["purged"])
    if event.get("compare"):
        drift = storage_comparison.compare(ends)
        metrics.add_metric(name="StorageDrift", unit=MetricUnit.Count, value=drift.total)
        answer |= {"ok": answer["ok"] and not drift.total, "drift": asdict(drift)}
    logger.info("kept up", **answer)
    return answer


def _expire(ends: float) -> int:
    """Gives back what was granted and did not come in time."""
    expired = 0
    while time.monotonic() < ends:
        rows = db.run(
            lambda tx: tx.execute(
                """
                SELECT DISTINCT organization_id
                FROM storage.objects
                WHERE state = 'granted' AND expires_at <= clock_timestamp()
                LIMIT %s
                """,
                [BATCH],
            ).fetchall()
        )
        given_back = 0
        for row in rows:
            given_back += db.run(partial(stored_objects.expire, organization_id=row["organization_id"]))
        expired += given_back
        if not given_back:
            break
    return expired


def _purge_projects(ends: float) -> tuple[int, int]:
    """Does away with what was in projects that nobody may restore now. Answers how many, and how many not."""
    days = settings().deleted_project_days
    purged = failed = 0
    for project_id in db.run(lambda tx: project_purge.due(tx, days=days, limit=BATCH)):
        if time.monotonic() > ends:
            break
        try:
            purged += db.run(partial(project_purge.purge, project_id=project_id, days=days))
        except (psycopg.Error, Problem):  # one's trouble must not stop the others
            logger.exception("not purged", project_id=str(project_id))
            failed += 1
    return purged, failed


def _purge(ends: float) -> int:
    """Takes away what counts no longer. No more comes under its key once its grant is over."""
    purged = 0
    while time.monotonic() < ends:
        rows = db.run(
            lambda tx: tx.execute(
                """
                SELECT s3_key
                FROM storage.objects
                WHERE deleted_at IS NOT NULL AND purged_at IS NULL AND expires_at <= clock_timestamp()
                ORDER BY deleted_at
                LIMIT %s
                """,
                [BATCH],
            ).fetchall()
        )
        gone = buckets.purge([row["s3_key"] for row in rows]) if rows else []
        db.run(
            lambda tx: tx.execute(
                "UPDATE storage.objects SET purged_at = clock_timestamp() WHERE s3_key = ANY(%s)",
                [gone],  # noqa: B023  at once
            )
        )
        purged += len(gone)
        if len(gone) < BATCH:
            break
    return purged
