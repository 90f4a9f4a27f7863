"""What Stripe's API says of an event's subject now, where a key for it is configured.

An event tells how things were when it was made, and may come late, twice and out of order. What can't be
fetched is done without: a Stripe API that is away, or a key that is refused, leaves us as we are without a
key, with the events' own word and order. docs/decisions/refetch.md says why.
"""

import logging
from collections.abc import Mapping
from typing import Any

from backplane import inbox, requests, stripe_api, stripe_events
from backplane.inbox import Event, Fetched
from backplane.problems import Unavailable

_logger = logging.getLogger("backplane.stripe_refetch")


def fetch(event: Event) -> Fetched | None:
    """What the event is about, or None where there is nothing to fetch or nothing to be had.

    A subscription event's subscription; a checkout session with its line items where it does not name its
    pack.
    Raises Unavailable only where the database is not there.
    """
    if not stripe_api.configured() or stripe_events.foreign(event) is not None:
        return None
    path = _wanted(event.type, stripe_events.told(event))
    began_at = None if path is None else inbox.unapplied_at(event)
    if path is None or began_at is None:
        return None
    try:
        return Fetched(began_at, stripe_api.get(path, **_expanded(event.type)))
    except stripe_api.Refused as refusal:
        # 404: deleted with its account's test data, or another account's key. The event's word stands.
        _logger.warning("%s of %s is not to be had: %s", path, event.id, refusal)
    except Unavailable as problem:
        _logger.warning("%s of %s could not be fetched: %s", path, event.id, problem.detail)
    return None


def _wanted(event_type: str, told: object) -> str | None:
    if not isinstance(told, Mapping):
        return None
    identifier = told.get("id")
    if not isinstance(identifier, str) or not 0 < len(identifier) <= requests.MAX_ENVELOPE_TEXT:
        return None
    if event_type.startswith("customer.subscription."):
        return stripe_api.path("subscriptions", identifier)
    if event_type.startswith("checkout.session.") and _names_no_pack(told):
        return stripe_api.path("checkout", "sessions", identifier)
    return None


def _names_no_pack(session: Mapping[str, Any]) -> bool:
    metadata = session.get("metadata") or {}
    return (
        session.get("mode") == "payment" and isinstance(metadata, Mapping) and metadata.get("pack_id") is None
    )


def _expanded(event_type: str) -> dict[str, list[str]]:
    return {"expand": ["line_items"]} if event_type.startswith("checkout.session.") else {}
