"""Health: whether the database answers, its migrations are the deployed ones and the inbox is well."""

import json
import time
from datetime import UTC, datetime
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from backplane import db, inbox_upkeep, requests
from backplane.problems import Unavailable
from backplane.schema import LATEST_MIGRATION

# The worker looks each minute: an event that is due for longer tells that it does not.
OVERDUE_SECONDS = 900

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
        migration, inbox = db.run(_read)
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
        "backup": {"age_hours": None, "verified_at": None},
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
    return _report("degraded" if behind or not _is_well(inbox) else "healthy", checks)


def _is_well(inbox: inbox_upkeep.Census) -> bool:
    """Whether events get through.

    One that waits for its subject, however long, is no defect of ours (the worker's metric
    WebhooksParkedLong tells of it). One given up is told for a day, else it would hide the next.
    """
    return inbox.failed == 0 and inbox.newly_dead == 0 and inbox.overdue_seconds <= OVERDUE_SECONDS


def _read(tx: db.Tx) -> tuple[str | None, inbox_upkeep.Census]:
    row = tx.execute("SELECT max(version) AS migration FROM public.schema_migrations").fetchone()
    return None if row is None else row["migration"], inbox_upkeep.census(tx)


def _report(status: str, checks: dict[str, Any]) -> dict[str, Any]:
    return {"status": status, "timestamp": datetime.now(UTC).isoformat(), "checks": checks}
