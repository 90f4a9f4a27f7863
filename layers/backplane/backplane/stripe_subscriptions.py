"""Subscriptions: the state that Stripe tells, if it is newer than what stands."""

from typing import Any
from uuid import UUID

from backplane import invoice_credits, ledger, outbox, plans, stripe_customers, stripe_events, subscriptions
from backplane.db import Tx
from backplane.inbox import Event, Outcome
from backplane.stripe_objects import Subscription

_KIND_RANK = {"customer.subscription.created": 0, "customer.subscription.deleted": 2}


def subscription_changed(tx: Tx, event: Event) -> Outcome:
    """Stores the subscription's state if it is newer than what stands; ends its credits if it is over."""
    told = stripe_events.read(Subscription, event)
    subscription = state = stripe_events.current(Subscription, event)
    gone = None
    try:
        organization_id, arrived, plan = stripe_customers.organization_and_plan(tx, subscription)
    except stripe_customers.Deleted as late:
        gone, organization_id, arrived = late, late.organization_id, late.arrived
        plan = plans.find_by_prices(tx, subscription.price_ids)
        subscription = late.ended(subscription)
    deleted = event.type == "customer.subscription.deleted"
    ended = deleted or subscription.status == "canceled"
    status: subscriptions.Status = "canceled" if ended else subscription.status
    plan_id = plan.id if plan is not None else _plan_kept(tx, subscription, ended=ended)
    told_plan = plan if event.fetched is None else plans.find_by_prices(tx, told.price_ids)
    applied = subscriptions.save(
        tx,
        _state(subscription, organization_id, plan_id, plan, status),
        as_of=subscriptions.as_of(
            ended=deleted or state.status == "canceled",
            occurred_at=event.occurred_at,
            kind_rank=_KIND_RANK.get(event.type, 1),
            status="canceled" if deleted else state.status,
            event_id=event.id,
        ),
        fetched_at=None if event.fetched is None else event.fetched.began_at,
        told=subscriptions.HistoryEvent(
            provider_event_id=event.id,
            event_type=event.type,
            plan_key=told_plan.key if told_plan is not None else None,
            status="canceled" if deleted else told.status,
            occurred_at=event.occurred_at,
            metadata=_history(subscription),
        ),
    )
    if applied and ended:
        ledger.end_subscription(tx, organization_id, "stripe", subscription.id, actor="stripe")
    if gone is not None:
        return Outcome("stale", str(gone), organization_id, arrived)
    if not applied:
        return Outcome("stale", "a newer state of the subscription stands", organization_id, arrived)
    return Outcome("processed", None, organization_id, arrived)


def _state(
    subscription: Subscription,
    organization_id: UUID,
    plan_id: UUID,
    plan: plans.PricedPlan | None,
    status: subscriptions.Status,
) -> subscriptions.Subscription:
    """What is stored of it. The price is the plan's, or the first where none is a plan's."""
    period_start, period_end = subscription.period
    return subscriptions.Subscription(
        organization_id=organization_id,
        provider="stripe",
        provider_subscription_id=subscription.id,
        provider_customer_id=subscription.customer,
        plan_id=plan_id,
        price_id=plan.price_id if plan is not None else next(iter(subscription.price_ids), None),
        status=status,
        current_period_start=period_start,
        current_period_end=period_end,
        cancel_at_period_end=subscription.cancel_at_period_end,
        cancel_at=subscription.cancel_at,
        canceled_at=subscription.canceled_at,
        ended_at=subscription.ended_at,
        trial_end=subscription.trial_end,
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


def _history(subscription: Subscription) -> dict[str, Any]:
    """What the status does not say: collection is paused, and the subscription goes on."""
    paused = subscription.pause_collection
    return {} if paused is None else {"pause_collection": str(paused.get("behavior"))[:50]}


def _plan_kept(tx: Tx, subscription: Subscription, *, ended: bool) -> UUID:
    """The plan of a subscription whose price we don't know: an end needs none, a change waits for it."""
    stored = subscriptions.status_of(tx, "stripe", subscription.id)
    if ended and stored is not None:
        return stored[1]
    raise invoice_credits.unknown_price(subscription.price_ids)
