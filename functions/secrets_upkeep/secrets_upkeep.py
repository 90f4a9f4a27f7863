"""Each hour: integrations of deleted organisations go, private keys that no integration names too, and
encrypted fields come under the present key.
"""

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import psycopg
from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from backplane import db, integrations, private_keys, reencryption
from backplane.config import settings
from backplane.field_encryption import UnreadableFieldError
from backplane.problems import Unavailable

BATCH = 50  # rows, each of which asks KMS up to four times
MARGIN = 20.0  # seconds kept back to finish a batch in
GRACE = timedelta(hours=1)  # a younger key's row may be on its way

logger = Logger()
metrics = Metrics(namespace="Backplane", service="backplane")


@logger.inject_lambda_context(clear_state=True)
@metrics.log_metrics
def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001  a schedule says nothing
    """Answers {ok, deleted, strays, reencrypted, unreadable, left}. What is left is done the next hour."""
    remaining = context.get_remaining_time_in_millis() / 1000
    ends = time.monotonic() + remaining - MARGIN
    db.set_deadline(remaining)
    answer: dict[str, Any] = {"deleted": 0, "strays": 0, "reencrypted": 0, "unreadable": 0, "left": 0}
    failed = False
    for task in (_delete, _sweep, _reencrypt):
        try:
            answer |= task(ends)
        except (psycopg.Error, Unavailable, UnreadableFieldError):  # one's trouble must not stop the others
            logger.exception("not kept up")
            failed = True
    metrics.add_dimension(name="stage", value=settings().stage)
    metrics.add_metric(
        name="SecretsUpkeepFailures", unit=MetricUnit.Count, value=answer["unreadable"] + failed
    )
    metrics.add_metric(name="FieldsReencrypted", unit=MetricUnit.Count, value=answer["reencrypted"])
    logger.info("kept up", **answer)
    return {"ok": not failed and not answer["unreadable"], **answer}


def _delete(ends: float) -> dict[str, int]:
    """What organisations had that are deleted: its private keys are strays then."""
    deleted = 0
    while time.monotonic() < ends:
        batch = db.run(lambda tx: integrations.purge_of_the_deleted(tx, limit=BATCH))
        deleted += batch
        if batch < BATCH:
            break
    return {"deleted": deleted}


def _reencrypt(ends: float) -> dict[str, int]:
    done = unreadable = 0
    for fields in reencryption.FIELDS:
        after = None
        while time.monotonic() < ends:
            batch = reencryption.reencrypt(fields, after=after, limit=BATCH)
            done += batch.reencrypted
            unreadable += batch.unreadable
            after = batch.last
            if after is None:
                break
    left = sum(reencryption.left(fields) for fields in reencryption.FIELDS)
    return {"reencrypted": done, "unreadable": unreadable, "left": left}


def _sweep(ends: float) -> dict[str, int]:
    """Private keys of integrations that were deleted or erased, or that never came about."""
    strays = 0
    while time.monotonic() < ends:
        names = db.run(lambda tx: private_keys.strays(tx, older_than=GRACE, limit=BATCH))
        for name in names:
            private_keys.delete(name)
            db.run(lambda tx: private_keys.forget(tx, name))  # noqa: B023  at once
        strays += len(names)
        if len(names) < BATCH:
            break
    return {"strays": strays}
