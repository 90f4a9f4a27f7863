"""What Stripe's events do, in the order of a subscription's life.

All events of a customer take the customer's lock first, so they apply one after the other; what
comes before its customer is linked is parked under his name.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

from pydantic import BaseModel, ValidationError

from backplane import customers, inbox, invoice_credits, ledger, plans, requests, subscriptions
from backplane.config import settings
from backplane.db import Tx
from backplane.inbox import Event, Outcome, Park, Quarantine
from backplane.periods import YEAR_9999
from backplane.stripe_objects import CheckoutSession, Invoice, Subscription

_KIND_RANK = {"customer.subscription.created": 0, "customer.subscription.deleted": 2}

M = TypeVar("M", bound=BaseModel)


# ---- the events ----


def checkout_completed(tx: Tx, event: Event) -> Outcome:
    """Links the customer to the organisation that the session names; grants a pack that is paid."""
    session = _read(CheckoutSession, event)
    if session.customer is not None:
        inbox.lock(tx, customers.subject("stripe", session.customer))
    organization_id = _session_organization(tx, session)
    arrived: tuple[str, ...] = ()
    if session.customer is not None and customers.link(tx, "stripe", session.customer, organization_id):
        arrived = (customers.subject("stripe", session.customer),)
    reason = None
    if session.mode == "payment":
        if session.payment_status == "unpaid":
            reason = "the payment is still under way; the pack is granted when it succeeds"
        else:
            _grant_pack(tx, session, organization_id)
    return Outcome("processed", reason, organization_id, arrived)


def subscription_changed(tx: Tx, event: Event) -> Outcome:
    """Stores the subscription's state if it is newer than what stands; ends its credits if it is over."""
    subscription = _read(Subscription, event)
    organization_id, arrived = _customer_organization(tx, subscription.customer, subscription.metadata)
    ended = subscription.status == "canceled" or event.type == "customer.subscription.deleted"
    status: subscriptions.Status = "canceled" if ended else subscription.status
    plan = plans.find_by_prices(tx, subscription.price_ids)
    plan_id = plan.id if plan is not None else _plan_kept(tx, subscription, ended=ended)
    period_start, period_end = subscription.period
    applied = subscriptions.save(
        tx,
        subscriptions.Subscription(
            organization_id=organization_id,
            provider="stripe",
            provider_subscription_id=subscription.id,
            provider_customer_id=subscription.customer,
            plan_id=plan_id,
            price_id=next(iter(subscription.price_ids), None),
            status=status,
            current_period_start=period_start,
            current_period_end=period_end,
            cancel_at_period_end=subscription.cancel_at_period_end,
            cancel_at=subscription.cancel_at,
            canceled_at=subscription.canceled_at,
            ended_at=subscription.ended_at,
            trial_end=subscription.trial_end,
        ),
        as_of=subscriptions.as_of(
            ended=ended,
            occurred_at=event.occurred_at,
            kind_rank=_KIND_RANK.get(event.type, 1),
            status=status,
            event_id=event.id,
        ),
    )
    if applied and ended:
        ledger.end_subscription(tx, organization_id, "stripe", subscription.id, actor="stripe")
    subscriptions.record(
        tx,
        subscriptions.HistoryEvent(
            organization_id=organization_id,
            provider="stripe",
            provider_event_id=event.id,
            provider_subscription_id=subscription.id,
            event_type=event.type,
            plan_key=plan.key if plan is not None else None,
            status=status,
            occurred_at=event.occurred_at,
        ),
    )
    if not applied:
        return Outcome("stale", "a newer state of the subscription stands", organization_id, arrived)
    return Outcome("processed", None, organization_id, arrived)


def invoice_paid(tx: Tx, event: Event) -> Outcome:
    """Grants the plan's credits once per invoice: in full for a new period, the difference for a change."""
    invoice = _read(Invoice, event)
    if invoice.subscription is None:
        return Outcome("ignored", "the invoice is not a subscription's")
    organization_id, arrived = _customer_organization(tx, invoice.customer, invoice.subscription_metadata)
    match invoice.billing_reason:
        case "subscription_create" | "subscription_cycle" | "subscription":
            credit: invoice_credits.Credit | None = invoice_credits.of_period(tx, invoice)
        case "subscription_update":
            credit = invoice_credits.of_change(tx, invoice)
        case other:
            return Outcome("ignored", f"no credits for billing reason {other}", organization_id, arrived)
    amount = 0 if credit is None else credit.amount
    if credit is not None and amount > 0 and invoice.billing_reason == "subscription_update":
        amount = invoice_credits.not_yet_granted(tx, organization_id, invoice.subscription, credit)
    if credit is None or amount <= 0:
        reason = "nothing to grant: a trial, a downgrade, or granted before in this period"
        return Outcome("processed", reason, organization_id, arrived)
    ledger.grant(
        tx,
        ledger.Grant(
            organization_id=organization_id,
            source="plan",
            source_key=f"invoice:{invoice.id}",
            amount=amount,
            actor="stripe",
            expires_at=credit.lasts_until + ledger.PLAN_GRACE,
            plan_id=credit.plan.id,
            provider="stripe",
            provider_subscription_id=invoice.subscription,
            period_end=credit.period_end,
            invoice_id=invoice.id,
            payment_intent_id=invoice.payment_intent,
            charge_id=invoice.charge,
        ),
    )
    stored = subscriptions.status_of(tx, "stripe", invoice.subscription)
    if stored is not None and stored[0] == "canceled":
        # The end of the subscription was told before this payment: its credits are over too.
        ledger.end_subscription(tx, organization_id, "stripe", invoice.subscription, actor="stripe")
    return Outcome("processed", None, organization_id, arrived)


