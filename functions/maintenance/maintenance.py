"""The nightly upkeep: what is of no more use goes, partitions come and go, statistics are renewed.

TASKS says what, one line each. Each may be run at any time, by two at once, and be killed anywhere: its
work is done in small transactions, and what is left is done the next night.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import analysis
import partition_upkeep
import psycopg
from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from backplane import db, erasure, idempotency, inbox_upkeep, invitations, limits, outbox, supabase_tokens
from backplane.config import settings
from backplane.problems import Unavailable

BATCH = 1000  # rows a transaction: short locks, and little to do again after a kill
MARGIN = 10.0  # seconds kept back to finish a batch in

logger = Logger()
metrics = Metrics(namespace="Backplane", service="backplane")


@dataclass(frozen=True, slots=True)
class Task:
    """`work(ends)` answers how many it did (rows, partitions, tables) and whether those were all; it begins
    nothing after `ends` on time.monotonic's clock.
    """

    name: str
    work: Callable[[float], tuple[int, bool]]


def in_batches(purge: Callable[[db.Tx, int], int]) -> Callable[[float], tuple[int, bool]]:
    """Of `purge(tx, limit)`, which does away with at most so many rows and answers how many: all of it."""

    def work(ends: float) -> tuple[int, bool]:
        rows = 0
        while time.monotonic() < ends:
            batch = db.run(lambda tx: purge(tx, BATCH))
            rows += batch
            if batch < BATCH:
                return rows, True
            logger.info("purging", rows=rows)
        return rows, False

    return work


TASKS = (
    Task("partitions", partition_upkeep.keep_up),  # first: without one, rows go where they are in the way
    Task(
        "webhook_bodies",
        in_batches(
            lambda tx, limit: inbox_upkeep.trim_bodies(tx, days=settings().webhook_body_days, limit=limit)
        ),
    ),
    Task(
        "quarantined_bodies",
        in_batches(
            lambda tx, limit: inbox_upkeep.trim_quarantined(
                tx, days=settings().webhook_body_days, limit=limit
            )
        ),
    ),
    Task(
        "published_events",
        in_batches(lambda tx, limit: outbox.purge(tx, days=settings().published_event_days, limit=limit)),
    ),
    Task(
        "late_bodies_of_the_erased",
        in_batches(lambda tx, limit: erasure.forget_late_bodies(tx, limit=limit)),
    ),
    Task("oauth_states", in_batches(lambda tx, limit: supabase_tokens.purge_states(tx, limit=limit))),
    Task("idempotency_keys", in_batches(lambda tx, limit: idempotency.purge(tx, limit=limit))),
    Task("invitations", in_batches(lambda tx, limit: invitations.purge(tx, limit=limit))),
    Task("daily_counters", in_batches(lambda tx, limit: limits.purge(tx, limit=limit))),
    Task("statistics", analysis.renew),  # last: of what is left
)


@logger.inject_lambda_context(clear_state=True)
@metrics.log_metrics
def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001  a schedule says nothing
    """Answers {ok, complete, done: {task: count}, failed: [task]}. What is left is done the next night."""
    remaining = context.get_remaining_time_in_millis() / 1000
    ends = time.monotonic() + remaining - MARGIN
    db.set_deadline(remaining)
    done: dict[str, int] = {}
    failed = []
    complete = True
    for task in TASKS:
        try:
            began = time.monotonic()
            done[task.name], finished = task.work(ends)
        except (psycopg.Error, Unavailable):  # one task's defect must not stop the others
            logger.exception("a task failed", task=task.name)
            failed.append(task.name)
        else:
            complete = complete and finished
            seconds = round(time.monotonic() - began, 3)
            logger.info("task", task=task.name, done=done[task.name], finished=finished, seconds=seconds)
    metrics.add_dimension(name="stage", value=settings().stage)
    metrics.add_metric(name="MaintenanceFailures", unit=MetricUnit.Count, value=len(failed) + (not complete))
    metrics.add_metric(name="MaintenanceDone", unit=MetricUnit.Count, value=sum(done.values()))
    logger.info("maintained", done=done, complete=complete)
    return {"ok": not failed and complete, "complete": complete, "done": done, "failed": failed}
