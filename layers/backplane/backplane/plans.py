"""Plans: what is for sale, and what a plan gives. What is used of it is limits.py's."""

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from pydantic import BaseModel

from backplane import db

Tier = Literal["free", "starter", "pro", "super", "enterprise"]


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
    rollover: Literal["none", "capped", "all"]  # of what is left when a period ends
    rollover_cap: int | None
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


@dataclass(frozen=True, slots=True)
class BilledPlan:
    """The plan a subscription is for."""

    id: UUID
    key: str
    tier: Tier
    credits: int
    trial_credits: int


@dataclass(frozen=True, slots=True)
class PricedPlan(BilledPlan):
    """The plan behind one of Stripe's prices."""

    interval: Literal["month", "year"]
    price_id: str


def catalog(tx: db.Tx) -> Catalog:
    """The active plans and packs, in the operator's order."""
    plans = tx.execute(
        """
        SELECT p.key, p.tier, p.name, p.description, p.clerk_plan_id, p.credits, p.currency,
               p.rollover, p.rollover_cap,
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
    row = tx.execute("SELECT * FROM billing.plan_of_prices(%s)", [price_ids]).fetchone()
    return None if row is None else PricedPlan(**row)


def find_by_clerk(tx: db.Tx, clerk_plan_id: str | None, slug: str | None) -> BilledPlan | None:
    """The plan that Clerk names by its id, or by its slug where one of the two has no id to compare."""
    row = tx.execute(
        """
        SELECT id, key, tier, credits, trial_credits
        FROM billing.plans
        WHERE clerk_plan_id = %(clerk_plan_id)s
           OR clerk_slug = %(slug)s AND (clerk_plan_id IS NULL OR %(clerk_plan_id)s::text IS NULL)
        ORDER BY clerk_plan_id IS NULL
        LIMIT 1
        """,
        {"clerk_plan_id": clerk_plan_id, "slug": slug},
    ).fetchone()
    return None if row is None else BilledPlan(**row)


def of_subscription(tx: db.Tx, provider: str, provider_subscription_id: str) -> BilledPlan | None:
    """The plan of a stored subscription."""
    row = tx.execute(
        """
        SELECT p.id, p.key, p.tier, p.credits, p.trial_credits
        FROM billing.subscriptions AS s
        JOIN billing.plans AS p ON p.id = s.plan_id
        WHERE s.provider = %s AND s.provider_subscription_id = %s
        """,
        [provider, provider_subscription_id],
    ).fetchone()
    return None if row is None else BilledPlan(**row)


def find_pack(tx: db.Tx, pack_id: str) -> Pack | None:
    """A pack, active or not: what was paid for is granted."""
    row = tx.execute(
        "SELECT id, name, credits, price_id FROM billing.credit_packs WHERE id = %s", [pack_id]
    ).fetchone()
    return None if row is None else Pack.model_validate(row)


def is_for_sale(tx: db.Tx, price_id: str) -> bool:
    """Whether an active plan has the price."""
    row = tx.execute(
        """
        SELECT 1
        FROM billing.plan_prices AS pp
        JOIN billing.plans AS p ON p.id = pp.plan_id
        WHERE pp.price_id = %s AND p.active
        """,
        [price_id],
    ).fetchone()
    return row is not None


def pack_price(tx: db.Tx, pack_id: str) -> str | None:
    """The price of a pack that is for sale."""
    row = tx.execute(
        "SELECT price_id FROM billing.credit_packs WHERE id = %s AND active", [pack_id]
    ).fetchone()
    return None if row is None else row["price_id"]


def find_packs_by_prices(tx: db.Tx, price_ids: list[str]) -> dict[str, Pack]:
    """The packs among prices, by price, active or not."""
    rows = tx.execute(
        "SELECT id, name, credits, price_id FROM billing.credit_packs WHERE price_id = ANY(%s)", [price_ids]
    ).fetchall()
    return {row["price_id"]: Pack.model_validate(row) for row in rows}
