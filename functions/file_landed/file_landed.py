"""What S3 tells of uploads, through EventBridge and a queue: stored, or rejected and taken away.

Events come more than once and in any order. An object's row decides: only what is granted can become stored,
once; every other version that lands under its key is deleted. A bundle of files is never stored: it is saved
while its grant lasts, or goes with it.
"""

import json
from collections.abc import Mapping
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from backplane import buckets, db, image_sizes, outbox, uploads
from backplane.config import settings

PATIENCE = 3  # times an unknown key is looked up: its grant may be about to be committed

logger = Logger()
metrics = Metrics(namespace="Backplane", service="backplane")


class UnknownYetError(LookupError):
    """Nobody was granted this key, so far."""


@logger.inject_lambda_context(clear_state=True)
@metrics.log_metrics
def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answers SQS's batchItemFailures."""
    db.set_deadline(context.get_remaining_time_in_millis() / 1000)
    metrics.add_dimension(name="stage", value=settings().stage)
    metrics.add_metric(name="UnknownObjects", unit=MetricUnit.Count, value=0)
    failures = []
    for record in event["Records"]:
        try:
            _landed(
                json.loads(record["body"])["detail"],
                times=int(record["attributes"]["ApproximateReceiveCount"]),
            )
        except Exception:  # the edge of a message: it comes again, and ends in the dead-letter queue
            logger.exception("a landing failed", message_id=record["messageId"])
            failures.append({"itemIdentifier": record["messageId"]})
    outbox.poke()
    return {"batchItemFailures": failures}


def _landed(detail: Mapping[str, Any], *, times: int) -> None:
    """`detail` is S3's of an Object Created event; `times` how often it has come."""
    told = detail["object"]
    key, version = told["key"], told["version-id"]
    granted = db.run(lambda tx: uploads.of_key(tx, key))
    if granted is None:
        if times < PATIENCE:
            raise UnknownYetError(key)
        logger.error("an object that nobody was granted", key=key, version=version)
        metrics.add_metric(name="UnknownObjects", unit=MetricUnit.Count, value=1)
        db.run(lambda tx: uploads.record_unknown(tx, key, version, int(told["size"])))
    elif granted.state == "granted":
        _judge(key, version, granted)
    elif not (granted.state == "stored" and granted.s3_version == version):
        buckets.delete_version(key, version)  # put over what was stored, or too late


def _judge(key: str, version: str, granted: uploads.Row) -> None:
    landed = buckets.look(key, version, image_sizes.head_of(granted.content_type))
    if landed is None:  # taken away since
        return
    reason = uploads.fault(granted, landed)
    if reason is None and granted.kind == "bundle":
        return  # it is its grant's until it is saved, and given back with that
    if reason is None:
        stored = db.run(lambda tx: uploads.store(tx, granted, landed))
    else:
        logger.warning("rejected", key=key, reason=reason)
        stored = False
        db.run(lambda tx: uploads.reject(tx, granted, reason))
    if not stored and not _is_in_force(key, version):
        buckets.delete_version(key, version)


def _is_in_force(key: str, version: str) -> bool:
    """Whether another delivery of the same event, at the same time, has stored it."""
    row = db.run(lambda tx: uploads.of_key(tx, key))
    return row is not None and row.state == "stored" and row.s3_version == version
