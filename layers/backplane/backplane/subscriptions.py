"""One subscription state for Stripe and Clerk: what an organisation pays for, and what it gets."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from psycopg.types.json import Jsonb
from pydantic import BaseModel

from backplane import db, inbox, outbox
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

STALE = "a newer state of the subscription stands"

# Statuses under which a subscription gives nothing: the tier is free.
NOT_ENTITLED = ("incomplete", "incomplete_expired", "unpaid", "canceled")
# Statuses under which it is over for good: no invoice follows.
OVER = ("incomplete_expired", "canceled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The state a sender's event tells."""

    provider: Literal["stripe", "clerk"]
    provider_subscription_id: str
    provider_customer_id: str | None
    status: Status
    current_period_start: datetime | None = None
    current_period_end: datetime | None = None
    cancel_at_period_end: bool = False
    cancel_at: datetime | None = None
    canceled_at: datetime | None = None
    ended_at: datetime | None = None
    trial_end: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription(Told):
    """What is stored of it: the state, whose it is and which plan."""

    organization_id: UUID
    plan_id: UUID
    price_id: str | None


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
    row = tx.execute(
        _SAVE,
        {
            "state": Jsonb(_json(state) | _newness(as_of, fetched_at)),
            "payload": Jsonb(_payload(state)),
            "told": None if told is None else Jsonb(_json(told)),
        },
    ).fetchone()
    if row is None:
        raise RuntimeError("a function answers one row")
    if row["applied"]:
        outbox.written()
    return bool(row["applied"])


_SAVE = """
    SELECT billing.save_subscription(
        jsonb_populate_record(NULL::billing.subscriptions, %(state)s), %(payload)s,
        jsonb_populate_record(NULL::billing.subscription_events, %(told)s)
    ) AS applied
"""


def save_at_once(
    event: inbox.Event,
    state: Told,
    price_ids: list[str],
    *,
    subject: str,
    as_of: str,
    fetched_at: datetime | None,
    told: HistoryEvent,
) -> inbox.Status | None:
    """`save` and the record of the event, in one statement that commits by itself, for a customer who is
    linked and a price that we know. None, having changed nothing, where that is not so.

    `subject` names the customer's lock, which is taken. `told` is of the same prices: its plan is found here.
    """
    row = db.call(
        _SAVE_AT_ONCE,
        {
            "state": Jsonb(_json(state) | _newness(as_of, fetched_at)),
            "price_ids": price_ids,
            "payload": Jsonb(_payload(state)),
            "told": Jsonb(_json(told)),
            "event": Jsonb(inbox.row(event) | {"reason": STALE}),
            "body": event.body,
            "subject": subject,
        },
    )
    status: inbox.Status | None = None if row is None else row["status"]
    if status == "processed":
        outbox.written()
    return status


_SAVE_AT_ONCE = """
    SELECT billing.tell_subscription(
        jsonb_populate_record(NULL::billing.subscriptions, %(state)s), %(price_ids)s, %(payload)s,
        jsonb_populate_record(NULL::billing.subscription_events, %(told)s),
        jsonb_populate_record(NULL::platform.webhook_inbox, %(event)s), %(body)s, %(subject)s
    ) AS status
"""


def _newness(as_of: str, fetched_at: datetime | None) -> dict[str, str | None]:
    return {"as_of": as_of, "fetched_at": _text(fetched_at)}


def _payload(state: Told) -> dict[str, Any]:
    return {
        "provider": state.provider,
        "provider_subscription_id": state.provider_subscription_id,
        "status": state.status,
        "current_period_end": _text(state.current_period_end),
        "cancels_at_period_end": cancels_at_period_end(state.cancel_at_period_end, state.cancel_at),
    }


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


def goes_on(tx: db.Tx, organization_id: UUID) -> bool:
    """Whether the organisation has a subscription that may still cost."""
    found = tx.execute(
        """
        SELECT 1
        FROM billing.subscriptions
        WHERE organization_id = %s AND status <> ALL (%s::billing.subscription_status[])
        LIMIT 1
        """,
        [organization_id, list(OVER)],
    ).fetchone()
    return found is not None


def cancels_at_period_end(flag: bool, cancel_at: datetime | None) -> bool:
    """Stripe's flexible billing sets `cancel_at` and leaves the flag false."""
    return flag or cancel_at is not None


def _json(row: Told | HistoryEvent) -> dict[str, Any]:
    """Its columns by name, as JSON has them. (`asdict` would copy each value, which costs more than this.)"""
    return {column.name: _plain(getattr(row, column.name)) for column in fields(row)}


def _plain(value: Any) -> Any:
    match value:
        case datetime():
            return value.isoformat()
        case UUID():
            return str(value)
        case _:
            return value


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
