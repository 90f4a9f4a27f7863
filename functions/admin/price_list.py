"""Plans as the operator keeps them: what each costs, gives and allows, whether it is for sale or not."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb
from pydantic import Field, field_validator, model_validator

from backplane import api, audit_log
from backplane.auth import Caller
from backplane.db import Tx
from backplane.plans import Plan, Tier
from backplane.problems import Conflict, InvalidState, NotFound, Unprocessable
from backplane.subscriptions import NOT_ENTITLED

MAX_CREDITS = 1_000_000_000
MAX_MINOR = 1_000_000_000_000

Key = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"\S")]
Label = Annotated[str, Field(min_length=1, max_length=100)]
Identifier = Annotated[str, Field(min_length=1, max_length=255)]
Credits = Annotated[int, Field(ge=0, le=MAX_CREDITS)]
Minor = Annotated[int, Field(ge=0, le=MAX_MINOR)]
LimitKey = Annotated[str, Field(pattern=r"^[a-z]+\.[a-z_]{1,60}$")]
Limit = Annotated[int, Field(ge=-1, le=2**62)]
Feature = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Rollover = Literal["none", "capped", "all"]


class StoredPlan(Plan):
    """With what the public price list leaves out."""

    id: UUID
    clerk_slug: str | None
    trial_credits: int
    active: bool
    sort_order: int
    created_at: datetime
    updated_at: datetime


class NewPrice(api.Body):
    price_id: Identifier
    interval: Literal["month", "year"]


class PlanFields(api.Body):
    """What may be changed of a plan. A list or a map replaces the one before."""

    tier: Tier | None = None
    name: Name | None = None
    description: Annotated[str, Field(max_length=1000)] | None = None
    clerk_plan_id: Identifier | None = None
    clerk_slug: Identifier | None = None
    credits: Credits | None = None
    trial_credits: Credits | None = None
    rollover: Rollover | None = None
    rollover_cap: Annotated[int, Field(ge=1, le=MAX_CREDITS)] | None = None
    currency: Annotated[str, Field(pattern=r"^[a-z]{3}$")] | None = None
    price_monthly_minor: Minor | None = None
    price_yearly_minor: Minor | None = None
    prices: Annotated[list[NewPrice], Field(max_length=50)] | None = None
    limits: Annotated[dict[LimitKey, Limit], Field(max_length=100)] | None = None
    features: Annotated[list[Feature], Field(max_length=100)] | None = None
    active: bool | None = None
    sort_order: Annotated[int, Field(ge=-(2**31), le=2**31)] | None = None
    badge: Label | None = None
    highlight: bool | None = None
    cta_type: Annotated[str, Field(pattern=r"^[a-z_]{1,30}$")] | None = None
    cta_label: Label | None = None
    cta_url: Annotated[str, Field(max_length=2048, pattern=r"^https://[^\s]+$")] | None = None

    @model_validator(mode="after")
    def _nothing_is_taken_away_that_must_be(self) -> Self:
        kept = {"description", "clerk_plan_id", "clerk_slug", "badge", "cta_label", "cta_url", "rollover_cap"}
        kept |= {"price_monthly_minor", "price_yearly_minor"}
        for name in sorted(self.model_fields_set - kept):
            if getattr(self, name) is None:
                raise ValueError(f"{name} cannot be null: leave it out, and it stays as it is")
        return self

    @field_validator("prices")
    @classmethod
    def _each_price_once(cls, prices: list[NewPrice] | None) -> list[NewPrice] | None:
        if prices is not None and len({price.price_id for price in prices}) < len(prices):
            raise ValueError("a price is named twice")
        return prices

    @property
    def columns(self) -> dict[str, Any]:
        """What was sent, but for what stands in tables of its own."""
        sent = self.model_dump(exclude_unset=True, exclude={"key", "prices", "limits"})
        if "features" in sent:
            sent["features"] = list(dict.fromkeys(sent["features"]))
        return sent


class NewPlan(PlanFields):
    key: Key
    tier: Tier
    name: Name
    credits: Credits


def listed(tx: Tx, *, after: str | None, limit: int) -> list[StoredPlan]:
    """Plans in order of their keys, for sale or not."""
    return [StoredPlan.model_validate(row) for row in _rows(tx, after=after, limit=limit)]


def create(tx: Tx, body: NewPlan, caller: Caller) -> StoredPlan:
    """Raises Conflict where the key, a price or one of Clerk's names is another plan's."""
    made = tx.execute(
        """
        INSERT INTO billing.plans (key, tier, name, credits)
        VALUES (%(key)s, %(tier)s, %(name)s, %(credits)s)
        ON CONFLICT (key) DO NOTHING
        RETURNING id
        """,
        {"key": body.key, "tier": body.tier, "name": body.name, "credits": body.credits},
    ).fetchone()
    if made is None:
        raise _taken()
    return _save(tx, made["id"], body, caller, "plan.created")


def change(tx: Tx, key: str, body: PlanFields, caller: Caller) -> StoredPlan:
    """Raises NotFound, and Conflict as `create` does or where subscribers would lose their plan."""
    row = tx.execute("SELECT id FROM billing.plans WHERE key = %s FOR UPDATE", [key]).fetchone()
    if row is None:
        raise NotFound("There is no plan of this key. GET /v1/admin/plans lists them.")
    return _save(tx, row["id"], body, caller, "plan.changed")


def _save(tx: Tx, plan_id: UUID, body: PlanFields, caller: Caller, action: str) -> StoredPlan:
    if columns := body.columns:
        assignments = sql.SQL(", ").join(
            sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in columns
        )
        _write(
            tx,
            sql.SQL("UPDATE billing.plans SET {} WHERE id = %(plan_id)s").format(assignments),
            columns | {"plan_id": plan_id},
        )
    if body.prices is not None:
        _replace_prices(tx, plan_id, body.prices)
    if body.limits is not None:
        tx.execute("DELETE FROM billing.plan_limits WHERE plan_id = %s", [plan_id])
        tx.execute(
            """
            INSERT INTO billing.plan_limits (plan_id, key, value)
            SELECT %s, key, value::bigint
            FROM jsonb_each_text(%s)
            """,
            [plan_id, Jsonb(body.limits)],
        )
    _require_a_free_plan(tx)
    details = body.model_dump(mode="json", exclude_unset=True)
    audit_log.write(tx, action, actor=caller.actor, target=f"plan:{plan_id}", details=details)
    [stored] = _rows(tx, plan_id=plan_id)
    return StoredPlan.model_validate(stored)


def _replace_prices(tx: Tx, plan_id: UUID, prices: list[NewPrice]) -> None:
    """Raises Conflict where a subscription goes on at a price that would be nobody's: its next event would
    find no plan.
    """
    kept = [price.price_id for price in prices]
    tx.execute("DELETE FROM billing.plan_prices WHERE plan_id = %s AND price_id <> ALL (%s)", [plan_id, kept])
    used = tx.execute(
        """
        SELECT s.price_id
        FROM billing.subscriptions AS s
        WHERE s.plan_id = %s
          AND s.provider = 'stripe'
          AND s.price_id <> ALL (%s)
          AND s.status <> ALL (%s::billing.subscription_status[])
        LIMIT 1
        """,
        [plan_id, kept, list(NOT_ENTITLED)],
    ).fetchone()
    if used is not None:
        raise InvalidState(
            f"Subscriptions go on at {used['price_id']}. Keep the price; to stop selling, set active false.",
        )
    for price in prices:
        _write(
            tx,
            sql.SQL(
                """
                INSERT INTO billing.plan_prices AS pp (price_id, plan_id, "interval")
                VALUES (%(price_id)s, %(plan_id)s, %(interval)s)
                ON CONFLICT (price_id) DO UPDATE
                SET "interval" = EXCLUDED."interval"
                WHERE pp.plan_id = EXCLUDED.plan_id
                RETURNING 1
                """
            ),
            {"price_id": price.price_id, "plan_id": plan_id, "interval": price.interval},
        )


def _write(tx: Tx, query: sql.SQL | sql.Composed, params: Mapping[str, Any]) -> None:
    """Raises Conflict where what is written, or not written, is another plan's already."""
    try:
        written = tx.execute(query, params)
    except psycopg.errors.UniqueViolation as error:
        raise _taken() from error
    except psycopg.errors.CheckViolation as error:
        raise Unprocessable(
            f"The plan cannot be so: {error.diag.constraint_name}. A rollover_cap goes with rollover capped.",
        ) from error
    if written.rowcount == 0:
        raise _taken()


def _taken() -> Conflict:
    return Conflict("The key, a price, clerk_plan_id or clerk_slug is another plan's. Name another one.")


def _require_a_free_plan(tx: Tx) -> None:
    """Whoever has no subscription has the free plan: there must be one."""
    if tx.execute("SELECT 1 FROM billing.plans WHERE tier = 'free' AND active LIMIT 1").fetchone() is None:
        raise InvalidState(
            "This is the last free plan, which everybody without a subscription has. Make another one first.",
        )


def _rows(tx: Tx, *, after: str | None = None, limit: int = 1, plan_id: UUID | None = None) -> list[DictRow]:
    return tx.execute(
        """
        SELECT p.*,
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
        WHERE (%(after)s::text IS NULL OR p.key > %(after)s)
          AND (%(plan_id)s::uuid IS NULL OR p.id = %(plan_id)s)
        ORDER BY p.key
        LIMIT %(limit)s
        """,
        {"after": after, "limit": limit, "plan_id": plan_id},
    ).fetchall()
