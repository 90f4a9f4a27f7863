"""What Stripe's events do, in the order of a customer's life: which effect is whose."""

from collections.abc import Mapping

from backplane import inbox, stripe_checkout
from backplane.config import settings
from backplane.db import Tx
from backplane.inbox import Event, Outcome
from backplane.stripe_invoices import invoice_paid
from backplane.stripe_subscriptions import subscription_changed


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
    "checkout.session.completed": _ours(stripe_checkout.completed),
    "checkout.session.async_payment_succeeded": _ours(stripe_checkout.completed),
    "customer.subscription.created": _ours(subscription_changed),
    "customer.subscription.updated": _ours(subscription_changed),
    "customer.subscription.deleted": _ours(subscription_changed),
    "invoice.paid": _ours(invoice_paid),
}
