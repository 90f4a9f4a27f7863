"""Who calls: the Authorization header becomes a Caller, and a Caller's scopes open a route.

Session tokens are Clerk's (tokens.py), API keys are ours (keys.py), what either may do stands in
scopes.py. docs/authentication.md tells callers the same.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal
from uuid import UUID

from backplane import db, identity, keys, tokens
from backplane.config import settings
from backplane.identity import Resolved
from backplane.keys import KeyMaterial, mint_key
from backplane.problems import BadRequest, Forbidden, NotFound, Unauthorized
from backplane.scopes import (
    SCOPES_OF_KEY,
    SCOPES_OF_PLATFORM_ADMIN,
    SCOPES_OF_ROLE,
    Role,
    role_named,
)

__all__ = [
    "SCOPES_OF_KEY",
    "SCOPES_OF_ROLE",
    "Caller",
    "KeyMaterial",
    "Role",
    "authenticate",
    "member",
    "mint_key",
    "require",
]

MAX_HEADER_BYTES = tokens.MAX_BYTES + len("Bearer ")

# RFC 6750's b64token. What stands outside of it (a comma where a gateway joined two headers,
# a space, a letter beyond ASCII) cannot be a token or a key.
_BEARER = re.compile(r"bearer +([a-z0-9._~+/-]+=*)", re.ASCII | re.IGNORECASE)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, for which organisation, and what he may do there."""

    kind: Literal["user", "organization_key", "service_key"]
    organization_id: UUID
    user_id: UUID | None  # of a user
    key_id: UUID | None  # of a key
    role: Role | None  # a user's in this organisation; None for keys and for a visiting platform admin
    scopes: frozenset[str]
    is_platform_admin: bool

    @property
    def actor(self) -> str:
        """A pseudonymous name for ledgers, logs and audits."""
        return f"user:{self.user_id}" if self.user_id else f"key:{self.key_id}"


def authenticate(
    headers: Mapping[str, str], *, path_organization: str | None = None, now: float | None = None
) -> Caller:
    """The caller behind a request's headers (lower-case names). `now` is in seconds of the epoch.

    He acts in the organisation that the request's path names, else in the one of X-Organization-Id, else in
    his own. Raises Unauthorized (who are you?), Forbidden (not you, or not there), BadRequest and NotFound
    (of the organisation that is named), Unavailable (nothing to verify with).
    """
    now = time.time() if now is None else now
    credential = _bearer(headers.get("authorization"))
    header = headers.get("x-organization-id")
    named = None if header is None else _Named(header)
    if path_organization is not None:
        named = _Named(path_organization, by_path=True)
    if credential.startswith("bp_"):
        return _key_caller(keys.verify(credential, now=now), named, sent_header=header is not None)
    return _user_caller(tokens.verify(credential, origin=headers.get("origin"), now=now), named)


def require(caller: Caller, scope: str) -> None:
    """Raises Forbidden, naming the scope, where the caller lacks it."""
    if scope in caller.scopes:
        return
    if caller.kind != "user":
        why = "your API key does not have. Use one that has it."
    elif scope in SCOPES_OF_ROLE["owner"]:
        why = "your role in this organisation does not have. Ask an owner or admin of it for another role."
    else:
        why = "no role has: it is for your own servers and platform admins."
    raise Forbidden(f"This needs the scope `{scope}`, which {why}")


@dataclass(frozen=True, slots=True)
class _Named:
    """An organisation as a request names it."""

    text: str
    by_path: bool = False

    @property
    def id(self) -> UUID:
        """Raises BadRequest (of the header), NotFound (of a path: whatever it is, there is no such thing)."""
        if not _UUID.fullmatch(self.text):
            if self.by_path:
                raise self.missing()
            raise BadRequest(
                "X-Organization-Id must be an organisation's id, a UUID such as GET /v1/me answers."
            )
        return UUID(self.text)

    def missing(self) -> NotFound:
        """For whoever may know every organisation, and for whoever must not learn which there are."""
        if self.by_path:
            return NotFound("There is no such organisation. GET /v1/organizations lists yours.")
        return NotFound("X-Organization-Id names no organisation. GET /v1/me answers its id.")


def member(caller: Caller, organization_id: UUID, role: Role) -> Caller:
    """The same caller in an organisation in which he was just found to be this."""
    scopes = caller.scopes if caller.is_platform_admin else SCOPES_OF_ROLE[role]
    return replace(caller, organization_id=organization_id, role=role, scopes=scopes)


def _bearer(header: str | None) -> str:
    form = _BEARER.fullmatch(header) if header and len(header) <= MAX_HEADER_BYTES else None
    if form is None:
        raise Unauthorized("Send `Authorization: Bearer …` with a session token or an API key.")
    return form[1]


