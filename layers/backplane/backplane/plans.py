"""Plans: what is for sale, what a plan allows, and what an organisation has."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel

from backplane import db, periods

Tier = Literal["free", "starter", "pro", "super", "enterprise"]

# Limits counted anew each period. The others count what stands (projects, bytes).
PERIODIC: dict[str, periods.Period] = {
    "app.messages_per_day": "day",
    "app.messages_per_month": "month",
    "workflow.executions_per_month": "month",
}


class Price(BaseModel):
    price_id: str
    interval: Literal["month", "year"]


class Plan(BaseModel):
    key: str
    tier: Tier
    name: str
    description: str | None
    clerk_plan_id: str | None
    credits: int  # a month; on the free plan once, at sign-up
    currency: str
    price_monthly_minor: int | None
    price_yearly_minor: int | None
    prices: list[Price]
    limits: dict[str, int]  # -1: unlimited
    features: list[str]
    badge: str | None
    highlight: bool
    cta_type: str
    cta_label: str | None
    cta_url: str | None


class Pack(BaseModel):
    id: str
    name: str
    credits: int
    price_id: str | None


class Catalog(BaseModel):
    plans: list[Plan]
    packs: list[Pack]


class Limit(BaseModel):
    limit: int  # -1: unlimited
    used: int
    resets_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class PricedPlan:
    """The plan behind a sender's price."""

    id: UUID
    key: str
    tier: Tier
    credits: int
    trial_credits: int
    interval: Literal["month", "year"]


def catalog(tx: db.Tx) -> Catalog:
    """The active plans and packs, in the operator's order."""
    plans = tx.execute(
        """
        SELECT p.key, p.tier, p.name, p.description, p.clerk_plan_id, p.credits, p.currency,
               p.price_monthly_minor, p.price_yearly_minor, p.features, p.badge, p.highlight,
               p.cta_type, p.cta_label, p.cta_url,
               coalesce((
                   SELECT jsonb_agg(jsonb_build_object('price_id', pp.price_id, 'interval', pp."interval")
                                    ORDER BY pp."interval", pp.price_id)
                   FROM billing.plan_prices AS pp
                   WHERE pp.plan_id = p.id), '[]') AS prices,
               coalesce((
                   SELECT jsonb_object_agg(l.key, l.value)
                   FROM billing.plan_limits AS l
                   WHERE l.plan_id = p.id), '{}') AS limits
        FROM billing.plans AS p
        WHERE p.active
        ORDER BY p.sort_order, p.key
        """
    ).fetchall()
    packs = tx.execute(
        "SELECT id, name, credits, price_id FROM billing.credit_packs WHERE active ORDER BY credits, id"
    ).fetchall()
    return Catalog(
        plans=[Plan.model_validate(row) for row in plans], packs=[Pack.model_validate(row) for row in packs]
    )


def find_by_prices(tx: db.Tx, price_ids: list[str]) -> PricedPlan | None:
    """The highest plan among the prices of a subscription's items, or None where none is a plan's."""
    row = tx.execute(
        """
        SELECT p.id, p.key, p.tier, p.credits, p.trial_credits, pp."interval"
        FROM billing.plan_prices AS pp
        JOIN billing.plans AS p ON p.id = pp.plan_id
        WHERE pp.price_id = ANY(%(price_ids)s)
        ORDER BY p.tier DESC, p.credits DESC, pp.price_id
        LIMIT 1
        """,
        {"price_ids": price_ids},
    ).fetchone()
    return None if row is None else PricedPlan(**row)


def find_pack(tx: db.Tx, pack_id: str) -> Pack | None:
    """A pack, active or not: what was paid for is granted."""
    row = tx.execute(
        "SELECT id, name, credits, price_id FROM billing.credit_packs WHERE id = %s", [pack_id]
    ).fetchone()
    return None if row is None else Pack.model_validate(row)


def limits(tx: db.Tx, organization_id: UUID, plan_id: UUID) -> dict[str, Limit]:
    """Each limit of the plan with what the organisation has used of it, and when it starts anew."""
    rows = tx.execute(
        """
        SELECT l.key, l.value AS "limit", o.timezone, clock_timestamp() AS now
        FROM billing.plan_limits AS l
        CROSS JOIN tenancy.organizations AS o
        WHERE l.plan_id = %(plan_id)s AND o.id = %(organization_id)s
        ORDER BY l.key
        """,
        {"plan_id": plan_id, "organization_id": organization_id},
    ).fetchall()
    used = _used(tx, organization_id)
    answer = {}
    for row in rows:
        period = PERIODIC.get(row["key"])
        if period is None:
            answer[row["key"]] = Limit(limit=row["limit"], used=used.get((row["key"], None), 0))
        else:
            start, end = periods.around(row["now"], period, row["timezone"])
            answer[row["key"]] = Limit(
                limit=row["limit"], used=used.get((row["key"], start), 0), resets_at=end
            )
    return answer


def _used(tx: db.Tx, organization_id: UUID) -> dict[tuple[str, datetime | None], int]:
    """Counters by key and period start; None stands for a stock, which has no period."""
    rows: list[dict[str, Any]] = tx.execute(
        """
        SELECT key, nullif(period_start, '-infinity') AS period_start, used
        FROM billing.usage_counters
        WHERE organization_id = %(organization_id)s
          AND (period_start = '-infinity' OR period_start > clock_timestamp() - interval '32 days')
        """,
        {"organization_id": organization_id},
    ).fetchall()
    return {(row["key"], row["period_start"]): row["used"] for row in rows}
