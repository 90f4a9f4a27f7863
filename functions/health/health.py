"""Health: whether the database answers, its migrations are the deployed ones and the inbox is well."""

import json
import time
from datetime import UTC, datetime
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from backplane import db, requests
from backplane.problems import Unavailable
from backplane.schema import LATEST_MIGRATION

# An event that has waited longer than this is more than a late webhook.
OLDEST_SECONDS = 3600

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
        row = db.run(_read)
    except Unavailable as problem:
        logger.warning("unhealthy", detail=problem.detail)
        return _report("unhealthy", {"database": {"error": "The database does not answer."}})
    except Exception:  # the edge: no migrations yet, a login without its rights; the log says which
        logger.exception("unhealthy")
        return _report("unhealthy", {"database": {"error": "The database answers, but not with our tables."}})
    latency = round((time.perf_counter() - started) * 1000, 1)
    checks = {
        "database": {"latency_ms": latency},
        "migrations": {"current": row["migration"], "latest": LATEST_MIGRATION},
        "backup": {"age_hours": None, "verified_at": None},
        "inbox": {key: row[key] for key in ("parked", "failed", "oldest_seconds")},
    }
    waits = row["failed"] > 0 or (row["oldest_seconds"] or 0) > OLDEST_SECONDS
    behind = (row["migration"] or "") < LATEST_MIGRATION
    return _report("degraded" if waits or behind else "healthy", checks)


def _read(tx: db.Tx) -> dict[str, Any]:
    row = tx.execute(
        """
        SELECT (SELECT max(version) FROM public.schema_migrations) AS migration,
               count(*) FILTER (WHERE status = 'parked') AS parked,
               count(*) FILTER (WHERE status IN ('failed', 'dead')) AS failed,
               extract(epoch FROM clock_timestamp() - min(received_at))::bigint AS oldest_seconds
        FROM platform.webhook_inbox
        WHERE status IN ('parked', 'failed', 'dead')
        """
    ).fetchone()
    if row is None:
        raise RuntimeError("an aggregate answers one row")
    return row


def _report(status: str, checks: dict[str, Any]) -> dict[str, Any]:
    return {"status": status, "timestamp": datetime.now(UTC).isoformat(), "checks": checks}
