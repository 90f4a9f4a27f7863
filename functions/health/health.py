"""Health: whether the database answers, its migrations are the deployed ones, inbox and backups are well."""

import json
import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from backplane import db, inbox_upkeep, requests
from backplane.problems import Unavailable
from backplane.schema import LATEST_MIGRATION

# The worker looks each minute: an event that is due for longer tells that it does not.
OVERDUE_SECONDS = 900
BACKUP_HOURS = 48  # of a daily backup that has failed once, and of a stack that is new

logger = Logger()


@logger.inject_lambda_context(correlation_id_path="requestContext.requestId", clear_state=True)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answers 200 `healthy` or `degraded`, 503 `unhealthy`, over HTTP; the same body to an invoke."""
    db.set_deadline(context.get_remaining_time_in_millis() / 1000)
    report = check()
    if "requestContext" not in event:
        return report
    return {
        "statusCode": 503 if report["status"] == "unhealthy" else 200,
        "headers": {
            "content-type": "application/json",
            "cache-control": "no-store",
            "x-request-id": requests.request_id(event),
        },
        "body": json.dumps(report),
        "isBase64Encoded": False,
    }


def check() -> dict[str, Any]:
    started = time.perf_counter()
    try:
        (migration, inbox), backup = db.run(lambda tx: (_read(tx), _backup(tx)))
    except Unavailable as problem:
        logger.warning("unhealthy", detail=problem.detail)
        return _report("unhealthy", {"database": {"error": "The database does not answer."}})
    except Exception:  # the edge: no migrations yet, a login without its rights; the log says which
        logger.exception("unhealthy")
        return _report("unhealthy", {"database": {"error": "The database answers, but not with our tables."}})
    latency = round((time.perf_counter() - started) * 1000, 1)
    checks = {
        "database": {"latency_ms": latency},
        "migrations": {"current": migration, "latest": LATEST_MIGRATION},
        "backup": {
            "age_hours": None if backup is None else _rounded(backup["age_hours"]),
            "verified_at": backup["verified_at"].isoformat() if backup and backup["verified_at"] else None,
        },
        "inbox": {
            "parked": inbox.parked,
            "failed": inbox.failed,
            "dead": inbox.dead,
            "quarantined": inbox.quarantined,
            "oldest_seconds": inbox.oldest_seconds,
            "overdue_seconds": inbox.overdue_seconds,
        },
    }
    behind = (migration or "") < LATEST_MIGRATION
    unsafe = backup is not None and _is_unsafe(backup)
    return _report("degraded" if behind or unsafe or not _is_well(inbox) else "healthy", checks)


def _is_well(inbox: inbox_upkeep.Census) -> bool:
    """Whether events get through.

    One that waits for its subject, however long, is no defect of ours (the worker's metric
    WebhooksParkedLong tells of it). One given up is told for a day, else it would hide the next.
    """
    return inbox.failed == 0 and inbox.newly_dead == 0 and inbox.overdue_seconds <= OVERDUE_SECONDS


def _read(tx: db.Tx) -> tuple[str | None, inbox_upkeep.Census]:
    row = tx.execute("SELECT max(version) AS migration FROM public.schema_migrations").fetchone()
    return None if row is None else row["migration"], inbox_upkeep.census(tx)


def _backup(tx: db.Tx) -> dict[str, Any] | None:
    """The newest backup, and the verdict of the last drill; None before the migration that knows of them."""
    found = tx.execute("SELECT to_regclass('platform.backups') IS NOT NULL AS known").fetchone()
    if not found or not found["known"]:
        return None
    return tx.execute(
        """
        SELECT extract(epoch FROM clock_timestamp() - max(finished_at)) / 3600 AS age_hours,
               max(verified_at) AS verified_at,
               (
                   SELECT verified_at IS NULL
                   FROM platform.backups
                   WHERE drilled_at IS NOT NULL
                   ORDER BY drilled_at DESC
                   LIMIT 1
               ) AS refuted,
               (
                   SELECT extract(epoch FROM clock_timestamp() - min(applied_at)) / 3600
                   FROM public.schema_migrations
               ) AS stack_hours
        FROM platform.backups
        WHERE deleted_at IS NULL
        """
    ).fetchone()


def _is_unsafe(backup: dict[str, Any]) -> bool:
    """No backup for two days, which a new stack has anyway, or the last drill did not find what it should."""
    since = backup["stack_hours"] if backup["age_hours"] is None else backup["age_hours"]
    return bool(backup["refuted"]) or (since is not None and since > BACKUP_HOURS)


def _rounded(hours: Decimal | None) -> float | None:
    return None if hours is None else round(float(hours), 1)


def _report(status: str, checks: dict[str, Any]) -> dict[str, Any]:
    return {"status": status, "timestamp": datetime.now(UTC).isoformat(), "checks": checks}
