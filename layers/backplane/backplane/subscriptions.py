"""One subscription state for Stripe and Clerk: what an organisation pays for, and what it gets."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from psycopg.types.json import Jsonb
from pydantic import BaseModel

from backplane import db, outbox
from backplane.plans import Tier

Status = Literal[
    "incomplete", "incomplete_expired", "trialing", "active", "past_due", "unpaid", "paused", "canceled"
]

# Where two events of a subscription carry the same second, the later state of a life wins.
STATUS_RANK: dict[str, int] = {
    status: rank
    for rank, status in enumerate(
        ("incomplete", "trialing", "active", "past_due", "unpaid", "paused", "incomplete_expired", "canceled")
    )
}

# Statuses under which a subscription gives nothing: the tier is free.
NOT_ENTITLED = ("incomplete", "incomplete_expired", "unpaid", "canceled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """The state a sender's event tells."""

    organization_id: UUID
    provider: Literal["stripe", "clerk"]
    provider_subscription_id: str
    provider_customer_id: str | None
    plan_id: UUID
    price_id: str | None
    status: Status
    current_period_start: datetime | None = None
    current_period_end: datetime | None = None
    cancel_at_period_end: bool = False
    cancel_at: datetime | None = None
    canceled_at: datetime | None = None
    ended_at: datetime | None = None
    trial_end: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEvent:
    """What an event told of the subscription, whatever stands of it."""

    provider_event_id: str
    event_type: str
    plan_key: str | None
    status: str
    occurred_at: datetime
    metadata: Mapping[str, Any] = field(default_factory=dict)


class CurrentPlan(BaseModel):
    tier: Tier
    status: str  # the newest subscription's; inactive without one
    current_period_end: datetime | None
    cancels_at_period_end: bool


class PastEvent(BaseModel):
    """What a sender told of a subscription."""

    id: UUID
    type: str
    plan: str | None
    status: str
    provider: Literal["stripe", "clerk"]
    occurred_at: datetime
    metadata: dict[str, Any]


class Overview(CurrentPlan):
    """What GET /v1/subscription shows."""

    price_id: str | None
    canceled_at: datetime | None
    provider: Literal["stripe", "clerk"] | None
    events: list[PastEvent]  # newest first, 10 at most


@dataclass(frozen=True, slots=True)
class Entitlement:
    plan_id: UUID
    features: list[str]
    current: CurrentPlan
    price_id: str | None
    canceled_at: datetime | None
    provider: Literal["stripe", "clerk"] | None


def as_of(*, ended: bool, occurred_at: datetime, kind_rank: int, status: str, event_id: str) -> str:
    """A text that sorts as states succeed each other: (over or not, time, kind, status, event id).

    An ended state sorts after all others, so nothing reopens it; and since the newest of all
    events is the same in every order of arrival, every order ends alike.
    """
    seconds = int(occurred_at.timestamp())
    return f"{int(ended)}.{seconds:012d}.{kind_rank}.{STATUS_RANK[status]}.{event_id}"


def as_ended(as_of: str) -> str:
    """How new a state is that is over by its customer's deletion: no newer than it was told, and older
    than an end of its own.
    """
    return f"{as_of}."


def save(
    tx: db.Tx,
    state: Subscription,
    *,
    as_of: str,
    fetched_at: datetime | None = None,
    told: HistoryEvent | None = None,
) -> bool:
    """Stores the state unless a newer one stands, tells it, and adds what was told to the history, stale or
    not: that says what the sender told and when. Answers whether the state was stored.

    `as_of` says how new an event's word is. A state that was fetched when an event came has that event's,
    and `fetched_at`, when the asking began: of two such states that alone decides
    (docs/decisions/refetch.md). An end is newer than whatever is not one, however it was learnt.
    The caller holds the lock under which this subscription's events apply one after the other.
    """
    payload = {
        "provider": state.provider,
        "provider_subscription_id": state.provider_subscription_id,
        "plan_id": str(state.plan_id),
        "status": state.status,
        "current_period_end": _text(state.current_period_end),
        "cancels_at_period_end": cancels_at_period_end(state.cancel_at_period_end, state.cancel_at),
    }
    applied = tx.execute(
        _SAVE if told is None else _SAVE_AND_RECORD,
        _columns(state)
        | {"as_of": as_of, "fetched_at": fetched_at, "payload": Jsonb(payload)}
        | ({} if told is None else {f"told_{name}": value for name, value in _columns(told).items()})
        | ({} if told is None else {"told_metadata": Jsonb(dict(told.metadata))}),
    ).fetchone()
    if applied is None:
        raise RuntimeError("an aggregate answers one row")
    if applied["applied"]:
        outbox.written()
    return bool(applied["applied"])


