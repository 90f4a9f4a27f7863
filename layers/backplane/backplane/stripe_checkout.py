"""Checkout sessions: they link a customer to his organisation, and pay for packs of credits."""

from uuid import UUID

from backplane import customers, inbox, ledger, plans, stripe_customers, stripe_events
from backplane.db import Tx
from backplane.inbox import Event, Outcome, Park, Quarantine
from backplane.stripe_objects import CheckoutSession


def completed(tx: Tx, event: Event) -> Outcome:
    """Links the customer to the organisation that the session names; grants a pack that is paid."""
    session = stripe_events.read(CheckoutSession, event)
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


def _session_organization(tx: Tx, session: CheckoutSession) -> UUID:
    reference = session.client_reference_id or session.metadata.get("organization_id")
    if reference is not None:
        return customers.organization_named(tx, stripe_events.text(reference, "the organisation's reference"))
    if session.customer is None:
        raise Quarantine("the session names neither an organisation nor a customer")
    organization_id = customers.find(tx, "stripe", session.customer)
    if organization_id is None:
        raise stripe_customers.unlinked(session.customer)
    return organization_id


def _grant_pack(tx: Tx, session: CheckoutSession, organization_id: UUID) -> None:
    pack_id = session.metadata.get("pack_id")
    if pack_id is None:
        raise Park(
            f"stripe.session:{session.id}",
            "the session has no metadata.pack_id, and no Stripe key is configured to fetch its line items",
        )
    pack = plans.find_pack(tx, stripe_events.text(pack_id, "metadata.pack_id"))
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
