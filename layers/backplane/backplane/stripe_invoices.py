"""Invoices: what a paid one gives in credits."""

from backplane import invoice_credits, ledger, stripe_customers, stripe_events, subscriptions
from backplane.db import Tx
from backplane.inbox import Event, Outcome
from backplane.stripe_objects import Invoice


def invoice_paid(tx: Tx, event: Event) -> Outcome:
    """Grants the plan's credits once per invoice: in full for a new period, the difference for a change."""
    invoice = stripe_events.read(Invoice, event)
    if invoice.subscription is None:
        return Outcome("ignored", "the invoice is not a subscription's")
    organization_id, arrived = stripe_customers.organization(
        tx, invoice.customer, invoice.subscription_metadata
    )
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
