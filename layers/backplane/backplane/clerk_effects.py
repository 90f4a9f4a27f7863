"""Clerk's events: how they are read back, whose they are, and which function applies which."""

from collections.abc import Mapping
from datetime import UTC, datetime

from backplane import clerk_billing, clerk_organizations, clerk_users, inbox, requests
from backplane.clerk_objects import moment
from backplane.config import settings
from backplane.db import Tx
from backplane.inbox import Event, Outcome


def _ours(effect: inbox.Effect) -> inbox.Effect:
    """Records without effect what another Clerk instance tells, where ours is configured."""

    def guarded(tx: Tx, event: Event) -> Outcome:
        told, ours = event.data.get("instance_id"), settings().clerk_instance_id
        if ours is not None and told is not None and told != ours:
            return Outcome("ignored", f"the event is of another Clerk instance than {ours}")
        return effect(tx, event)

    return guarded


EFFECTS: Mapping[str, inbox.Effect] = {
    kind: _ours(effect)
    for kind, effect in {
        "user.created": clerk_users.user_saved,
        "user.updated": clerk_users.user_saved,
        "user.deleted": clerk_users.user_deleted,
        "organization.created": clerk_organizations.organization_saved,
        "organization.updated": clerk_organizations.organization_saved,
        "organization.deleted": clerk_organizations.organization_deleted,
        "organizationMembership.created": clerk_organizations.membership_saved,
        "organizationMembership.updated": clerk_organizations.membership_saved,
        "organizationMembership.deleted": clerk_organizations.membership_deleted,
        "subscription.created": clerk_billing.subscription_changed,
        "subscription.updated": clerk_billing.subscription_changed,
        "subscription.active": clerk_billing.subscription_changed,
        "subscription.pastDue": clerk_billing.subscription_changed,
        "subscriptionItem.created": clerk_billing.item_changed,
        "subscriptionItem.updated": clerk_billing.item_changed,
        "subscriptionItem.incomplete": clerk_billing.item_changed,
        "subscriptionItem.abandoned": clerk_billing.item_changed,
        "subscriptionItem.upcoming": clerk_billing.item_changed,
        "subscriptionItem.active": clerk_billing.item_changed,
        "subscriptionItem.freeTrialEnding": clerk_billing.trial_ending,
        "subscriptionItem.pastDue": clerk_billing.item_changed,
        "subscriptionItem.canceled": clerk_billing.item_changed,
        "subscriptionItem.ended": clerk_billing.item_changed,
        "paymentAttempt.created": clerk_billing.payment_changed,
        "paymentAttempt.updated": clerk_billing.payment_changed,
    }.items()
}


def parse(event_id: str, body: bytes) -> Event:
    """A verified body as an event. Its id is the `svix-id` header: the body has none.

    Raises InvalidPayload where it has no envelope to record it by.
    """
    data, defect = requests.parse_event(body)
    event_type = requests.envelope_text(data, "type")
    try:
        occurred_at = moment(data.get("timestamp"))
    except ValueError:
        occurred_at, defect = None, "timestamp is not a time"
    return Event(
        provider="clerk",
        id=event_id,
        type=event_type,
        occurred_at=occurred_at or datetime.now(UTC),
        data=data,
        body=body,
        defect=defect,
    )
