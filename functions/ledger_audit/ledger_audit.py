"""The nightly proof of every account's books, and the sweep that books what has expired.

Each account is recomputed from its entries, live grants and open holds. What does not add up is
logged, counted in the metric LedgerAuditFailures (the template's alarm watches it), and answered.
"""

import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import psycopg
from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from backplane import audits, db
from backplane.config import settings
from backplane.problems import Unavailable

BATCH = 200  # accounts a look: a statement each for the next ones and for their faults
MARGIN = 10.0  # seconds kept back to finish a batch in

logger = Logger()
metrics = Metrics(namespace="Backplane", service="backplane")


@logger.inject_lambda_context(clear_state=True)
@metrics.log_metrics
def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001  a schedule says nothing
    """Answers {ok, accounts, complete, wrong: [{organization_id, faults}]}.

    `complete` is false where the time did not suffice for every account; that is not ok either.
    """
    remaining = context.get_remaining_time_in_millis() / 1000
    db.set_deadline(remaining)
    failures = 1  # an audit that breaks off proves nothing
    try:
        accounts, complete, wrong = _audit(ends=time.monotonic() + remaining - MARGIN)
        failures = len(wrong) + (not complete)
    finally:
        metrics.add_dimension(name="stage", value=settings().stage)
        metrics.add_metric(name="LedgerAuditFailures", unit=MetricUnit.Count, value=failures)
    if not complete:
        logger.error("the time did not suffice for every account", accounts=accounts)
    return {"ok": failures == 0, "accounts": accounts, "complete": complete, "wrong": wrong}


def _audit(*, ends: float) -> tuple[int, bool, list[dict[str, Any]]]:
    """How many accounts were checked, whether all were, and which are wrong."""
    accounts = 0
    wrong: list[dict[str, Any]] = []
    batch = _next(None)
    while batch and time.monotonic() < ends:
        for fault in _check(batch):
            logger.error("an account does not add up", extra=fault)
            wrong.append(fault)
        accounts += len(batch)
        batch = _next(batch[-1][0])
    return accounts, not batch, wrong


def _next(after: UUID | None) -> list[tuple[UUID, bool]]:
    return db.run(lambda tx: audits.accounts(tx, after=after, limit=BATCH))


def _check(batch: list[tuple[UUID, bool]]) -> list[dict[str, Any]]:
    """The accounts of a batch that are wrong, once what is due in them is booked."""
    faults: dict[UUID, list[str]] = {}
    for organization_id, due in batch:
        if due and (unbooked := _book(organization_id)):
            faults[organization_id] = [unbooked]
    for found in db.run(lambda tx: audits.faults(tx, [organization_id for organization_id, _ in batch])):
        faults.setdefault(found.organization_id, []).extend(found.faults)
    return [
        {"organization_id": str(organization_id), "faults": whys} for organization_id, whys in faults.items()
    ]


def _book(organization_id: UUID) -> str | None:
    """Books what is due. One account's defect must not hide the others': it is answered as a fault."""
    try:
        audits.book_due(organization_id)
    except Unavailable as error:  # busy: its own next mutation books it, or the next night
        logger.warning("not booked", organization_id=str(organization_id), detail=error.detail)
    except psycopg.Error as error:
        logger.exception("what is due cannot be booked", organization_id=str(organization_id))
        return f"what is due cannot be booked ({error.sqlstate})"
    return None
