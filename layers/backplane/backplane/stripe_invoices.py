"""Invoices: what a paid one gives in credits, which payment paid it, and what came of the others."""

from datetime import datetime
from uuid import UUID

from backplane import (
    claw_backs,
    invoice_credits,
    ledger,
    outbox,
    payments,
    stripe_customers,
    stripe_events,
    subscriptions,
)
from backplane.db import Tx
from backplane.inbox import Event, Outcome, Park
from backplane.payments import Link, Purchase, PurchaseStatus
from backplane.stripe_objects import Invoice, InvoicePayment

_NOT_OURS = Outcome("ignored", "the invoice is not a subscription's")


def invoice_paid(tx: Tx, event: Event) -> Outcome:
    """Grants the plan's credits once per invoice: in full for a new period, the difference for a change."""
    invoice = stripe_events.read(Invoice, event)
    if invoice.subscription is None:
        return _NOT_OURS
    gone = None
    try:
        organization_id, arrived = stripe_customers.organization(
            tx, invoice.customer, invoice.subscription_metadata
        )
    except stripe_customers.Deleted as late:  # what was paid may be refunded yet
        gone, organization_id, arrived = late, late.organization_id, late.arrived
    match invoice.billing_reason:
        case "subscription_create" | "subscription_cycle" | "subscription":
            credit: invoice_credits.Credit | None = invoice_credits.of_period(tx, invoice)
        case "subscription_update":
            credit = invoice_credits.of_change(tx, invoice)
        case other:
            arrived += _paid(tx, invoice, organization_id, None)  # or a refund of it would wait for ever
            return Outcome("ignored", f"no credits for billing reason {other}", organization_id, arrived)
    arrived += _paid(tx, invoice, organization_id, credit)
    amount = 0 if credit is None else credit.amount
    if credit is not None and amount > 0 and invoice.billing_reason == "subscription_update":
        amount = invoice_credits.not_yet_granted(tx, organization_id, invoice.subscription, credit)
    if credit is None or amount <= 0:
        reason = "nothing to grant: a trial, a downgrade, or granted before in this period"
        return Outcome("processed", reason, organization_id, arrived)
    ledger.grant(tx, _grant(invoice, organization_id, credit, amount))
    stored = subscriptions.status_of(tx, "stripe", invoice.subscription)
    if gone is not None or (stored is not None and stored[0] == "canceled"):
        # The end of the subscription was told before this payment: its credits are over too.
        ledger.end_subscription(tx, organization_id, "stripe", invoice.subscription, actor="stripe")
    if gone is not None:
        return Outcome("stale", str(gone), organization_id, arrived)
    return Outcome("processed", None, organization_id, arrived)


def _grant(
    invoice: Invoice, organization_id: UUID, credit: invoice_credits.Credit, amount: int
) -> ledger.Grant:
    return ledger.Grant(
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
    )


def invoice_payment_paid(tx: Tx, event: Event) -> Outcome:
    """Since basil an invoice does not name its payment: this does, so that refunds find what it gave."""
    told = stripe_events.read(InvoicePayment, event)
    link = Link(
        purchase_id=told.invoice,
        intent_id=told.payment.payment_intent,
        charge_id=told.payment.charge,
        amount=told.amount_paid,
    )
    if link.payment_id is None:
        return Outcome("ignored", "the invoice was paid outside of Stripe")
    payments.lock_purchase(tx, told.invoice)
    arrived = payments.link(tx, link)
    try:
        payment = payments.find(tx, link.intent_id, link.charge_id)
    except Park:
        return Outcome("processed", "the invoice itself is not told yet")
    claw_backs.settle(tx, payment, event_id=event.id)  # it may be one of several: each is a part
    return Outcome("processed", None, payment.organization_id, arrived)


def payment_failed(tx: Tx, event: Event) -> Outcome:
    """Tells that a payment failed. What it means for the plan, the subscription's own event says."""
    return _unpaid(tx, event, "payment.failed", "failed")


def payment_action_required(tx: Tx, event: Event) -> Outcome:
    """Tells that the customer must confirm a payment (3-D Secure)."""
    return _unpaid(tx, event, "payment.action_required", "pending")


def invoice_voided(tx: Tx, event: Event) -> Outcome:
    """Nothing is owed any more. The subscription's own event says what follows."""
    return _closed(tx, event, "void")


def invoice_uncollectible(tx: Tx, event: Event) -> Outcome:
    """It will hardly be paid; if it is, `invoice.paid` comes."""
    return _closed(tx, event, "uncollectible")


# ---- what they share ----


def _unpaid(tx: Tx, event: Event, told: str, status: PurchaseStatus) -> Outcome:
    invoice = stripe_events.read(Invoice, event)
    if invoice.subscription is None:
        return _NOT_OURS
    organization_id, arrived = stripe_customers.organization(
        tx, invoice.customer, invoice.subscription_metadata
    )
    stands = _record(tx, invoice, organization_id, status)
    if stands not in {"pending", "failed"}:
        return Outcome("stale", f"the invoice is {stands}", organization_id, arrived)
    outbox.append(
        tx,
        told,
        organization_id=organization_id,
        payload={
            "provider": "stripe",
            "purchase_id": invoice.id,
            "provider_subscription_id": invoice.subscription,
            "amount": invoice.amount_due,
            "currency": invoice.currency,
            "attempt": invoice.attempt_count,
            "next_attempt_at": _text(invoice.next_payment_attempt),
        }
        | ({"url": invoice.hosted_invoice_url} if told == "payment.action_required" else {}),
    )
    return Outcome("processed", None, organization_id, arrived)


def _closed(tx: Tx, event: Event, status: PurchaseStatus) -> Outcome:
    invoice = stripe_events.read(Invoice, event)
    if invoice.subscription is None:
        return _NOT_OURS
    organization_id, arrived = stripe_customers.organization(
        tx, invoice.customer, invoice.subscription_metadata
    )
    stands = _record(tx, invoice, organization_id, status)
    if stands != status:
        return Outcome("stale", f"the invoice is {stands}", organization_id, arrived)
    return Outcome("processed", None, organization_id, arrived)


def _paid(
    tx: Tx, invoice: Invoice, organization_id: UUID, credit: invoice_credits.Credit | None
) -> tuple[str, ...]:
    """Records what was paid. Answers its payments, which refunds may have waited for."""
    payments.lock_purchase(tx, invoice.id)
    _record(tx, invoice, organization_id, "paid", None if credit is None else credit.paid_for)
    if invoice.payment_intent is None and invoice.charge is None:
        return payments.subjects_of(tx, invoice.id)
    told = Link(
        purchase_id=invoice.id,
        intent_id=invoice.payment_intent,
        charge_id=invoice.charge,
        amount=invoice.amount_paid,
    )
    return payments.link(tx, told)


def _record(
    tx: Tx,
    invoice: Invoice,
    organization_id: UUID,
    status: PurchaseStatus,
    period: tuple[datetime, datetime] | None = None,
) -> PurchaseStatus:
    amount = invoice.amount_paid if status == "paid" else invoice.amount_due
    return payments.record(
        tx,
        Purchase(
            id=invoice.id,
            organization_id=organization_id,
            status=status,
            amount=amount,
            currency=invoice.currency,
            subscription_id=invoice.subscription,
            period=period,
        ),
    )


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
