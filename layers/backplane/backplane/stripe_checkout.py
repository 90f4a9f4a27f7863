"""Checkout sessions: they link a customer to his organisation, and pay for packs of credits."""

import re
from uuid import UUID

from backplane import customers, inbox, ledger, outbox, payments, plans, stripe_customers, stripe_events
from backplane.db import Tx
from backplane.inbox import Event, Outcome, Park, Quarantine
from backplane.invoice_credits import unknown_price
from backplane.payments import Link, Purchase, PurchaseStatus
from backplane.stripe_objects import CheckoutSession

# What metadata.credits may be, for it comes as text and decides what is given.
_CREDITS = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)


def checkout_completed(tx: Tx, event: Event) -> Outcome:
    """Links the customer to the organisation that the session names; grants a pack that is paid."""
    session = stripe_events.current(CheckoutSession, event)
    organization_id, arrived = _organization(tx, session)
    if organization_id is None:
        return Outcome("ignored", "the session names neither an organisation, a customer nor a pack")
    if session.mode != "payment":
        return Outcome("processed", None, organization_id, arrived)
    if session.payment_status == "unpaid":
        _record(tx, session, organization_id, "pending")
        reason = "the payment is still under way; the pack is granted when it succeeds"
        return Outcome("processed", reason, organization_id, arrived)
    try:
        amount = _credits(tx, session)
    except Park as park:
        # The customer's link stands: his other events need not wait for this one.
        inbox.lock(tx, park.waiting_for)
        return Outcome("parked", park.reason, organization_id, arrived, park.waiting_for)
    return Outcome("processed", None, organization_id, arrived + _grant(tx, session, organization_id, amount))


def checkout_failed(tx: Tx, event: Event) -> Outcome:
    """The payment that was under way came to nothing, and the session with it."""
    session = stripe_events.read(CheckoutSession, event)
    organization_id, arrived = _organization(tx, session)
    if organization_id is None:
        return Outcome("ignored", "the session names neither an organisation, a customer nor a pack")
    if _record(tx, session, organization_id, "failed") != "failed":
        return Outcome("stale", "the session was paid", organization_id, arrived)
    outbox.append(
        tx,
        "payment.failed",
        organization_id=organization_id,
        payload={
            "provider": "stripe",
            "purchase_id": session.id,
            "provider_subscription_id": session.subscription,
            "amount": session.amount_total,
            "currency": session.currency,
            "attempt": 1,
            "next_attempt_at": None,
        },
    )
    return Outcome("processed", None, organization_id, arrived)


def checkout_expired(tx: Tx, event: Event) -> Outcome:
    """Nobody paid in time: the session is closed."""
    session = stripe_events.read(CheckoutSession, event)
    organization_id, arrived = _organization(tx, session)
    if organization_id is None:
        return Outcome("ignored", "the session names neither an organisation, a customer nor a pack")
    if _record(tx, session, organization_id, "expired") != "expired":
        return Outcome("stale", "the session was paid", organization_id, arrived)
    return Outcome("processed", None, organization_id, arrived)


def _organization(tx: Tx, session: CheckoutSession) -> tuple[UUID | None, tuple[str, ...]]:
    """Whose the session is, and the customer where it linked him.

    None where nobody will ever be found and nothing of ours was bought: a guest at another product's
    till. A paid pack of nobody's is parked instead, for a person to see. Raises Park.
    """
    known = None
    if session.customer is not None:
        known = customers.lock(tx, "stripe", session.customer)
    reference = session.client_reference_id or session.metadata.get("organization_id")
    if reference is not None:
        named = customers.organization_named(
            tx, stripe_events.text(reference, "the organisation's reference")
        )
        if session.customer is not None and customers.link(tx, "stripe", session.customer, named):
            return named, (customers.subject("stripe", session.customer),)
        return named, ()
    if known is not None and known.organization_id is not None:
        return known.organization_id, ()  # a deleted customer's too: what was paid is due
    if session.customer is not None:
        raise stripe_customers.unlinked(session.customer)
    if "pack_id" in session.metadata:
        raise Park(_subject(session), "the session names neither an organisation nor a customer")
    return None, ()


# ---- what for ----


def _credits(tx: Tx, session: CheckoutSession) -> int:
    """How many credits were paid for: the pack's, by its id or its price, unless metadata.credits says
    another number. Raises Park where the pack is not known, Quarantine where the number is none.
    """
    override = session.metadata.get("credits")
    if override is not None and not (isinstance(override, str) and _CREDITS.fullmatch(override)):
        raise Quarantine("metadata.credits is not a whole number from 1 to 999999999")
    pack_id = session.metadata.get("pack_id")
    if pack_id is not None:
        pack = plans.find_pack(tx, stripe_events.text(pack_id, "metadata.pack_id"))
        if pack is None:
            raise Park(f"billing.pack:{pack_id}", f"there is no pack {pack_id}")
        amount = pack.credits
    else:
        amount = _credits_of_items(tx, session)
    return amount if override is None else int(override)


def _credits_of_items(tx: Tx, session: CheckoutSession) -> int:
    items = [] if session.line_items is None else session.line_items.data
    prices = [item.price.id for item in items if item.price is not None]
    if not prices:
        raise Park(
            _subject(session),
            "the session has no metadata.pack_id, and its line items could not be fetched:"
            " is a Stripe API key configured?",
        )
    packs = plans.find_packs_by_prices(tx, prices)
    if not packs:
        raise unknown_price(prices, of="pack")
    return sum(
        packs[item.price.id].credits * item.quantity
        for item in items
        if item.price is not None and item.price.id in packs
    )


def _grant(tx: Tx, session: CheckoutSession, organization_id: UUID, amount: int) -> tuple[str, ...]:
    """Gives the credits, once a session. Answers the payment, which refunds may have waited for."""
    ledger.grant(
        tx,
        ledger.Grant(
            organization_id=organization_id,
            source="pack",
            source_key=f"session:{session.id}",
            amount=amount,
            actor="stripe",
            provider="stripe",
            checkout_session_id=session.id,
            invoice_id=session.invoice,
            payment_intent_id=session.payment_intent,
        ),
    )
    payments.lock_purchase(tx, session.id)
    _record(tx, session, organization_id, "paid")
    if session.invoice is not None:  # which invoice_payment.paid may name instead
        payments.lock_purchase(tx, session.invoice)
        _record(tx, session, organization_id, "paid", purchase_id=session.invoice)
        waited = payments.subjects_of(tx, session.invoice)
    else:
        waited = ()
    if session.payment_intent is None:  # nothing was paid, or by no card
        return waited
    told = Link(
        purchase_id=session.id,
        intent_id=session.payment_intent,
        charge_id=None,
        amount=session.amount_total,
    )
    return tuple(dict.fromkeys(waited + payments.link(tx, told)))


def _record(
    tx: Tx,
    session: CheckoutSession,
    organization_id: UUID,
    status: PurchaseStatus,
    *,
    purchase_id: str | None = None,
) -> PurchaseStatus:
    return payments.record(
        tx,
        Purchase(
            id=purchase_id or session.id,
            organization_id=organization_id,
            status=status,
            amount=session.amount_total,
            currency=session.currency,
        ),
    )


def _subject(session: CheckoutSession) -> str:
    return f"stripe.session:{session.id}"
