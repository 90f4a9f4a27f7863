"""What Clerk's billing events do. What Stripe calls a subscription is here an item of one: a plan, for
a period, with a status; the credits of a period are granted once, by (item, start of the period).

    active      paid, or on trial; the free plan's item is active too, and is nothing we store
    canceled    will not renew; what was paid for stays until `ended`
    past_due    the renewal is not paid yet: the plan stays, the new period's credits wait
    ended       over for good; another plan's item may begin at the same moment
    upcoming    begins when another item ends: nothing yet
    incomplete, abandoned   the first payment is still to come, or never came
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from backplane import customers, inbox, ledger, outbox, plans, subscriptions
from backplane.clerk_objects import Payer, PaymentAttempt, Subscription, SubscriptionItem, milliseconds, read
from backplane.customers import Gone
from backplane.db import Tx
from backplane.inbox import Event, Outcome, Park, Quarantine
from backplane.periods import add_months
from backplane.plans import BilledPlan

# Clerk's statuses as states succeed each other, where two events have the same time.
_RANK = {
    status: rank
    for rank, status in enumerate(
        ("upcoming", "incomplete", "active", "past_due", "canceled", "abandoned", "ended")
    )
}
_SPELLINGS = {"pastDue": "past_due", "cancelled": "canceled", "expired": "ended"}
_OURS: Mapping[str, subscriptions.Status] = {
    "incomplete": "incomplete",
    "active": "active",
    "past_due": "past_due",
    "canceled": "active",
    "abandoned": "incomplete_expired",
    "ended": "canceled",
}
_YEAR = ("year", "annual")
_LONGER_THAN_A_MONTH = timedelta(days=62)  # where the item does not say its interval


@dataclass(frozen=True, slots=True)
class _Billed:
    """An item, whose it is, and what it is for."""

    item: SubscriptionItem
    status: str  # Clerk's, in one spelling
    organization_id: UUID
    customer_id: str | None
    plan: BilledPlan


# ---- the events ----


def item_changed(tx: Tx, event: Event) -> Outcome:
    """Stores an item's state, grants the credits of its period, and ends them with it."""
    item = read(SubscriptionItem, event)
    return _apply(tx, event, item, item.payer)


def trial_ending(tx: Tx, event: Event) -> Outcome:
    """As any change, and tells it: somebody may want to remind the user."""
    item = read(SubscriptionItem, event)
    outcome = _apply(tx, event, item, item.payer)
    if outcome.status == "processed" and outcome.organization_id is not None:
        payload = {
            "provider": "clerk",
            "provider_subscription_id": item.id,
            "trial_end": None if item.period_end is None else item.period_end.isoformat(),
        }
        outbox.append(
            tx, "subscription.trial_will_end", organization_id=outcome.organization_id, payload=payload
        )
    return outcome


def subscription_changed(tx: Tx, event: Event) -> Outcome:
    """Applies each item that the subscription carries. One whose plan is unknown does not hold up the
    others; its own event waits for the plan.
    """
    subscription = read(Subscription, event)
    outcomes: list[Outcome] = []
    unknown: Park | None = None
    for item in subscription.items:
        try:
            with tx.transaction():
                outcomes.append(_apply(tx, event, item, subscription.payer, of_several=True))
        except _UnknownPlan as park:
            unknown = park
    if not outcomes:
        if unknown is not None:
            raise unknown
        return Outcome("ignored", "the subscription carries no items")
    processed = [outcome for outcome in outcomes if outcome.status == "processed"]
    arrived = tuple(subject for outcome in outcomes for subject in outcome.arrived)
    chosen = next(iter(processed), outcomes[0])
    reason = None if unknown is None else unknown.reason
    return Outcome(chosen.status, chosen.reason or reason, chosen.organization_id, arrived)


def payment_changed(tx: Tx, event: Event) -> Outcome:
    """Tells of a failed payment. What a payment pays for comes with its items' own events."""
    payment = read(PaymentAttempt, event)
    if payment.payer is None:
        return Outcome("ignored", "the payment names no payer")
    try:
        organization_id, _ = _organization(tx, payment.payer)
    except Gone as gone:
        return Outcome("stale", str(gone))
    if payment.status == "failed":
        payload = {
            "provider": "clerk",
            "provider_payment_id": payment.id,
            "provider_subscription_id": next((item.id for item in payment.items), None),
        }
        outbox.append(tx, "payment.failed", organization_id=organization_id, payload=payload)
    return Outcome("processed", None, organization_id)


# ---- an item ----


def _apply(
    tx: Tx, event: Event, item: SubscriptionItem, payer: Payer | None, *, of_several: bool = False
) -> Outcome:
    status = _status(event, item)
    if status == "upcoming":
        return Outcome("ignored", "the item has not begun")
    inbox.lock(tx, _subject(item))
    plan = plans.find_by_clerk(tx, item.plan_id, item.slug)
    if plan is not None and plan.tier == "free":
        return Outcome("ignored", "the free plan is what everyone has without paying")
    try:
        organization_id, customer_id = _payer_of(tx, item, payer)
    except Gone as gone:
        return Outcome("stale", str(gone))
    plan = plan or _plan_kept(tx, item, ended=status == "ended")
    billed = _Billed(item, status, organization_id, customer_id, plan)
    as_of = _as_of(event, billed)
    told = _told(event, billed, of_several=of_several)
    applied = subscriptions.save(tx, _state(billed, event), as_of=as_of, told=told)
    _grant(tx, billed)
    stored = subscriptions.status_of(tx, "clerk", item.id)
    if stored is not None and stored[0] == "canceled":
        # Also where this event is older than the end: what it granted is over too.
        ledger.end_subscription(tx, organization_id, "clerk", item.id, actor="clerk")
    arrived = (_subject(item),) if applied else ()
    if not applied:
        return Outcome("stale", "a newer state of the item stands", organization_id)
    return Outcome("processed", None, organization_id, arrived)


