"""What roles and keys may do: every scope a route can ask for, in one place."""

from collections.abc import Iterable, Mapping
from typing import Final, Literal, get_args

Role = Literal["owner", "admin", "editor", "member", "viewer"]
KeyKind = Literal["organization", "service"]

# What everybody may do for himself, whatever he is in an organisation: settings, organisations, invitations.
_PERSON: Final = frozenset({"account:manage"})
_VIEWER: Final = _PERSON | {"read"}
_EDITOR: Final = _VIEWER | {
    "projects:write",
    "files:write",
    "deployments:write",
    "credits:spend",
    "analytics:write",
}
_ADMIN: Final = _EDITOR | {"members:manage", "keys:manage", "organization:manage", "audit:read"}
_OWNER: Final = _ADMIN | {"billing:manage", "organization:transfer", "organization:delete"}

SCOPES_OF_ROLE: Final[Mapping[Role, frozenset[str]]] = {
    "viewer": _VIEWER,
    "member": _EDITOR,
    "editor": _EDITOR,
    "admin": _ADMIN,
    "owner": _OWNER,
}

# For the SaaS's own servers: a customer who could settle or refund would run for free.
SERVER_SCOPES: Final = frozenset({"credits:settle", "credits:refund", "generations:finish"})

# What a key may be given when it is minted. Managing members, keys and billing takes a person.
SCOPES_OF_KEY: Final[Mapping[KeyKind, frozenset[str]]] = {
    "organization": _EDITOR - _PERSON,
    "service": (_EDITOR - _PERSON) | SERVER_SCOPES,
}

SCOPES_OF_PLATFORM_ADMIN: Final = _OWNER | SERVER_SCOPES | {"admin"}


def of_key(kind: KeyKind, wanted: Iterable[str]) -> list[str]:
    """What a new key is to have, sorted, each once. Raises ValueError for what its kind can't have."""
    scopes, known = set(wanted), SCOPES_OF_KEY[kind]
    if unknown := sorted(scopes - known):
        raise ValueError(f"no scope {', '.join(unknown)[:200]}; there are {', '.join(sorted(known))}")
    return sorted(scopes)


def least_role(scope: str) -> Role | None:
    """The first role, from the viewer up, that has a scope. None: no role has, it is for servers and platform
    admins.
    """
    return next((role for role, scopes in SCOPES_OF_ROLE.items() if scope in scopes), None)


def role_named(name: str) -> Role:
    """The role of Clerk's (`org:admin`, or `admin` in version 2 claims) or of our own name.

    A custom role that we don't know may look and not touch: viewer.
    """
    plain = name.removeprefix("org:")
    return next((role for role in get_args(Role) if role == plain), "viewer")
