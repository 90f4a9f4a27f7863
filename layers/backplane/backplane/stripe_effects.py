"""What Stripe's events do, in the order of a customer's life: which effect is whose."""

from collections.abc import Callable, Mapping

from backplane import inbox, stripe_customers, stripe_events
from backplane.db import Tx
from backplane.inbox import Event, Outcome
from backplane.stripe_checkout import checkout_completed, checkout_expired, checkout_failed
from backplane.stripe_disputes import dispute_changed
from backplane.stripe_invoices import (
    invoice_paid,
    invoice_payment_paid,
    invoice_uncollectible,
    invoice_voided,
    payment_action_required,
    payment_failed,
)
from backplane.stripe_refunds import charge_refunded, refund_changed
from backplane.stripe_subscriptions import (
    subscription_changed,
    subscription_changed_at_once,
    trial_will_end,
)


def _ours(effect: inbox.Effect) -> inbox.Effect:
    """Records without effect what is not this stage's: test events in prod, live ones elsewhere,
    events of connected accounts; and what is told of a customer who was deleted.
    """

    def guarded(tx: Tx, event: Event) -> Outcome:
        if (foreign := stripe_events.foreign(event)) is not None:
            return Outcome("ignored", foreign)
        try:
            return effect(tx, event)
        except stripe_customers.Deleted as gone:
            return Outcome("stale", str(gone), gone.organization_id, gone.arrived)

    return guarded


_EFFECTS: Mapping[str, inbox.Effect] = {
    "checkout.session.completed": checkout_completed,
    "checkout.session.async_payment_succeeded": checkout_completed,
    "checkout.session.async_payment_failed": checkout_failed,
    "checkout.session.expired": checkout_expired,
    "customer.subscription.created": subscription_changed,
    "customer.subscription.updated": subscription_changed,
    "customer.subscription.paused": subscription_changed,
    "customer.subscription.resumed": subscription_changed,
    "customer.subscription.pending_update_applied": subscription_changed,
    "customer.subscription.pending_update_expired": subscription_changed,
    "customer.subscription.trial_will_end": trial_will_end,
    "customer.subscription.deleted": subscription_changed,
    "invoice.paid": invoice_paid,
    "invoice_payment.paid": invoice_payment_paid,
    "invoice.payment_failed": payment_failed,
    "invoice.payment_action_required": payment_action_required,
    "invoice.voided": invoice_voided,
    "invoice.marked_uncollectible": invoice_uncollectible,
    "charge.refunded": charge_refunded,
    "charge.refund.updated": refund_changed,  # before acacia
    "refund.created": refund_changed,
    "refund.updated": refund_changed,
    "refund.failed": refund_changed,
    "charge.dispute.created": dispute_changed,
    "charge.dispute.updated": dispute_changed,
    "charge.dispute.funds_withdrawn": dispute_changed,
    "charge.dispute.funds_reinstated": dispute_changed,
    "charge.dispute.closed": dispute_changed,
    "customer.deleted": stripe_customers.customer_deleted,
}

EFFECTS: Mapping[str, inbox.Effect] = {kind: _ours(effect) for kind, effect in _EFFECTS.items()}

AT_ONCE: Mapping[str, Callable[[Event], inbox.Status | None]] = {
    kind: subscription_changed_at_once for kind, effect in _EFFECTS.items() if effect is subscription_changed
}
