"""What is kept no longer than it is of use, made small each night. TASKS says what, one line each."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from backplane import db, erasure, idempotency, inbox_upkeep, outbox
from backplane.config import settings
from backplane.problems import Unavailable

BATCH = 1000  # rows a transaction: short locks, and little to do again after a kill
MARGIN = 10.0  # seconds kept back to finish a batch in

logger = Logger()
metrics = Metrics(namespace="Backplane", service="backplane")


@dataclass(frozen=True, slots=True)
class Task:
    """`work(tx, limit)` does away with what is too old, at most so many rows, and answers how many."""

    name: str
    work: Callable[[db.Tx, int], int]


TASKS = (
    Task(
        "webhook_bodies",
        lambda tx, limit: inbox_upkeep.trim_bodies(tx, days=settings().webhook_body_days, limit=limit),
    ),
    Task(
        "quarantined_bodies",
        lambda tx, limit: inbox_upkeep.trim_quarantined(tx, days=settings().webhook_body_days, limit=limit),
    ),
    Task(
        "published_events",
        lambda tx, limit: outbox.purge(tx, days=settings().published_event_days, limit=limit),
    ),
    Task("late_bodies_of_the_erased", lambda tx, limit: erasure.forget_late_bodies(tx, limit=limit)),
    Task("idempotency_keys", lambda tx, limit: idempotency.purge(tx, limit=limit)),
)


@logger.inject_lambda_context(clear_state=True)
@metrics.log_metrics
def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001  a schedule says nothing
    """Answers {ok, complete, done: {task: rows}, failed: [task]}. What is left is done the next night."""
    remaining = context.get_remaining_time_in_millis() / 1000
    ends = time.monotonic() + remaining - MARGIN
    db.set_deadline(remaining)
    done: dict[str, int] = {}
    failed = []
    complete = True
    for task in TASKS:
        try:
            done[task.name], finished = _run(task, ends)
        except (psycopg.Error, Unavailable):  # one task's defect must not stop the others
            logger.exception("a task failed", task=task.name)
            failed.append(task.name)
        else:
            complete = complete and finished
    metrics.add_dimension(name="stage", value=settings().stage)
    metrics.add_metric(name="MaintenanceFailures", unit=MetricUnit.Count, value=len(failed) + (not complete))
    logger.info("maintained", done=done, complete=complete)
    return {"ok": not failed and complete, "complete": complete, "done": done, "failed": failed}


def _run(task: Task, ends: float) -> tuple[int, bool]:
    """How many rows it did, and whether those were all."""
    rows = 0
    while time.monotonic() < ends:
        batch = db.run(lambda tx: task.work(tx, BATCH))
        rows += batch
        if batch < BATCH:
            return rows, True
    return rows, False