# One statement, because each round trip costs as much as what it does.
_SAVED = """
    WITH saved AS (
        INSERT INTO billing.subscriptions AS s
            (organization_id, provider, provider_subscription_id, provider_customer_id, plan_id, price_id,
             status, current_period_start, current_period_end, cancel_at_period_end, cancel_at, canceled_at,
             ended_at, trial_end, as_of, fetched_at)
        VALUES
            (%(organization_id)s, %(provider)s, %(provider_subscription_id)s, %(provider_customer_id)s,
             %(plan_id)s, %(price_id)s, %(status)s, %(current_period_start)s, %(current_period_end)s,
             %(cancel_at_period_end)s, %(cancel_at)s, %(canceled_at)s, %(ended_at)s, %(trial_end)s, %(as_of)s,
             %(fetched_at)s)
        ON CONFLICT (provider, provider_subscription_id) DO UPDATE
        SET provider_customer_id = EXCLUDED.provider_customer_id,
            plan_id = EXCLUDED.plan_id,
            price_id = EXCLUDED.price_id,
            status = EXCLUDED.status,
            current_period_start = EXCLUDED.current_period_start,
            current_period_end = EXCLUDED.current_period_end,
            cancel_at_period_end = EXCLUDED.cancel_at_period_end,
            cancel_at = EXCLUDED.cancel_at,
            canceled_at = EXCLUDED.canceled_at,
            ended_at = EXCLUDED.ended_at,
            trial_end = EXCLUDED.trial_end,
            as_of = greatest(s.as_of, EXCLUDED.as_of),
            fetched_at = EXCLUDED.fetched_at
        WHERE CASE
                  WHEN left(s.as_of, 1) = left(EXCLUDED.as_of, 1) AND s.fetched_at IS NOT NULL
                       AND EXCLUDED.fetched_at IS NOT NULL
                  THEN s.fetched_at < EXCLUDED.fetched_at
                  ELSE s.as_of < EXCLUDED.as_of
              END
        RETURNING id
    ), announced AS (
        INSERT INTO platform.outbox (organization_id, type, payload)
        SELECT %(organization_id)s, 'subscription.changed',
               %(payload)s || jsonb_build_object('subscription_id', id)
        FROM saved
    )
"""
_SAVE = f"{_SAVED} SELECT count(*) = 1 AS applied FROM saved"
_SAVE_AND_RECORD = f"""
    {_SAVED}, recorded AS (
        INSERT INTO billing.subscription_events
            (organization_id, subscription_id, provider, provider_event_id, event_type, plan_key, status,
             occurred_at, metadata)
        SELECT %(organization_id)s, coalesce((SELECT id FROM saved), (
                   SELECT id
                   FROM billing.subscriptions
                   WHERE provider = %(provider)s AND provider_subscription_id = %(provider_subscription_id)s
               )), %(provider)s, %(told_provider_event_id)s, %(told_event_type)s, %(told_plan_key)s,
               %(told_status)s, %(told_occurred_at)s, %(told_metadata)s
        ON CONFLICT (provider, provider_event_id) DO NOTHING
    )
    SELECT count(*) = 1 AS applied FROM saved
"""


def cancel_all(tx: db.Tx, organization_id: UUID, provider: str) -> None:
    """Cancels what a provider's payer had, for good, where the payer himself is gone."""
    tx.execute(
        """
        UPDATE billing.subscriptions
        SET status = 'canceled',
            ended_at = coalesce(ended_at, clock_timestamp()),
            as_of = '1' || substr(as_of, 2) -- as an end, which nothing reopens
        WHERE organization_id = %s AND provider = %s AND status <> 'canceled'
        """,
        [organization_id, provider],
    )


def status_of(tx: db.Tx, provider: str, provider_subscription_id: str) -> tuple[Status, UUID] | None:
    """A subscription's status and plan, or None where none is stored yet."""
    row = tx.execute(
        """
        SELECT status, plan_id
        FROM billing.subscriptions
        WHERE provider = %s AND provider_subscription_id = %s
        """,
        [provider, provider_subscription_id],
    ).fetchone()
    return None if row is None else (row["status"], row["plan_id"])