def _ours(effect: inbox.Effect) -> inbox.Effect:
    """Records without effect what is not this stage's: test events in prod, live ones elsewhere,
    events of connected accounts.
    """

    def guarded(tx: Tx, event: Event) -> Outcome:
        livemode = event.data.get("livemode", False)
        if livemode is not settings().livemode:
            return Outcome("ignored", f"livemode is {livemode}, this stage takes {settings().livemode}")
        if event.data.get("account") is not None:
            return Outcome("ignored", "the event is a connected account's")
        return effect(tx, event)

    return guarded


EFFECTS: Mapping[str, inbox.Effect] = {
    "checkout.session.completed": _ours(checkout_completed),
    "checkout.session.async_payment_succeeded": _ours(checkout_completed),
    "customer.subscription.created": _ours(subscription_changed),
    "customer.subscription.updated": _ours(subscription_changed),
    "customer.subscription.deleted": _ours(subscription_changed),
    "invoice.paid": _ours(invoice_paid),
}


# ---- whose ----


def _session_organization(tx: Tx, session: CheckoutSession) -> UUID:
    reference = session.client_reference_id or session.metadata.get("organization_id")
    if reference is not None:
        return customers.organization_named(tx, _text(reference, "the organisation's reference"))
    if session.customer is None:
        raise Quarantine("the session names neither an organisation nor a customer")
    organization_id = customers.find(tx, "stripe", session.customer)
    if organization_id is None:
        raise _unlinked(session.customer)
    return organization_id


def _customer_organization(
    tx: Tx, customer: str, metadata: Mapping[str, Any]
) -> tuple[UUID, tuple[str, ...]]:
    """The organisation a customer pays for, and the subjects that arrived by finding it out."""
    subject = customers.subject("stripe", customer)
    inbox.lock(tx, subject)
    organization_id = customers.find(tx, "stripe", customer)
    if organization_id is not None:
        return organization_id, ()
    reference = metadata.get("organization_id")
    if reference is None:
        raise _unlinked(customer)
    try:
        organization_id = customers.organization_named(tx, _text(reference, "metadata.organization_id"))
    except Quarantine as fault:
        # A checkout may still link him, and must find this waiting if it comes second.
        raise Park(subject, f"{customer} is not linked to an organisation yet, and {fault}") from fault
    customers.link(tx, "stripe", customer, organization_id)
    return organization_id, (subject,)


def _unlinked(customer: str) -> Park:
    return Park(customers.subject("stripe", customer), f"{customer} is not linked to an organisation yet")


# ---- what for ----


def _grant_pack(tx: Tx, session: CheckoutSession, organization_id: UUID) -> None:
    pack_id = session.metadata.get("pack_id")
    if pack_id is None:
        raise Park(
            f"stripe.session:{session.id}",
            "the session has no metadata.pack_id, and no Stripe key is configured to fetch its line items",
        )
    pack = plans.find_pack(tx, _text(pack_id, "metadata.pack_id"))
    if pack is None:
        raise Park(f"billing.pack:{pack_id}", f"there is no pack {pack_id}")
    ledger.grant(
        tx,
        ledger.Grant(
            organization_id=organization_id,
            source="pack",
            source_key=f"session:{session.id}",
            amount=pack.credits,
            actor="stripe",
            provider="stripe",
            checkout_session_id=session.id,
            invoice_id=session.invoice,
            payment_intent_id=session.payment_intent,
        ),
    )


def _plan_kept(tx: Tx, subscription: Subscription, *, ended: bool) -> UUID:
    """The plan of a subscription whose price we don't know: an end needs none, a change waits for it."""
    stored = subscriptions.status_of(tx, "stripe", subscription.id)
    if ended and stored is not None:
        return stored[1]
    raise invoice_credits.unknown_price(subscription.price_ids)


# ---- reading ----


def parse(event_id: str | None, body: bytes) -> Event:
    """A verified body as an event. Raises InvalidPayload where it has no envelope to record it by."""
    data, defect = requests.parse_event(body)
    identifier = requests.envelope_text(data, "id") if event_id is None else event_id
    created = data.get("created")
    if type(created) is not int or not 0 <= created < YEAR_9999:
        created, defect = 0, "created is not a time in whole seconds"
    return Event(
        provider="stripe",
        id=identifier,
        type=requests.envelope_text(data, "type"),
        occurred_at=datetime.fromtimestamp(created, UTC),
        data=data,
        body=body,
        defect=defect,
    )


def _read(model: type[M], event: Event) -> M:
    """The event's object. Raises Quarantine where it is not of Stripe's shape."""
    data = event.data.get("data")
    try:
        return model.model_validate(data.get("object") if isinstance(data, dict) else None)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise Quarantine(f"data.object is not a {model.__name__}: {faults}") from error


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value or len(value) > requests.MAX_ENVELOPE_TEXT:
        raise Quarantine(f"{name} is not a text of 1 to {requests.MAX_ENVELOPE_TEXT} characters")
    return value
