"""Clerk's session tokens: verified, and read into the few claims that matter here.

Version 1 and version 2 claims: https://clerk.com/docs/guides/sessions/session-tokens
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jwt

from backplane import jwks
from backplane.config import settings
from backplane.problems import Unauthorized
from backplane.scopes import Role, role_named

LEEWAY = 5.0  # seconds our clock may differ from Clerk's; the default of Clerk's own SDKs
MAX_BYTES = 8192  # Clerk keeps its own under a cookie's 4 KB
MAX_TEXT = 254  # characters of an email address (RFC 5321) or a name

_USER_ID = re.compile(r"user_[A-Za-z0-9_-]{1,64}")
_ORGANIZATION_ID = re.compile(r"org_[A-Za-z0-9_-]{1,64}")

_INVALID = "The session token is not valid. Sign in again and send the new one."


@dataclass(frozen=True, slots=True)
class Session:
    """Who a verified token speaks for. The ids are Clerk's."""

    user_id: str
    organization_id: str | None  # None: the personal organisation
    organization_slug: str | None
    organization_role: Role | None
    email: str | None  # these two only where the session token is customised to carry them
    name: str | None
    issued_at: datetime | None  # what changed later, the token does not know


def verify(token: str, *, origin: str | None, now: float) -> Session:
    """The session of an authentic, current token that was issued to an allowed origin.

    `origin` is the request's own Origin header. Raises Unauthorized; Unavailable where there
    is no key to verify with.
    """
    if len(token) > MAX_BYTES:
        raise Unauthorized(_INVALID)
    claims = _authentic(token, now)
    _check_times(claims, now)
    _check_origin(claims, origin)
    if claims.get("sts") == "pending":
        raise Unauthorized("The sign-in is not finished. Complete its remaining steps first.")
    return _session(claims)


def _authentic(token: str, now: float) -> Mapping[str, Any]:
    try:
        header = jwt.get_unverified_header(token)
        _check_header(header)
        key = jwks.signing_key(header.get("kid"), now=now)
        if key is None:
            raise Unauthorized(_INVALID)
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=["RS256"],
            issuer=settings().clerk_issuer.rstrip("/"),
            # Times are checked against the caller's clock, below. A token with an audience is
            # refused: Clerk signs ID tokens and templates for other services with the same key.
            options={
                "require": ["exp", "iss", "sub"],
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            },
        )
    except jwt.PyJWTError:
        # Without its cause: the answer to a forger is the same whatever was wrong.
        raise Unauthorized(_INVALID) from None
    return claims


def _check_header(header: Mapping[str, Any]) -> None:
    """Before any key is looked up, so that an absurd token costs nothing.

    OAuth access tokens (`at+jwt`, RFC 9068) carry the same issuer, key and subject as a session,
    but what a third-party application was granted is not a session.
    """
    if header.get("alg") != "RS256" or header.get("typ", "JWT") != "JWT":
        raise Unauthorized(_INVALID)


def _check_times(claims: Mapping[str, Any], now: float) -> None:
    times = {name: _seconds(claims[name]) for name in ("exp", "nbf", "iat") if name in claims}
    if times["exp"] <= now - LEEWAY:
        raise Unauthorized("The session token has expired. Get a fresh one and repeat the request.")
    if max(times.get("nbf", 0.0), times.get("iat", 0.0)) > now + LEEWAY:
        raise Unauthorized("The session token is not valid yet. Repeat the request in a moment.")


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unauthorized(_INVALID)
    try:
        seconds = float(value)
    except OverflowError:
        raise Unauthorized(_INVALID) from None
    if not math.isfinite(seconds):
        raise Unauthorized(_INVALID)
    return seconds


def _check_origin(claims: Mapping[str, Any], origin: str | None) -> None:
    """`azp` is the page that asked Clerk for the token; a page on a sibling domain could have got one too.

    Native apps have no origin, so their tokens have no `azp`: then the request itself must not
    come from a page of elsewhere.
    """
    party = claims.get("azp") or origin
    if party is not None and not (isinstance(party, str) and party in settings().origins):
        raise Unauthorized("The session token was not issued to an allowed origin. Sign in through the app.")


def _session(claims: Mapping[str, Any]) -> Session:
    user_id = claims["sub"]
    if not _USER_ID.fullmatch(user_id):
        raise Unauthorized(_INVALID)
    organization = _organization(claims)
    organization_id = organization.get("id")
    if organization_id is not None and not (
        isinstance(organization_id, str) and _ORGANIZATION_ID.fullmatch(organization_id)
    ):
        raise Unauthorized(_INVALID)
    role = _text(organization.get("rol"))
    parts = (_text(claims.get("first_name")), _text(claims.get("last_name")))
    return Session(
        user_id=user_id,
        organization_id=organization_id,
        organization_slug=_text(organization.get("slg")),
        organization_role=role_named(role) if organization_id and role else None,
        email=_text(claims.get("email")),
        name=_text(claims.get("name")) or " ".join(filter(None, parts)) or None,
        issued_at=_issued_at(claims),
    )


def _issued_at(claims: Mapping[str, Any]) -> datetime | None:
    """When Clerk issued the token; it lives so short that its expiry says it nearly as well."""
    if "iat" not in claims:
        return None
    return datetime.fromtimestamp(max(_seconds(claims["iat"]), 0.0), UTC)


def _organization(claims: Mapping[str, Any]) -> Mapping[str, Any]:
    """The active organisation under version 2's names, whichever version the claims are of."""
    if (version_2 := claims.get("o")) is not None:
        if not isinstance(version_2, dict):
            raise Unauthorized(_INVALID)
        return version_2
    return {"id": claims.get("org_id"), "slg": claims.get("org_slug"), "rol": claims.get("org_role")}


def _text(value: Any) -> str | None:
    """A claim fit for a text column: no NUL, no lone surrogate, no book."""
    if isinstance(value, str) and value.isprintable():
        return value.strip()[:MAX_TEXT] or None
    return None
