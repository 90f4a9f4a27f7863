"""Limits: what an organisation may use of its plan, counted in the transaction of what it uses.

A key names what is counted. `app.messages_per_day` and `…_per_month` are quotas: a new calendar day or
month of the organisation's timezone is a new counter. All others are stocks: what stands counts, and
deleting it makes room. Counting is SQL functions (functions/migrate/migrations/0011_limits.sql), exact
however many callers race; docs/decisions/quotas.md says what a change of timezone does.

Take limits before credits and before locks of your own, several keys in one call: then nobody waits
for anybody in a circle.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from pydantic import BaseModel

from backplane import db, subscriptions
from backplane.problems import FeatureNotInPlan, PlanLimitReached, Problem, QuotaExhausted, Unprocessable

KEPT = 400  # days after a day's or a month's end: a year can be looked back on


class Limit(BaseModel):
    limit: int  # -1: unlimited
    used: int
    resets_at: datetime | None = None  # None: a stock


def take(tx: db.Tx, organization_id: UUID, key: str, quantity: int = 1) -> datetime:
    """Counts `quantity` more on a key. Answers the moment it counts for, which give_back takes.

    Raises PlanLimitReached (403) where a stock would exceed the plan's limit, QuotaExhausted (429)
    where a quota would: nothing is counted then. Unlimited is counted all the same.
    """
    return take_together(tx, organization_id, [key], quantity)


def take_together(tx: db.Tx, organization_id: UUID, keys: Sequence[str], quantity: int = 1) -> datetime:
    """As `take`, on several keys or on none of them."""
    plan = subscriptions.entitlement(tx, organization_id)
    row = tx.execute(
        "SELECT * FROM billing.take(%(organization_id)s, %(plan_id)s, %(keys)s, %(quantity)s)",
        {
            "organization_id": organization_id,
            "plan_id": plan.plan_id,
            "keys": list(keys),
            "quantity": quantity,
        },
    ).fetchone()
    if row is None:
        raise RuntimeError("billing.take answers one row")
    counted_at: datetime = row["counted_at"]
    if row["refused_key"] is not None:
        limit = Limit(limit=row["limit"], used=row["used"], resets_at=row["resets_at"])
        raise _refusal(row["refused_key"], limit, quantity, plan.current.tier, counted_at)
    return counted_at


def give_back(
    tx: db.Tx, organization_id: UUID, key: str, quantity: int = 1, *, at: datetime | None = None
) -> None:
    """Takes `quantity` off a key's count, not below 0: what was counted is deleted, or failed.

    A quota's count goes back to the period of `at`, the moment that `take` answered; without it to the
    present one.
    """
    give_back_together(tx, organization_id, [key], quantity, at=at)


def give_back_together(
    tx: db.Tx, organization_id: UUID, keys: Sequence[str], quantity: int = 1, *, at: datetime | None = None
) -> None:
    """As `give_back`, on several keys: what take_together counted."""
    if quantity < 0:
        raise ValueError("a quantity is 0 or more")
    _correct(tx, organization_id, keys, -quantity, at)


def correct(tx: db.Tx, organization_id: UUID, key: str, by: int) -> None:
    """Changes a stock by a signed difference, not below 0, and above the limit if need be.

    For what stands already: an upload that turned out larger than was reserved for it.
    """
    _correct(tx, organization_id, [key], by, None)


def usage(tx: db.Tx, organization_id: UUID, plan_id: UUID) -> dict[str, Limit]:
    """Each limit of the plan with what the organisation has used of it, and when it counts anew."""
    rows = tx.execute(
        "SELECT * FROM billing.usage_of(%(organization_id)s, %(plan_id)s)",
        {"organization_id": organization_id, "plan_id": plan_id},
    ).fetchall()
    return {row["key"]: Limit.model_validate(row) for row in rows}


def require_feature(tx: db.Tx, organization_id: UUID, feature: str) -> None:
    """Raises FeatureNotInPlan (403) unless the organisation's plan has it, e.g. `private-projects`."""
    plan = subscriptions.entitlement(tx, organization_id)
    if feature not in plan.features:
        raise FeatureNotInPlan(
            f"The plan {plan.current.tier} does not include {feature}. GET /v1/plans shows which plans do."
        )


def change_timezone(tx: db.Tx, organization_id: UUID, timezone: str) -> None:
    """Sets the timezone whose midnights the organisation's days and months begin at.

    Nothing is counted anew by it: the present day and month go on until they are over in both zones.
    Raises Unprocessable for what is no name of the IANA database.
    """
    row = tx.execute(
        "SELECT tenancy.change_timezone(%(organization_id)s, %(timezone)s) AS changed",
        {"organization_id": organization_id, "timezone": timezone},
    ).fetchone()
    if row is None or not row["changed"]:
        raise Unprocessable(
            "The timezone must be a name of the IANA database, such as Europe/Berlin.",
            errors=[{"loc": ["body", "timezone"], "msg": "Unknown timezone", "type": "unknown_timezone"}],
        )


def purge(tx: db.Tx, *, limit: int) -> int:
    """Forgets counters of days and months that ended so long ago, but a key's newest, which says when the
    next one may begin. Answers how many, `limit` at most.
    """
    return tx.execute(
        """
        DELETE FROM billing.usage_counters
        WHERE (organization_id, key, period_start) IN (
            SELECT u.organization_id, u.key, u.period_start
            FROM billing.usage_counters AS u
            WHERE u.period_end < statement_timestamp() - make_interval(days => %(days)s)
              AND EXISTS (
                  SELECT FROM billing.usage_counters AS newer
                  WHERE newer.organization_id = u.organization_id
                    AND newer.key = u.key
                    AND newer.period_start > u.period_start
              )
            ORDER BY u.period_end
            LIMIT %(limit)s
        )
        """,
        {"days": KEPT, "limit": limit},
    ).rowcount


def _correct(tx: db.Tx, organization_id: UUID, keys: Sequence[str], by: int, at: datetime | None) -> None:
    tx.execute(
        "SELECT billing.correct_count(%(organization_id)s, %(keys)s, %(by)s, %(at)s)",
        {"organization_id": organization_id, "keys": list(keys), "by": by, "at": at},
    )


def _refusal(key: str, limit: Limit, quantity: int, tier: str, now: datetime) -> Problem:
    what = (
        f"The plan {tier} allows {limit.limit} of {key}:"
        f" {limit.used} are used, and {quantity} more are asked for."
    )
    if limit.resets_at is None:
        return PlanLimitReached(f"{what} Delete some, or choose a higher plan.")
    anew = limit.resets_at.astimezone(UTC).isoformat()
    return QuotaExhausted(
        f"{what} They are counted anew from {anew} on. A higher plan allows more.",
        retry_after=max(1, math.ceil((limit.resets_at - now).total_seconds())),
    )
