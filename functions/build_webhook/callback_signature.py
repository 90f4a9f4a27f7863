"""How Expo, Vercel and GitHub sign: HMAC over the raw body, in hex, each in a header of its own."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from backplane.problems import InvalidSignature

Sender = Literal["eas", "vercel", "github"]


@dataclass(frozen=True, slots=True)
class Scheme:
    header: str
    prefix: str
    digest: Literal["sha1", "sha256"]

    def matches(self, signature: str) -> bool:
        """Whether it has the form of one."""
        digits = hashlib.new(self.digest, usedforsecurity=False).digest_size * 2
        return re.fullmatch(f"{self.prefix}[0-9a-f]{{{digits}}}", signature) is not None

    def sign(self, secret: str, body: bytes) -> str:
        return self.prefix + hmac.new(secret.encode(), body, self.digest).hexdigest()


# docs.expo.dev/eas/webhooks, vercel.com/docs/webhooks/webhooks-api and
# docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries
SCHEMES: Final[Mapping[Sender, Scheme]] = {
    "eas": Scheme("expo-signature", "sha1=", "sha1"),
    "vercel": Scheme("x-vercel-signature", "", "sha1"),
    "github": Scheme("x-hub-signature-256", "sha256=", "sha256"),
}


def verify_signature(sender: Sender, body: bytes, signature: str | None, secrets: Iterable[str]) -> None:
    """Raises InvalidSignature unless one of the secrets signed the body."""
    scheme = SCHEMES[sender]
    if signature is None or not scheme.matches(signature):
        raise InvalidSignature(
            f"The {scheme.header} header must be {scheme.prefix or 'bare '}hex of {scheme.digest.upper()}. "
            "Is a secret set where the webhook is configured?"
        )
    if not any(hmac.compare_digest(scheme.sign(secret, body), signature) for secret in secrets):
        raise InvalidSignature(
            "The signature does not match. Is the secret the one that the integration was given?"
        )
