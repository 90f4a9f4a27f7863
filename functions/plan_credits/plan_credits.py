"""A year's credits, month by month: each on its anchor day, once, for as long as the subscription goes on.

The first month comes with what pays the year (an invoice, a Clerk item); this grants the eleven others. A
month that was missed is made good, in order: a later month's grant ends the one before, unless the plan lets
credits go over, but each has paid what debt there was. The business fact that grants once is the month
(`month:<subscription>:<day>`), so two runs at once, or one again, grant nothing twice.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import psycopg
from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from backplane import claw_backs, db, ledger, outbox, payments
from backplane.config import settings
from backplane.payments import Payment
from backplane.periods import add_months
from backplane.problems import Unavailable

BATCH = 200  # subscriptions a look
MARGIN = 10.0  # seconds kept back to finish one in

logger = Logger()
metrics = Metrics(namespace="Backplane", service="backplane")


@dataclass(frozen=True, slots=True)
class Yearly:
    """A subscription that is paid for a year, and the months it was granted already."""

    id: UUID
    organization_id: UUID
    provider: Literal["stripe", "clerk"]
    provider_subscription_id: str
    plan_id: UUID
    credits: int  # a month
    current_period_start: datetime
    current_period_end: datetime
    granted: list[str]  # source keys
    now: datetime  # on the database's clock

    def source_key(self, month: datetime) -> str:
        return f"month:{self.provider_subscription_id}:{month:%Y-%m-%d}"

    @property
    def missing(self) -> list[tuple[datetime, datetime]]:
        """The months that began, after the one that was paid with the year, and are not granted yet."""
        months = months_of_year(self.current_period_start, self.current_period_end)
        return [
            (start, end)
            for start, end in months
            if start <= self.now and self.source_key(start) not in self.granted
        ]


@logger.inject_lambda_context(clear_state=True)
@metrics.log_metrics
def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001  a schedule says nothing
    """Answers {ok, complete, subscriptions, granted, failed: [subscription ids]}.

    `complete` is false where the time did not suffice; the next run goes on, since what is granted stays.
    """
    remaining = context.get_remaining_time_in_millis() / 1000
    db.set_deadline(remaining)
    failures = 1  # a run that breaks off has failed
    try:
        answer = _grant_all(ends=time.monotonic() + remaining - MARGIN)
        failures = len(answer["failed"]) + (not answer["complete"])
    finally:
        metrics.add_dimension(name="stage", value=settings().stage)
        metrics.add_metric(name="PlanCreditsFailures", unit=MetricUnit.Count, value=failures)
    logger.info("granted months", extra={"answer": answer})
    outbox.poke()
    return {"ok": failures == 0, **answer}


def _grant_all(*, ends: float) -> dict[str, Any]:
    seen = granted = 0
    failed: list[str] = []
    batch = _next(UUID(int=0))
    while batch and time.monotonic() < ends:
        for subscription in batch:
            try:
                granted += _grant(subscription.id) if subscription.missing else 0
            except (psycopg.Error, Unavailable):  # one account's defect must not stop the others
                logger.exception("a month is not granted", subscription_id=str(subscription.id))
                failed.append(str(subscription.id))
            seen += 1
            if time.monotonic() >= ends:
                break
        else:
            batch = _next(batch[-1].id)
    return {"complete": not batch, "subscriptions": seen, "granted": granted, "failed": failed}


def months_of_year(start: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    """The months of a period that are not its first: start and end of each, counted from the anchor, which
    is a year before the period's end: 31 January, 28 February, 31 March.

    A period may begin later than the anchor, with a part of a year.
    """
    anchor = add_months(end, -12)
    months = [(add_months(anchor, number), add_months(anchor, number + 1)) for number in range(12)]
    return [month for month in months if month[0] > start]


def _next(after: UUID) -> list[Yearly]:
    return db.run(lambda tx: _yearly(tx, "s.id > %(id)s", after))


def _grant(subscription_id: UUID) -> int:
    """Grants what a subscription lacks. Answers how many months that were."""
    return db.run(lambda tx: _grant_missing(tx, subscription_id))


def _grant_missing(tx: db.Tx, subscription_id: UUID) -> int:
    """Under the subscription's row lock, which whatever changes or ends it takes too.

    What was refunded or disputed of the year's payment is taken back of its months at once.
    """
    tx.execute("SELECT 1 FROM billing.subscriptions WHERE id = %s FOR UPDATE", [subscription_id])
    months = 0
    for yearly in _yearly(tx, "s.id = %(id)s", subscription_id):
        missing = yearly.missing
        payment = _payment(tx, yearly, missing[-1][1]) if missing else None  # its lock before the account's
        for start, end in missing:
            _, made = ledger.grant(
                tx,
                ledger.Grant(
                    organization_id=yearly.organization_id,
                    source="plan",
                    source_key=yearly.source_key(start),
                    amount=yearly.credits,
                    actor="system",
                    expires_at=end + ledger.PLAN_GRACE,
                    plan_id=yearly.plan_id,
                    provider=yearly.provider,
                    provider_subscription_id=yearly.provider_subscription_id,
                    period_end=end,
                ),
            )
            months += made
        if payment is not None:
            claw_backs.settle(tx, payment, event_id=yearly.source_key(missing[-1][0]))
    return months


def _payment(tx: db.Tx, yearly: Yearly, month_end: datetime) -> Payment | None:
    if yearly.provider != "stripe":
        return None
    return payments.of_month(tx, yearly.organization_id, yearly.provider_subscription_id, month_end)


def _yearly(tx: db.Tx, which: str, subscription_id: UUID) -> list[Yearly]:
    """Subscriptions in order of their ids that go on and are paid for longer than a month.

    Active only: a trial's credits are the trial's, and what is past due is made good once it is paid.
    """
    rows = tx.execute(
        f"""
        SELECT s.id, s.organization_id, s.provider::text, s.provider_subscription_id, s.plan_id, p.credits,
               s.current_period_start, s.current_period_end, clock_timestamp() AS now,
               ARRAY(
                   SELECT g.source_key
                   FROM credits.grants AS g
                   WHERE g.provider = s.provider
                     AND g.provider_subscription_id = s.provider_subscription_id
                     AND g.organization_id = s.organization_id
                     AND starts_with(g.source_key, 'month:')
               ) AS granted
        FROM billing.subscriptions AS s
        JOIN billing.plans AS p ON p.id = s.plan_id
        WHERE s.status = 'active'
          AND s.current_period_end > s.current_period_start + interval '32 days'
          AND p.credits > 0
          AND {which}
        ORDER BY s.id
        LIMIT %(limit)s
        """.encode(),
        {"id": subscription_id, "limit": BATCH},
    ).fetchall()
    return [Yearly(**row) for row in rows]