def of_customer(tx: db.Tx, provider: str, provider_customer_id: str) -> list[tuple[Subscription, str]]:
    """A customer's subscriptions that are not over, and how new each is (`as_of`)."""
    names = [name for name in Subscription.__dataclass_fields__ if name != "status"]
    rows = tx.execute(
        f"""
        SELECT {", ".join(names)}, status::text, as_of
        FROM billing.subscriptions
        WHERE provider = %s AND provider_customer_id = %s AND status <> 'canceled'
        ORDER BY id
        """.encode(),
        [provider, provider_customer_id],
    ).fetchall()
    return [(Subscription(**{name: row[name] for name in (*names, "status")}), row["as_of"]) for row in rows]


def entitlement(tx: db.Tx, organization_id: UUID) -> Entitlement:
    """The plan an organisation has: the highest of its subscriptions that count, else the free one."""
    rows = tx.execute(
        """
        SELECT p.id, p.tier, p.features, p.sort_order,
               s.status, s.current_period_end, s.cancel_at_period_end, s.cancel_at,
               s.price_id, s.canceled_at, s.provider,
               s.status <> ALL (%(not_entitled)s::billing.subscription_status[]) AS entitled,
               substr(s.as_of, 3) AS told_at -- without the flag that makes an ended state the newest
        FROM billing.subscriptions AS s
        JOIN billing.plans AS p ON p.id = s.plan_id
        WHERE s.organization_id = %(organization_id)s
        UNION ALL
        SELECT id, tier, features, sort_order, NULL, NULL, NULL, NULL, NULL, NULL, NULL, false, NULL
        FROM billing.plans
        WHERE tier = 'free' AND active
        ORDER BY entitled DESC, tier DESC, told_at DESC NULLS LAST, sort_order
        """,
        {"organization_id": organization_id, "not_entitled": list(NOT_ENTITLED)},
    ).fetchall()
    best = next((row for row in rows if row["entitled"]), None)
    lapsed = [row for row in rows if row["status"] is not None]
    shown = best or max(lapsed, key=lambda row: row["told_at"], default=None)
    plan = best or next((row for row in rows if row["status"] is None), None)
    if plan is None:
        raise RuntimeError("there is no active plan of tier free")
    period_end = shown["current_period_end"] if shown else None
    cancels = shown is not None and cancels_at_period_end(shown["cancel_at_period_end"], shown["cancel_at"])
    return Entitlement(
        plan_id=plan["id"],
        features=plan["features"],
        current=CurrentPlan(
            tier=plan["tier"],
            status=shown["status"] if shown else "inactive",
            current_period_end=period_end,
            cancels_at_period_end=cancels,
        ),
        price_id=shown["price_id"] if shown else None,
        canceled_at=shown["canceled_at"] if shown else None,
        provider=shown["provider"] if shown else None,
    )


def overview(tx: db.Tx, organization_id: UUID) -> Overview:
    """The subscription that counts, and the last that was told of any."""
    shown = entitlement(tx, organization_id)
    events = tx.execute(
        """
        SELECT id, event_type AS type, plan_key AS plan, status, provider, occurred_at, metadata
        FROM billing.subscription_events
        WHERE organization_id = %s
        ORDER BY occurred_at DESC, id DESC
        LIMIT 10
        """,
        [organization_id],
    ).fetchall()
    return Overview(
        **shown.current.model_dump(),
        price_id=shown.price_id,
        canceled_at=shown.canceled_at,
        provider=shown.provider,
        events=[PastEvent.model_validate(row) for row in events],
    )


def pays(tx: db.Tx, provider: str, organization_id: UUID) -> bool:
    """Whether the organisation has a subscription of this provider that goes on."""
    row = tx.execute(
        """
        SELECT 1
        FROM billing.subscriptions
        WHERE provider = %s
          AND organization_id = %s
          AND status <> ALL (%s::billing.subscription_status[])
        LIMIT 1
        """,
        [provider, organization_id, list(NOT_ENTITLED)],
    ).fetchone()
    return row is not None


def cancels_at_period_end(flag: bool, cancel_at: datetime | None) -> bool:
    """Stripe's flexible billing sets `cancel_at` and leaves the flag false."""
    return flag or cancel_at is not None


def _columns(row: Subscription | HistoryEvent) -> dict[str, Any]:
    """By name, as they are: `asdict` would copy each value, at a twentieth of an event's whole cost."""
    return {column.name: getattr(row, column.name) for column in fields(row)}


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
