"""Clerk's events: how they are read back, whose they are, and which function applies which."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from backplane import clerk_billing, clerk_organizations, clerk_users, inbox, requests
from backplane.clerk_objects import moment
from backplane.config import settings
from backplane.db import Tx
from backplane.inbox import Event, Outcome

_USER_ID = re.compile(r"user_[A-Za-z0-9_-]{1,64}")


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
    told, defect = requests.parse_event(body)
    event_type = requests.envelope_text(told, "type")
    # Who did it, from which address and with what: nothing here is of use to us.
    data = {name: value for name, value in told.items() if name != "event_attributes"}
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
        body=_kept(event_type, data, body, told=told),
        person=_person(event_type, data.get("data")),
        defect=defect,
    )


def _kept(event_type: str, data: Mapping[str, Any], body: bytes, *, told: Mapping[str, Any]) -> bytes | None:
    """What the inbox keeps of a body. Of kinds without effect, nothing: there are sign-in codes, sessions
    and other people's addresses among them.
    """
    if event_type not in EFFECTS:
        return None
    return body if data == told else json.dumps(data).encode()


def _person(event_type: str, data: object) -> str | None:
    """Clerk's id of the user whose name, address or picture an event carries."""
    match event_type.partition(".")[0], data:
        case "user", {"id": str(user_id)}:
            pass
        case "organizationMembership", {"public_user_data": {"user_id": str(user_id)}}:
            pass
        case (
            ("subscription" | "subscriptionItem" | "paymentAttempt"),
            {"payer": {"user_id": str(user_id)} as payer},
        ) if not payer.get("organization_id"):
            pass
        case _:
            return None
    return user_id if _USER_ID.fullmatch(user_id) else None
