"""Stripe's events: verified by signature, handed to the inbox, applied by backplane.stripe_effects."""

import time
from collections.abc import Mapping
from typing import Any

from signature import verify_signature

from backplane import requests, secrets, stripe_events, webhooks
from backplane.config import settings
from backplane.inbox import Event
from backplane.problems import InvalidSignature


def verify(event: Mapping[str, Any], body: bytes) -> Event:
    """The event, if any of the endpoint's secrets signed it. Raises InvalidSignature, InvalidPayload."""
    header = requests.header(event, "stripe-signature")
    arn = settings().stripe_webhook_secret_arn
    try:
        verify_signature(body, header, secrets.signing_secrets(arn), now=time.time())
    except InvalidSignature:
        # A secret that was rolled a moment ago is not in our cache yet.
        verify_signature(body, header, secrets.signing_secrets(arn, refresh=True), now=time.time())
    return stripe_events.parse(None, body)


handler = webhooks.lambda_handler(verify)
