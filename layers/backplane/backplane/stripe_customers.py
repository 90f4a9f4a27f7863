"""Whose a Stripe customer's events are.

All events of a customer take the customer's lock first, so they apply one after the other; what
comes before its customer is linked is parked under his name.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from backplane import customers, inbox, stripe_events
from backplane.db import Tx
from backplane.inbox import Park, Quarantine


def organization(tx: Tx, customer: str, metadata: Mapping[str, Any]) -> tuple[UUID, tuple[str, ...]]:
    """The organisation a customer pays for, and the subjects that arrived by finding it out."""
    subject = customers.subject("stripe", customer)
    inbox.lock(tx, subject)
    organization_id = customers.find(tx, "stripe", customer)
    if organization_id is not None:
        return organization_id, ()
    reference = metadata.get("organization_id")
    if reference is None:
        raise unlinked(customer)
    try:
        organization_id = customers.organization_named(
            tx, stripe_events.text(reference, "metadata.organization_id")
        )
    except Quarantine as fault:
        # A checkout may still link him, and must find this waiting if it comes second.
        raise Park(subject, f"{customer} is not linked to an organisation yet, and {fault}") from fault
    customers.link(tx, "stripe", customer, organization_id)
    return organization_id, (subject,)


def unlinked(customer: str) -> Park:
    return Park(customers.subject("stripe", customer), f"{customer} is not linked to an organisation yet")
