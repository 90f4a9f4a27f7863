"""Webhook events that failed or wait, tried again: each minute, and when what they wait for arrives.

A webhook that makes its subject replays what waits for it by itself. This worker is for the rest:
failed events whose rest is over, and subjects that no webhook made (by a user's first session token, or a
caller who began a deployment).
"""

import json
import time
from collections.abc import Mapping
from typing import Any, LiteralString
from uuid import UUID

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from backplane import db, deployments, inbox, inbox_upkeep, outbox
from backplane.config import settings
from backplane.senders import SENDERS

ROUND = 100  # rows a look
MARGIN = 15.0  # seconds kept back, more than an event takes

logger = Logger()
metrics = Metrics(namespace="Backplane", service="backplane")


@logger.inject_lambda_context(clear_state=True)
def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:
    """From the queue answers SQS's batchItemFailures; else {ok, status: count} of what was tried."""
    db.set_deadline(context.get_remaining_time_in_millis() / 1000)
    answer = _arrivals(event["Records"]) if "Records" in event else _due(context)
    outbox.poke()
    return answer


def _due(context: LambdaContext) -> dict[str, Any]:
    """Tries every row that is due, as long as there is time."""
    ends = time.monotonic() + context.get_remaining_time_in_millis() / 1000 - MARGIN
    counts: dict[str, int] = {}
    while time.monotonic() < ends and (rows := inbox_upkeep.due(ROUND)):
        for inbox_id in rows:
            status = inbox_upkeep.retry(inbox_id, SENDERS)
            counts[status] = counts.get(status, 0) + 1
            if time.monotonic() >= ends:
                break
    if counts:
        logger.info("tried again", counts=counts)
    _report(db.run(inbox_upkeep.census))
    return {"ok": "failed" not in counts, **counts}


def _report(census: inbox_upkeep.Census) -> None:
    """What the template's alarms watch: events that need a person, told for a day."""
    metrics.add_dimension(name="stage", value=settings().stage)
    for name, count in (
        ("WebhooksDead", census.newly_dead),
        ("WebhooksQuarantined", census.newly_quarantined),
        ("WebhooksParkedLong", census.parked_long),
    ):
        metrics.add_metric(name=name, unit=MetricUnit.Count, value=count)
    metrics.flush_metrics()


def _arrivals(records: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Replays what waits for what the messages tell of."""
    failures = []
    for record in records:
        try:
            for subject in _subjects(json.loads(record["body"])):
                inbox.replay(subject, SENDERS)
        except Exception:  # the edge of a message: it comes again, and ends in the dead-letter queue
            logger.exception("an arrival failed", message_id=record["messageId"])
            failures.append({"itemIdentifier": record["messageId"]})
    return {"batchItemFailures": failures}


def _subjects(message: Mapping[str, Any]) -> list[str]:
    """The names under which events wait for what a domain event made.

    Raises KeyError where the message is not one of our bus's.
    """
    data = message["detail"]["data"]
    match message["detail-type"]:
        case "user.created":
            return _of_clerk(
                "clerk.user", "SELECT clerk_id FROM identity.users WHERE id = %s", data["user_id"]
            )
        case "organization.created":
            query = "SELECT clerk_id FROM tenancy.organizations WHERE id = %s"
            return _of_clerk("clerk.organization", query, data["organization_id"])
        case "deployment.started":
            return db.run(lambda tx: deployments.subjects(tx, UUID(data["deployment_id"])))
        case other:
            raise KeyError(f"{other} makes nothing that events wait for")


def _of_clerk(kind: str, query: LiteralString, made: str) -> list[str]:
    row = db.run(lambda tx: tx.execute(query, [made]).fetchone())
    return [] if row is None or row["clerk_id"] is None else [f"{kind}:{row['clerk_id']}"]