def _key_caller(key: keys.ApiKey, named: _Named | None, *, sent_header: bool) -> Caller:
    if key.kind == "service":
        if named is None:
            raise BadRequest("A service key acts for the organisation in X-Organization-Id: send its id.")
        organization_id = _live_organization(named)
    elif sent_header:
        raise Forbidden("An organisation key acts for its own organisation: leave X-Organization-Id out.")
    elif key.organization_id is None:
        raise RuntimeError(f"organisation key {key.id} has no organisation")
    elif named is not None and named.id != key.organization_id:
        raise named.missing()
    else:
        organization_id = key.organization_id
    keys.count_use(key)
    return Caller(
        kind="service_key" if key.kind == "service" else "organization_key",
        organization_id=organization_id,
        user_id=None,
        key_id=key.id,
        role=None,
        scopes=key.scopes,
        is_platform_admin=False,
    )


def _user_caller(session: tokens.Session, named: _Named | None) -> Caller:
    found = _resolve(session)
    is_admin = found.platform_role in ("admin", "super_admin") or session.user_id in settings().admins
    if found.user_id is None or found.organization_id is None or found.member_role is None:
        found = _provision(session)
    if found.user_id is None or found.organization_id is None:
        raise RuntimeError("provisioning left a caller without a user or an organisation")
    role: Role | None = _role(session, found)
    organization_id = found.organization_id
    if named is not None and named.text.lower() != str(organization_id):
        if is_admin:
            organization_id, role = _live_organization(named), None
        else:
            role = _membership(found.user_id, named)
            organization_id = named.id
    return Caller(
        kind="user",
        organization_id=organization_id,
        user_id=found.user_id,
        key_id=None,
        role=role,
        scopes=SCOPES_OF_ROLE[role] if role is not None and not is_admin else SCOPES_OF_PLATFORM_ADMIN,
        is_platform_admin=is_admin,
    )


def _resolve(session: tokens.Session) -> Resolved:
    """What the database knows of a session, in one round trip."""
    row = db.call(
        """
        SELECT *
        FROM identity.resolve_caller(p_clerk_user_id => %(user)s, p_clerk_org_id => %(organization)s,
                                     p_issued_at => %(issued_at)s::timestamptz)
        """,
        {
            "user": session.user_id,
            "organization": session.organization_id,
            "issued_at": session.issued_at,
        },
        repeatable=True,
    )
    if row is None:
        raise RuntimeError("identity.resolve_caller answers exactly one row")
    return _admitted(Resolved(**row))


def _provision(session: tokens.Session) -> Resolved:
    """The webhooks may be later than the first token: make what they will bring, once."""
    return _admitted(
        identity.provision_from_token(
            session.user_id,
            email=session.email,
            name=session.name,
            clerk_org_id=session.organization_id,
            org_slug=session.organization_slug,
            org_role=session.organization_role,
            issued_at=session.issued_at,
        )
    )


def _admitted(found: Resolved) -> Resolved:
    if found.user_state == "deleted":
        raise Unauthorized("This account was deleted. Sign up again to use the service.")
    if found.user_state == "inactive":
        raise Forbidden("This account is suspended. Ask support to activate it.")
    if found.organization_state == "deleted":
        raise Forbidden("This organisation was deleted. Switch to another one.")
    return found


def _role(session: tokens.Session, found: Resolved) -> Role:
    """The token's role, unless Clerk told of a change after it was issued, or the database knows an
    owner: Clerk has no such role.
    """
    if session.organization_id is None:
        return "owner"
    if found.member_role is None:
        raise Forbidden("You are not a member of this organisation any more. Switch to another one.")
    if found.member_role == "owner" or found.role_is_newer or session.organization_role is None:
        return role_named(found.member_role)
    return session.organization_role


def _membership(user_id: UUID, named: _Named) -> Role:
    """What a user is in an organisation that he names; docs/decisions/naming-an-organisation.md says why not
    in Clerk's. Raises Forbidden, and NotFound where a path names it: whoever is no member learns nothing.
    """
    stranger = (
        named.missing()
        if named.by_path
        else Forbidden(
            "You are no member of the organisation in X-Organization-Id. GET /v1/organizations lists yours."
        )
    )
    if not _UUID.fullmatch(named.text):
        raise stranger
    row = db.call(
        """
        SELECT *
        FROM tenancy.find_membership(p_user_id => %(user_id)s, p_organization_id => %(organization_id)s)
        """,
        {"user_id": user_id, "organization_id": named.id},
        repeatable=True,
    )
    if row is None:
        raise stranger
    if row["is_clerks"]:
        raise Forbidden(
            "Clerk manages this organisation: make it the active one with setActive, and send the new token."
        )
    return role_named(row["role"])


def _live_organization(named: _Named) -> UUID:
    """Raises BadRequest, NotFound."""
    row = db.call(
        "SELECT * FROM tenancy.find_organization(p_id => %(id)s)", {"id": named.id}, repeatable=True
    )
    if row is None or row["state"] != "active":
        raise named.missing()
    organization_id: UUID = row["id"]
    return organization_id
