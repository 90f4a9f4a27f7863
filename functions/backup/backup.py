"""A backup of the whole database, each day and on demand: streamed into S3, or a snapshot of the cluster.

    {}                                       as large as the database is
    {"kind": "dump" | "cluster_snapshot"}    this way

Answers {ok, key, manifest_key, bytes, sha256, seconds}. A failure is raised, so that the invocation counts
as failed; the metric BackupSucceeded, whose silence is an alarm too, tells everybody else.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

import taking
from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from backplane.archives import Manifest
from backplane.config import settings

MARGIN: Final = 30.0  # seconds kept back to abort in, and to say why
TELL_EVERY: Final = 2.0  # seconds

logger = Logger()
metrics = Metrics(namespace="Backplane", service="backplane")


@logger.inject_lambda_context(clear_state=True)
@metrics.log_metrics
def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:
    ends = time.monotonic() + context.get_remaining_time_in_millis() / 1000 - MARGIN
    manifest: Manifest | None = None
    try:
        manifest = taking.take(settings(), kind=_kind(event), ends=ends, report=_Progress())
    except Exception:  # the edge: it is said once, with its cause, and the invocation fails
        logger.exception("no backup was made")
        raise
    finally:
        _measure(manifest)
    answer = {
        "ok": _is_whole(manifest),
        "key": manifest.key,
        "manifest_key": manifest.manifest_key,
        "bytes": manifest.bytes,
        "sha256": manifest.sha256,
        "seconds": manifest.seconds,
    }
    logger.info("backed up", extra=answer)
    return answer


def _kind(event: Mapping[str, Any]) -> str | None:
    kind: str | None = event.get("kind")
    if kind not in {None, "dump", "cluster_snapshot"}:
        raise ValueError(f"unknown kind {kind!r}: it is dump or cluster_snapshot")
    return kind


def _is_whole(manifest: Manifest) -> bool:
    """A snapshot that RDS was still making when the time was up may yet fail."""
    return manifest.snapshot is None or manifest.snapshot.status == "available"


def _measure(manifest: Manifest | None) -> None:
    metrics.add_dimension(name="stage", value=settings().stage)
    succeeded = manifest is not None and _is_whole(manifest)
    metrics.add_metric(name="BackupSucceeded", unit=MetricUnit.Count, value=int(succeeded))
    if manifest:
        metrics.add_metric(name="BackupBytes", unit=MetricUnit.Bytes, value=manifest.bytes)
        metrics.add_metric(name="BackupSeconds", unit=MetricUnit.Seconds, value=manifest.seconds)
        metrics.add_metric(name="BackupRows", unit=MetricUnit.Count, value=sum(manifest.rows.values()))


class _Progress:
    """A line in the log every other second: for `make backup`, and for who wonders what it does so long."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def __call__(self, progress: taking.Progress) -> None:
        if time.monotonic() - self._told >= TELL_EVERY:
            self._told = time.monotonic()
            logger.info(
                "progress",
                extra={
                    "database_bytes": progress.database_bytes,
                    "dumped_bytes": progress.dumped_bytes,
                    "stored_bytes": progress.stored_bytes,
                },
            )
