"""Whose a Stripe customer's events are, and what his deletion ends.

All events of a customer take the customer's lock first, so they apply one after the other; what
comes before its customer is linked is parked under his name. An object that names an organisation
is that one's, whoever the customer is linked to; the link is for those that name none
(docs/decisions/who-a-payment-is-for.md).
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from backplane import customers, ledger, stripe_events, subscriptions
from backplane.db import Tx
from backplane.inbox import Event, Outcome, Park, Quarantine
from backplane.plans import PricedPlan
from backplane.stripe_objects import Customer, Subscription


class Deleted(Exception):  # noqa: N818  an outcome, not an error
    """The customer was deleted: what is told of him comes too late. Whose it was is known all the same."""

    def __init__(self, at: datetime, organization_id: UUID, arrived: tuple[str, ...]) -> None:
        super().__init__("the customer was deleted")
        self.at = at
        self.organization_id = organization_id
        self.arrived = arrived

    def ended(self, subscription: Subscription) -> Subscription:
        """The subscription as the deletion left it."""
        if subscription.status == "canceled":
            return subscription
        over = {
            "status": "canceled",
            "ended_at": subscription.ended_at or self.at,
            "canceled_at": subscription.canceled_at or self.at,
        }
        return subscription.model_copy(update=over)


def organization(tx: Tx, customer: str, metadata: Mapping[str, Any]) -> tuple[UUID, tuple[str, ...]]:
    """The organisation that a subscription or an invoice is for, and the subjects that arrived by
    finding it out. Raises Deleted, Park.
    """
    return _whose(tx, customer, customers.lock(tx, "stripe", customer), metadata)


def organization_and_plan(
    tx: Tx, subscription: Subscription
) -> tuple[UUID, tuple[str, ...], PricedPlan | None]:
    """As `organization`, and the plan of the subscription's prices."""
    known, plan = customers.lock_with_plan(tx, "stripe", subscription.customer, subscription.price_ids)
    return *_whose(tx, subscription.customer, known, subscription.metadata), plan


def _whose(
    tx: Tx, customer: str, known: customers.Customer | None, metadata: Mapping[str, Any]
) -> tuple[UUID, tuple[str, ...]]:
    found = _named_or_linked(tx, customer, known.organization_id if known is not None else None, metadata)
    if known is not None and known.deleted:
        raise Deleted(customers.deleted_at(tx, "stripe", customer), *found)
    return found


def _named_or_linked(
    tx: Tx, customer: str, linked: UUID | None, metadata: Mapping[str, Any]
) -> tuple[UUID, tuple[str, ...]]:
    subject = customers.subject("stripe", customer)
    reference = metadata.get("organization_id")
    if reference is not None:
        try:
            named = customers.organization_named(
                tx, stripe_events.text(reference, "metadata.organization_id")
            )
        except Quarantine as fault:
            if linked is None:
                # A checkout may still link him, and must find this waiting if it comes second.
                raise Park(
                    subject, f"{customer} is not linked to an organisation yet, and {fault}"
                ) from fault
        else:
            return named, (subject,) if customers.link(tx, "stripe", customer, named) else ()
    if linked is None:
        raise unlinked(customer)
    return linked, ()


def unlinked(customer: str) -> Park:
    return Park(customers.subject("stripe", customer), f"{customer} is not linked to an organisation yet")


def customer_deleted(tx: Tx, event: Event) -> Outcome:
    """Leaves a tombstone and ends the customer's subscriptions, as Stripe does. Packs stay.

    What is told of him later ends as it would have, told before.
    """
    customer = stripe_events.read(Customer, event).id
    known = customers.lock(tx, "stripe", customer)
    if known is not None and known.deleted:
        return Outcome("stale", "the customer was deleted before", known.organization_id)
    customers.bury(tx, "stripe", customer, event.occurred_at)
    for subscription, told in subscriptions.of_customer(tx, "stripe", customer):
        over = replace(
            subscription,
            status="canceled",
            canceled_at=subscription.canceled_at or event.occurred_at,
            ended_at=event.occurred_at,
        )
        # No newer than it was: a state that comes late, or an end, may tell more.
        if subscriptions.save(tx, over, as_of=subscriptions.as_ended(told)):
            ledger.end_subscription(
                tx, over.organization_id, "stripe", over.provider_subscription_id, actor="stripe"
            )
    # What waits for him to be linked waits on: a checkout may yet say whose he was.
    return Outcome("processed", None, known.organization_id if known is not None else None)
