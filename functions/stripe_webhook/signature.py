"""Stripe's signature scheme v1: HMAC-SHA256 over `{timestamp}.{body}`, hex, in `Stripe-Signature`.

Our own and not the SDK's: importing the SDK takes longer than all the rest of this function, and its
check lets timestamps of the future through and raises what is not a refusal on malformed headers.
Source: docs.stripe.com/webhooks#verify-manually
"""

import hashlib
import hmac
import re
from collections.abc import Iterable

from backplane.problems import InvalidSignature

MAX_HEADER_BYTES = 4096
TOLERANCE = 300  # seconds, past and future: a captured request is good for no longer

_TIMESTAMP = re.compile(r"t=(\d{1,12})", re.ASCII)
_SIGNATURE = re.compile(r"v1=([0-9a-f]{64})", re.ASCII)


def verify_signature(body: bytes, header: str | None, secrets: Iterable[str], *, now: float) -> None:
    """Raises InvalidSignature unless one of the header's v1 signatures is one of the secrets' own.

    `now` in seconds of the epoch. Several signatures stand in the header, and several secrets are in
    force, while a secret is being rolled.
    """
    if not header or len(header) > MAX_HEADER_BYTES:
        raise InvalidSignature("The Stripe-Signature header is missing or too long. Is the sender Stripe?")
    parts = [part.strip() for part in header.split(",")]
    timestamps = [match[1] for part in parts if (match := _TIMESTAMP.fullmatch(part))]
    signatures = [match[1] for part in parts if (match := _SIGNATURE.fullmatch(part))]
    if len(timestamps) != 1 or not signatures:
        raise InvalidSignature("The Stripe-Signature header must hold one t= and at least one v1=.")
    if abs(now - int(timestamps[0])) > TOLERANCE:
        raise InvalidSignature(
            f"The signature's timestamp is more than {TOLERANCE} seconds away. Check both clocks."
        )
    payload = timestamps[0].encode() + b"." + body
    for secret in secrets:
        expected = hmac.new(secret.encode(), payload, hashlib.sha256).hexdigest()
        if any(hmac.compare_digest(expected, signature) for signature in signatures):
            return
    raise InvalidSignature(
        "No signature matches. Is the endpoint's signing secret (whsec_…) the one in Secrets Manager?"
    )
