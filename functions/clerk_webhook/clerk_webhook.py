"""Clerk's events, sent by Svix: verified, handed to the inbox, applied by backplane.clerk_effects."""

from collections.abc import Iterable, Mapping
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

from backplane import clerk_effects, requests, secrets, webhooks
from backplane.config import settings
from backplane.inbox import Event
from backplane.problems import InvalidSignature


def verify(event: Mapping[str, Any], body: bytes) -> Event:
    """The event, if any of the endpoint's secrets signed it. Raises InvalidSignature, InvalidPayload."""
    headers = {
        f"webhook-{name}": requests.header(event, f"svix-{name}") or ""
        for name in ("id", "timestamp", "signature")
    }
    # Also in form: the id becomes the inbox row's, and a NUL would not fit there.
    if not all(
        0 < len(value) <= limit and value.isascii() and value.isprintable()
        for value, limit in zip(headers.values(), (255, 32, 4096), strict=True)
    ):
        raise InvalidSignature(
            "The svix-id, svix-timestamp and svix-signature headers are needed. Is it Clerk?"
        )
    arn = settings().clerk_webhook_secret_arn
    try:
        _verify_signature(body, headers, secrets.signing_secrets(arn))
    except InvalidSignature:
        # A secret that was rolled a moment ago is not in our cache yet.
        _verify_signature(body, headers, secrets.signing_secrets(arn, refresh=True))
    return clerk_effects.parse(headers["webhook-id"], body)


def _verify_signature(body: bytes, headers: dict[str, str], endpoint_secrets: Iterable[str]) -> None:
    source = requests.text(body)
    for secret in endpoint_secrets:
        try:
            Webhook(secret).verify(source, headers, json_parse=False)
        except (WebhookVerificationError, ValueError):  # ValueError: malformed headers (the library's way)
            continue
        return
    raise InvalidSignature(
        "No signature matches, or its timestamp is more than 5 minutes away. Is the endpoint's signing "
        "secret (whsec_…) the one in Secrets Manager?"
    )


handler = webhooks.lambda_handler(verify)
