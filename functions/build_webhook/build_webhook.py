"""Callbacks of Expo EAS, Vercel and GitHub, each integration's under its own URL and secret.

They are verified, handed to the inbox, and applied by the effects of backplane.callbacks.
"""

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, cast
from uuid import UUID

from callback_signature import SCHEMES, Sender, verify_signature

from backplane import db, eas_callbacks, github_callbacks, integrations, requests, vercel_callbacks, webhooks
from backplane.inbox import Event
from backplane.integrations import WebhookIntegration
from backplane.problems import InvalidPayload, InvalidSignature, NotFound

MAX_AGE: Final = 60.0  # seconds an integration is served from memory
MIN_REFRESH: Final = 5.0  # seconds between two looks for newer secrets: forgers cannot make us look at will
MOST_KEPT: Final = 500  # integrations in memory

_PATH: Final = re.compile(r".*/webhooks/(eas|vercel|github)/([0-9A-Fa-f-]{36})", re.ASCII)
_DELIVERY: Final = re.compile(r"[0-9A-Za-z-]{1,64}", re.ASCII)

_UNKNOWN: Final = (
    "There is no such integration. GET /v1/integrations tells the webhook_url of those there are."
)

_known: dict[tuple[Sender, UUID], tuple[float, WebhookIntegration]] = {}


def verify(event: Mapping[str, Any], body: bytes) -> Event:
    """The event, if a secret of the path's integration signed it.

    Raises NotFound, InvalidSignature, InvalidPayload.
    """
    sender, integration_id = _addressed(event)
    signature = requests.header(event, SCHEMES[sender].header)
    try:
        verify_signature(sender, body, signature, _integration(sender, integration_id).secrets)
    except InvalidSignature:
        # A secret that was rotated a moment ago is not in our memory yet.
        fresh = _integration(sender, integration_id, refresh=True)
        verify_signature(sender, body, signature, fresh.secrets)
    match sender:
        case "eas":
            return eas_callbacks.received(integration_id, body)
        case "vercel":
            return vercel_callbacks.received(integration_id, body)
        case "github":
            return github_callbacks.received(integration_id, _delivery(event), body)


def _addressed(event: Mapping[str, Any]) -> tuple[Sender, UUID]:
    """The sender and the integration that the path names. Raises NotFound."""
    if found := _PATH.fullmatch(str(event.get("rawPath"))):
        with suppress(ValueError):
            return cast("Sender", found[1]), UUID(found[2])
    raise NotFound(_UNKNOWN)


def _integration(sender: Sender, integration_id: UUID, *, refresh: bool = False) -> WebhookIntegration:
    """As it was a moment ago; with `refresh`, a shorter one. Raises NotFound."""
    key = (sender, integration_id)
    now = time.monotonic()
    if (kept := _known.get(key)) and now - kept[0] < (MIN_REFRESH if refresh else MAX_AGE):
        return kept[1]
    found = db.run(partial(integrations.webhook_of, provider=sender, integration_id=integration_id))
    if found is None:
        _known.pop(key, None)
        raise NotFound(_UNKNOWN)
    if len(_known) >= MOST_KEPT:
        _known.clear()
    _known[key] = (now, found)
    return found


def _delivery(event: Mapping[str, Any]) -> str:
    delivery = requests.header(event, "x-github-delivery")
    if delivery is None or not _DELIVERY.fullmatch(delivery):
        raise InvalidPayload("The x-github-delivery header is needed. Is it GitHub?")
    return delivery


handler = webhooks.lambda_handler(verify)
