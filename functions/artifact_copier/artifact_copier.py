"""Builds' artefacts into our bucket, before their provider takes them away: as they come, and when it is due.

The queue tells of each as soon as its build has ended. What failed and rests, what a killed copier left
behind and what the queue lost is in the table, and picked up by the schedule.
"""

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final
from uuid import UUID

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext
from copying import copy

from backplane import artifacts, db, outbox
from backplane.config import settings
from backplane.downloads import PUBLIC

MARGIN: Final = 20.0  # seconds kept back to say what became of it
ENOUGH: Final = 300.0  # seconds: with less the schedule begins no other
REACH: Final = PUBLIC  # where artefacts are fetched from; no setting changes it

logger = Logger()
metrics = Metrics(namespace="Backplane", service="backplane")


@logger.inject_lambda_context(clear_state=True)
@metrics.log_metrics
def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:
    """From the queue answers SQS's batchItemFailures; else {ok, state: count} of what was due."""
    remaining = context.get_remaining_time_in_millis() / 1000
    db.set_deadline(remaining)
    ends = time.monotonic() + remaining - MARGIN
    metrics.add_dimension(name="stage", value=settings().stage)
    _count(None)
    answer = _offered(event["Records"], ends) if "Records" in event else _due(ends)
    outbox.poke()
    return answer


def _offered(records: Iterable[Mapping[str, Any]], ends: float) -> dict[str, Any]:
    failures = []
    for record in records:
        try:
            _count(
                copy(
                    UUID(json.loads(record["body"])["detail"]["data"]["artifact_id"]), ends=ends, reach=REACH
                )
            )
        except Exception:  # the edge of a message: it comes again, and ends in the dead-letter queue
            logger.exception("an artefact failed", message_id=record["messageId"])
            failures.append({"itemIdentifier": record["messageId"]})
    return {"batchItemFailures": failures}


def _due(ends: float) -> dict[str, Any]:
    """One after another, as long as there is time for a large one."""
    counts: dict[str, int] = {}
    while time.monotonic() < ends - ENOUGH and (artifact_id := db.run(artifacts.due)) is not None:
        if (state := copy(artifact_id, ends=ends, reach=REACH)) is not None:
            _count(state)
            counts[state] = counts.get(state, 0) + 1
    return {"ok": "failed" not in counts, **counts}


def _count(state: artifacts.State | None) -> None:
    metrics.add_metric(name="ArtifactsStored", unit=MetricUnit.Count, value=int(state == "stored"))
    metrics.add_metric(name="ArtifactsFailed", unit=MetricUnit.Count, value=int(state == "failed"))
