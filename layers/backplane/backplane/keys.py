"""API keys `bp_<prefix>_<secret>`: minted once, stored as a hash, found by their prefix."""

import hashlib
import hmac
import logging
import re
import secrets
import string
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from backplane import db
from backplane.problems import Unauthorized, Unavailable
from backplane.scopes import SCOPES_OF_KEY, KeyKind

ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
PREFIX_LENGTH: Final = 12  # public: finds the row, names the key in lists and logs
SECRET_LENGTH: Final = 43  # of 62 letters: 256 bits

USES_REST: Final = timedelta(minutes=1)  # between two writes of how often a key was used

_FORM = re.compile(rf"bp_([0-9A-Za-z]{{{PREFIX_LENGTH}}})_([0-9A-Za-z]{{{SECRET_LENGTH}}})")
_NO_HASH: Final = bytes(32)
_INVALID = "The API key is not valid. Check that it was copied whole, or create a new one."

_logger = logging.getLogger("backplane.keys")
_uses: dict[UUID, int] = {}  # of this process, that are not written yet


@dataclass(frozen=True, slots=True)
class KeyMaterial:
    """A new key. `key` is shown to its owner once and kept nowhere."""

    kind: KeyKind
    key: str = field(repr=False)
    prefix: str
    secret_hash: bytes


@dataclass(frozen=True, slots=True)
class ApiKey:
    id: UUID
    kind: KeyKind
    organization_id: UUID | None  # None: a service key
    scopes: frozenset[str]
    secret_hash: bytes = field(repr=False)
    expires_at: datetime | None
    revoked_at: datetime | None
    organization_state: str | None
    use_is_due: bool  # to be written, by the first that does


def mint_key(kind: KeyKind) -> KeyMaterial:
    """A new random key of either kind; the caller stores `prefix` and `secret_hash`."""
    prefix = "".join(secrets.choice(ALPHABET) for _ in range(PREFIX_LENGTH))
    secret = "".join(secrets.choice(ALPHABET) for _ in range(SECRET_LENGTH))
    return KeyMaterial(kind, f"bp_{prefix}_{secret}", prefix, hash_secret(secret))


def hash_secret(secret: str) -> bytes:
    """SHA-256 and not a password hash: 256 random bits cannot be guessed at any speed, and a hash
    that is slow on purpose would be paid on every request.
    """
    return hashlib.sha256(secret.encode()).digest()


def verify(credential: str, *, now: float) -> ApiKey:
    """The live key behind a credential. Raises Unauthorized.

    Why a key is dead is told only to those who hold its secret.
    """
    form = _FORM.fullmatch(credential)
    if form is None:
        raise Unauthorized(_INVALID)
    prefix, secret = form.groups()
    key = find(prefix)
    # Compared even where there is no such key, so that time doesn't tell which prefixes exist.
    matches = hmac.compare_digest(hash_secret(secret), key.secret_hash if key else _NO_HASH)
    if key is None or not matches:
        raise Unauthorized(_INVALID)
    if key.revoked_at is not None:
        raise Unauthorized("The API key was revoked. Create a new one.")
    if key.expires_at is not None and key.expires_at.timestamp() <= now:
        raise Unauthorized("The API key has expired. Create a new one.")
    if key.kind == "organization" and key.organization_state != "active":
        raise Unauthorized("The organisation of this API key was deleted.")
    return key


def find(prefix: str) -> ApiKey | None:
    row = db.call(
        "SELECT * FROM platform.find_api_key(p_prefix => %(prefix)s, p_rest => %(rest)s)",
        {"prefix": prefix, "rest": USES_REST},
        repeatable=True,
    )
    if row is None:
        return None
    kind: KeyKind = "service" if row["kind"] == "service" else "organization"
    return ApiKey(
        id=row["id"],
        kind=kind,
        organization_id=row["organization_id"],
        # A row can only narrow what its kind may do, never widen it.
        scopes=frozenset(row["scopes"]) & SCOPES_OF_KEY[kind],
        secret_hash=bytes(row["secret_hash"]),
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        organization_state=row["organization_state"],
        use_is_due=row["use_is_due"],
    )


def count_use(key: ApiKey) -> None:
    """Counts one use, in the process; what was counted is written once a minute, by one of the processes.

    In a statement of its own, which waits for nobody, and never the reason why a request fails: what cannot
    be written is not counted.
    """
    uses = _uses.get(key.id, 0) + 1
    if key.use_is_due:
        uses = _uses_left(key.id, uses)
    _uses[key.id] = uses


def _uses_left(key_id: UUID, uses: int) -> int:
    try:
        row = db.call(
            """
            SELECT platform.count_key_uses(p_id => %(id)s, p_uses => %(uses)s, p_rest => %(rest)s) AS counted
            """,
            {"id": key_id, "uses": uses, "rest": USES_REST},
        )
    except Unavailable:
        _logger.warning("the uses of key %s could not be written", key_id)
        return 0
    return 0 if row is not None and row["counted"] else uses
