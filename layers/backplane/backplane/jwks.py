"""The public keys that sign session tokens: given as a PEM, or fetched from Clerk's JWKS and cached."""

import base64
import http.client
import json
import logging
import re
import threading
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key
from jwt import PyJWTError
from jwt.algorithms import RSAAlgorithm

from backplane.config import settings
from backplane.problems import Unavailable

MAX_AGE = 3600.0  # seconds a set is used before it is fetched again
MIN_REFRESH = 30.0  # seconds between fetches: a forged `kid` must not make us fetch at will
MIN_RETRY = 5.0  # seconds between fetches while there is nothing to verify with
TIMEOUT = 3.0  # seconds, for connecting and for each read
MAX_BYTES = 65_536
MIN_KEY_BITS = 2048  # RFC 7518, 3.3

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _KeySet:
    keys: Mapping[str, RSAPublicKey]  # empty: never fetched
    fetched_at: float
    attempted_at: float  # the last fetch, failed or not

    def needs_fetch(self, kid: str, now: float) -> bool:
        # A clock that was set back makes ages negative: those count as old.
        waited = now - self.attempted_at
        if not self.keys:
            return not 0 <= waited < MIN_RETRY
        if 0 <= waited < MIN_REFRESH:
            return False
        return kid not in self.keys or not 0 <= now - self.fetched_at < MAX_AGE


_sets: dict[str, _KeySet] = {}
_lock = threading.Lock()  # one fetch at a time; the others wait for its result


def signing_key(kid: str | None, *, now: float) -> RSAPublicKey | None:
    """The key to verify a token with, or None where no key has that id.

    A set that is too old is still used while a newer one cannot be fetched: Clerk's outage
    must not sign everyone out. Raises Unavailable where there never was one.
    """
    configured = settings()
    if configured.clerk_jwt_key:
        return _from_pem(configured.clerk_jwt_key)
    if kid is None:
        return None
    url = configured.clerk_jwks_url or f"{configured.clerk_issuer.rstrip('/')}/.well-known/jwks.json"
    with _lock:
        known = _sets.get(url)
        if known is None or known.needs_fetch(kid, now):
            known = _sets[url] = _refresh(url, known, now)
    if not known.keys:
        raise Unavailable("Session tokens cannot be verified right now. Repeat the request in a moment.")
    return known.keys.get(kid)


def _refresh(url: str, known: _KeySet | None, now: float) -> _KeySet:
    try:
        keys = _fetch(url)
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        log.warning("cannot fetch the JWKS from %s: %s: %s", url, type(error).__name__, error)
        if known is None:
            return _KeySet({}, fetched_at=now, attempted_at=now)
        return _KeySet(known.keys, known.fetched_at, attempted_at=now)
    return _KeySet(keys, fetched_at=now, attempted_at=now)


def _fetch(url: str) -> Mapping[str, RSAPublicKey]:
    # Named, because the networks in front of identity providers refuse urllib's own user agent.
    request = urllib.request.Request(  # noqa: S310  the address is the operator's, never a caller's
        url, headers={"Accept": "application/json", "User-Agent": "backplane"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
        body = answer.read(MAX_BYTES + 1)
    if len(body) > MAX_BYTES:
        raise ValueError(f"the set is larger than {MAX_BYTES} bytes")
    document = json.loads(body)
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("the document has no list of keys")  # noqa: TRY004  it is content, not a type
    usable = {entry["kid"]: key for entry in entries if (key := _from_jwk(entry)) is not None}
    if not usable:
        raise ValueError("the set has no RSA signing key")
    return usable


def _from_jwk(entry: Any) -> RSAPublicKey | None:
    """The RSA signing key in an entry; None for every other kind, as a set may hold several."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str):
        return None
    if entry.get("kty") != "RSA" or entry.get("use") != "sig" or entry.get("alg", "RS256") != "RS256":
        return None
    try:
        key = RSAAlgorithm.from_jwk(entry)
    except (PyJWTError, ValueError, TypeError, KeyError):
        return None
    return key if isinstance(key, RSAPublicKey) and key.key_size >= MIN_KEY_BITS else None


@lru_cache(maxsize=4)
def _from_pem(pem: str) -> RSAPublicKey:
    r"""A PEM as it comes through environment variables and parameters: its line ends may be kept,
    spaces, or a literal `\n`. Raises RuntimeError where it is no RSA public key.
    """
    encoded = re.sub(r"-----[A-Z ]+-----|\s", "", pem.replace("\\n", "\n"))
    try:
        key = load_der_public_key(base64.b64decode(encoded, validate=True))
    except ValueError:
        key = None
    if not isinstance(key, RSAPublicKey) or key.key_size < MIN_KEY_BITS:
        raise RuntimeError("CLERK_JWT_KEY must be a PEM with an RSA public key of 2048 bits or more")
    return key