def _state(billed: _Billed, event: Event) -> subscriptions.Subscription:
    item, status = billed.item, billed.status
    trial = item.is_free_trial and status in {"active", "canceled"}
    changed_at = item.updated_at or event.occurred_at
    return subscriptions.Subscription(
        organization_id=billed.organization_id,
        provider="clerk",
        provider_subscription_id=item.id,
        provider_customer_id=billed.customer_id,
        plan_id=billed.plan.id,
        price_id=item.plan_id,
        status="trialing" if trial else _OURS[status],
        current_period_start=item.period_start,
        current_period_end=item.period_end,
        cancel_at_period_end=status == "canceled",
        canceled_at=(item.canceled_at or changed_at) if status == "canceled" else item.canceled_at,
        ended_at=(item.ended_at or changed_at) if status == "ended" else None,
        trial_end=item.period_end if item.is_free_trial else None,
    )


def _grant(tx: Tx, billed: _Billed) -> None:
    """Gives the period's credits, once: a renewal is the same item with another start."""
    item, plan = billed.item, billed.plan
    amount = plan.trial_credits if item.is_free_trial else plan.credits
    if billed.status != "active" or item.period_start is None or amount <= 0:
        return
    month_end = _month_end(item, item.period_start)
    trial = ":trial" if item.is_free_trial else ""
    ledger.grant(
        tx,
        ledger.Grant(
            organization_id=billed.organization_id,
            source="plan",
            source_key=f"clerk_item:{item.id}:{milliseconds(item.period_start)}{trial}",
            amount=amount,
            actor="clerk",
            expires_at=month_end + ledger.PLAN_GRACE,
            plan_id=plan.id,
            provider="clerk",
            provider_subscription_id=item.id,
            period_end=month_end,
        ),
    )


def _month_end(item: SubscriptionItem, start: datetime) -> datetime:
    """When the month ends that the credits are for: a year's come month by month."""
    if item.period_end is None:
        return add_months(start, 1)
    if item.interval is None:
        yearly = item.period_end - start > _LONGER_THAN_A_MONTH
    else:
        yearly = item.interval in _YEAR
    return add_months(start, 1) if yearly and not item.is_free_trial else item.period_end


def _told(event: Event, billed: _Billed, *, of_several: bool) -> subscriptions.HistoryEvent:
    return subscriptions.HistoryEvent(
        provider_event_id=f"{event.id}/{billed.item.id}" if of_several else event.id,
        event_type=event.type,
        plan_key=billed.plan.key,
        status=billed.status,
        occurred_at=event.occurred_at,
    )


def _status(event: Event, item: SubscriptionItem) -> str:
    """Clerk's status in one spelling. Raises Quarantine for one we don't know."""
    if event.type == "subscriptionItem.ended":
        return "ended"
    status = _SPELLINGS.get(item.status, item.status)
    if status not in _RANK:
        raise Quarantine(f"{item.status!r} is no status of a subscription's item that is known here")
    return status


def _as_of(event: Event, billed: _Billed) -> str:
    """Sorts like subscriptions.as_of, but by the milliseconds that Clerk orders by."""
    changed = milliseconds(billed.item.updated_at or event.occurred_at)
    seconds, rest = divmod(changed, 1000)
    rank = _RANK[billed.status]
    return f"{int(billed.status == 'ended')}.{seconds:012d}.{rest:03d}.{rank}.{event.id}"


# ---- whose, and what for ----


class _UnknownPlan(Park):
    pass


def _subject(item: SubscriptionItem) -> str:
    """The name of an item's lock, under which events wait that do not say whose it is."""
    return f"clerk.subscription_item:{item.id}"


def _payer_of(tx: Tx, item: SubscriptionItem, payer: Payer | None) -> tuple[UUID, str | None]:
    """The organisation that pays for an item, and Clerk's id of the payer.

    An event may leave the payer out: then another one of the item has told it, or will.
    """
    if payer is not None and (payer.organization_id or payer.user_id):
        return _organization(tx, payer)
    stored = tx.execute(
        """
        SELECT organization_id, provider_customer_id
        FROM billing.subscriptions
        WHERE provider = 'clerk' AND provider_subscription_id = %s
        """,
        [item.id],
    ).fetchone()
    if stored is None:
        raise Park(_subject(item), "the item names no payer, and no event before it did")
    return stored["organization_id"], stored["provider_customer_id"]


def _organization(tx: Tx, payer: Payer) -> tuple[UUID, str | None]:
    """Raises Park, Gone; Quarantine where the payer is neither a user nor an organisation."""
    reference = payer.organization_id or payer.user_id
    if reference is None:
        raise Quarantine("the payer is neither a user nor an organisation")
    organization_id = customers.organization_named(tx, reference)
    if payer.id is not None:
        customers.link(tx, "clerk", payer.id, organization_id)
    return organization_id, payer.id


def _plan_kept(tx: Tx, item: SubscriptionItem, *, ended: bool) -> BilledPlan:
    """The plan that an item had before, where its event names none, or an end names one that is not
    known. Raises _UnknownPlan.
    """
    name = item.plan_id or item.slug
    plan = plans.of_subscription(tx, "clerk", item.id) if ended or name is None else None
    if plan is None:
        name = name or item.id
        raise _UnknownPlan(f"billing.clerk_plan:{name}", f"no plan here is Clerk's {name}")
    return plan
