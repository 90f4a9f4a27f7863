"""Subscriptions: the state that Stripe tells, if it is newer than what stands."""

from datetime import datetime
from typing import Any
from uuid import UUID

from backplane import (
    customers,
    invoice_credits,
    ledger,
    outbox,
    plans,
    stripe_customers,
    stripe_events,
    subscriptions,
)
from backplane.db import Tx
from backplane.inbox import Event, Outcome, Status
from backplane.stripe_objects import Subscription

_KIND_RANK = {"customer.subscription.created": 0, "customer.subscription.deleted": 2}


def subscription_changed(tx: Tx, event: Event) -> Outcome:
    """Stores the subscription's state if it is newer than what stands; ends its credits if it is over."""
    told, state = stripe_events.told_and_current(Subscription, event)
    subscription = state
    gone = None
    try:
        organization_id, arrived, plan = stripe_customers.organization_and_plan(tx, subscription)
    except stripe_customers.Deleted as late:
        gone, organization_id, arrived = late, late.organization_id, late.arrived
        plan = plans.find_by_prices(tx, subscription.price_ids)
        subscription = late.ended(subscription)
    over = _over(event, subscription)
    plan_id = plan.id if plan is not None else _plan_kept(tx, subscription, ended=over)
    told_plan = plan if event.fetched is None else plans.find_by_prices(tx, told.price_ids)
    applied = subscriptions.save(
        tx,
        subscriptions.Subscription(
            organization_id=organization_id,
            plan_id=plan_id,
            price_id=plan.price_id if plan is not None else next(iter(subscription.price_ids), None),
            **_told(event, subscription),
        ),
        as_of=_as_of(event, state),
        fetched_at=_fetched_at(event),
        told=_history(event, told, None if told_plan is None else told_plan.key, subscription),
    )
    if applied and over:
        ledger.end_subscription(tx, organization_id, "stripe", subscription.id, actor="stripe")
    if gone is not None:
        return Outcome("stale", str(gone), organization_id, arrived)
    if not applied:
        return Outcome("stale", subscriptions.STALE, organization_id, arrived)
    return Outcome("processed", None, organization_id, arrived)


def subscription_changed_at_once(event: Event) -> Status | None:
    """The same by one statement, as most events can be: of a subscription that goes on, and names nobody."""
    if stripe_events.foreign(event) is not None:
        return None
    told, state = stripe_events.told_and_current(Subscription, event)
    named = state.metadata.get("organization_id") is not None
    if named or _over(event, state) or told.price_ids != state.price_ids:
        return None
    return subscriptions.save_at_once(
        event,
        subscriptions.Told(**_told(event, state)),
        state.price_ids,
        subject=customers.subject("stripe", state.customer),
        as_of=_as_of(event, state),
        fetched_at=_fetched_at(event),
        told=_history(event, told, None, state),
    )


def _over(event: Event, state: Subscription) -> bool:
    return event.type == "customer.subscription.deleted" or state.status == "canceled"


def _told(event: Event, state: Subscription) -> dict[str, Any]:
    """The fields of subscriptions.Told."""
    period_start, period_end = state.period
    return {
        "provider": "stripe",
        "provider_subscription_id": state.id,
        "provider_customer_id": state.customer,
        "status": "canceled" if _over(event, state) else state.status,
        "current_period_start": period_start,
        "current_period_end": period_end,
        "cancel_at_period_end": state.cancel_at_period_end,
        "cancel_at": state.cancel_at,
        "canceled_at": state.canceled_at,
        "ended_at": state.ended_at,
        "trial_end": state.trial_end,
    }


def _as_of(event: Event, state: Subscription) -> str:
    deleted = event.type == "customer.subscription.deleted"
    return subscriptions.as_of(
        ended=_over(event, state),
        occurred_at=event.occurred_at,
        kind_rank=_KIND_RANK.get(event.type, 1),
        status="canceled" if deleted else state.status,
        event_id=event.id,
    )


def _fetched_at(event: Event) -> datetime | None:
    return None if event.fetched is None else event.fetched.began_at


def _history(
    event: Event, told: Subscription, plan_key: str | None, state: Subscription
) -> subscriptions.HistoryEvent:
    """What the event told, and what the status does not say: collection is paused, and it goes on."""
    deleted = event.type == "customer.subscription.deleted"
    paused = state.pause_collection
    return subscriptions.HistoryEvent(
        provider_event_id=event.id,
        event_type=event.type,
        plan_key=plan_key,
        status="canceled" if deleted else told.status,
        occurred_at=event.occurred_at,
        metadata={} if paused is None else {"pause_collection": str(paused.get("behavior"))[:50]},
    )


def trial_will_end(tx: Tx, event: Event) -> Outcome:
    """Tells that a trial ends in three days. The state itself comes with the subscription's own events."""
    subscription = stripe_events.read(Subscription, event)
    organization_id, arrived = stripe_customers.organization(tx, subscription.customer, subscription.metadata)
    stored = subscriptions.status_of(tx, "stripe", subscription.id)
    if stored is not None and stored[0] == "canceled":
        return Outcome("stale", "the subscription is over", organization_id, arrived)
    trial_end = subscription.trial_end
    outbox.append(
        tx,
        "subscription.trial_will_end",
        organization_id=organization_id,
        payload={
            "provider": "stripe",
            "provider_subscription_id": subscription.id,
            "trial_end": None if trial_end is None else trial_end.isoformat(),
        },
    )
    return Outcome("processed", None, organization_id, arrived)


def _plan_kept(tx: Tx, subscription: Subscription, *, ended: bool) -> UUID:
    """The plan of a subscription whose price we don't know: an end needs none, a change waits for it."""
    stored = subscriptions.status_of(tx, "stripe", subscription.id)
    if ended and stored is not None:
        return stored[1]
    raise invoice_credits.unknown_price(subscription.price_ids)
