"""What a paid Stripe invoice gives in credits: how many, for which period, until when."""

import logging
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from backplane import plans
from backplane.config import settings
from backplane.db import Tx
from backplane.inbox import Park, Quarantine
from backplane.periods import add_months
from backplane.plans import PricedPlan
from backplane.stripe_objects import Invoice, InvoiceLine

_logger = logging.getLogger("backplane.invoice_credits")


@dataclass(frozen=True, slots=True)
class Credit:
    """What an invoice gives, and which time it paid for. A grant of a later `period_end` ends it."""

    plan: PricedPlan
    amount: int
    period_end: datetime
    lasts_until: datetime
    paid_for: tuple[datetime, datetime]


def of_period(tx: Tx, invoice: Invoice) -> Credit:
    """A new period's credits in full, by the line that pays it; a trial's where that line is free."""
    lines = [line for line in invoice.lines.data if not line.is_proration and line.price_id is not None]
    line, plan = _best(tx, lines, invoice)
    end = _credit_period_end(line, plan)
    return Credit(plan, plan.trial_credits if line.amount == 0 else plan.credits, end, end, _time(line))


def of_change(tx: Tx, invoice: Invoice) -> Credit | None:
    """How many more credits the plans charged have than those credited; None where none is charged.

    An invoice may settle several changes at once: up, down and up again is one step up. The
    difference belongs to the period that was running, whose own credits it must not end, also
    where the change begins a new one (another interval).
    """
    lines = [line for line in invoice.lines.data if line.price_id is not None]
    charged = [line for line in lines if line.amount > 0]  # a line of nothing is a trial's
    if not charged:
        return None
    line, plan = _best(tx, charged, invoice)
    taken = _priced(tx, [line for line in lines if line.amount < 0])
    ends = [_credit_period_end(*pair) for pair in [(line, plan), *taken]]
    amount = _credits(_priced(tx, charged)) - _credits(taken)
    return Credit(plan, amount, min(ends), max(ends), _time(line))


def not_yet_granted(tx: Tx, organization_id: UUID, subscription: str, credit: Credit) -> int:
    """How much of a change's credit the period's grants of the subscription have not given already.

    A grant covers the steps from the plan it came from up to its own: who goes down and up again
    within a period, each time on an invoice of its own that the credit note of the last one pays,
    climbs the same steps, and is granted them once.
    """
    rows = tx.execute(
        """
        SELECT p.credits - g.amount AS low, p.credits AS high
        FROM credits.grants AS g
        JOIN billing.plans AS p ON p.id = g.plan_id
        WHERE g.organization_id = %(organization_id)s
          AND g.provider = 'stripe'
          AND g.provider_subscription_id = %(subscription)s
          AND g.period_end = %(period_end)s
        ORDER BY low, high
        """,
        {
            "organization_id": organization_id,
            "subscription": subscription,
            "period_end": credit.period_end,
        },
    ).fetchall()
    left, climbed = 0, credit.plan.credits - credit.amount
    for row in rows:
        if climbed >= credit.plan.credits:
            break
        left += max(0, min(row["low"], credit.plan.credits) - climbed)
        climbed = max(climbed, row["high"])
    return left + max(0, credit.plan.credits - climbed)


def _time(line: InvoiceLine) -> tuple[datetime, datetime]:
    return line.period.start, line.period.end


def _credits(lines: list[tuple[InvoiceLine, PricedPlan]]) -> int:
    """A tiered price has a line a tier: they count once."""
    return sum({(line.price_id, line.period.start): plan.credits for line, plan in lines}.values())


def _priced(tx: Tx, lines: list[InvoiceLine]) -> list[tuple[InvoiceLine, PricedPlan]]:
    found = [(line, plans.find_by_prices(tx, [line.price_id or ""])) for line in lines]
    return [(line, plan) for line, plan in found if plan is not None]


def _best(tx: Tx, lines: list[InvoiceLine], invoice: Invoice) -> tuple[InvoiceLine, PricedPlan]:
    known = _priced(tx, lines)
    if not known:
        raise unknown_price(
            [line.price_id for line in lines or invoice.lines.data if line.price_id is not None]
        )
    return max(known, key=lambda pair: (pair[1].credits, pair[0].period.end))


def unknown_price(price_ids: list[str], *, of: str = "plan") -> Exception:
    """What to raise where no plan, or pack, has any of the prices: somebody pays for what he does not get.

    Counted in the metric UnknownPrices, which the template's alarm watches, at each try until an
    operator has told us whose the price is.
    """
    if not price_ids:
        return Quarantine("there is no price in it")
    # Imported where it happens: no other webhook needs metrics.
    from aws_lambda_powertools.metrics import MetricUnit, single_metric

    with single_metric(
        name="UnknownPrices",
        unit=MetricUnit.Count,
        value=1,
        namespace="Backplane",
        default_dimensions={"service": "backplane", "stage": settings().stage},
    ):
        reason = f"no {of} has the price {', '.join(price_ids)[:200]}"
        _logger.warning(reason)
    return Park(f"billing.price:{price_ids[0]}", reason)


def _credit_period_end(line: InvoiceLine, plan: PricedPlan) -> datetime:
    """When the month ends that the credits are for. A yearly price is credited month by month,
    counted from the year's anchor.
    """
    if plan.interval == "month":
        return line.period.end
    anchor = add_months(line.period.end, -12)
    ends = (add_months(anchor, months) for months in range(1, 13))
    return next((end for end in ends if end > line.period.start), line.period.end)
