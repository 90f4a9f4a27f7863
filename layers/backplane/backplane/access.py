"""What a caller may do with one project: by his organisation, by a share, or because it is public.

Work on a project runs in a transaction bound to the organisation that owns it, which for a shared
project is not the caller's. Whoever may not know of a project hears that there is none.
"""

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from backplane import db
from backplane.auth import Caller
from backplane.problems import Forbidden, NotFound
from backplane.scopes import SCOPES_OF_ROLE

Standing = Literal["member", "viewer", "editor", "admin", "public"]

_MANAGERS = frozenset({"owner", "admin"})


@dataclass(frozen=True, slots=True)
class Access:
    """Where a project belongs, and what the caller is to it."""

    project_id: UUID
    organization_id: UUID
    standing: Standing  # member: of its organisation, also by a key; a share's role; public: anybody


def find(caller: Caller, project_id: UUID) -> Access:
    """Raises NotFound for a project that the caller may not know of."""
    row = db.call(
        """
        SELECT organization_id, standing
        FROM projects.find_access(%(project_id)s, %(organization_id)s, %(user_id)s)
        """,
        {
            "project_id": project_id,
            "organization_id": caller.organization_id,
            "user_id": caller.user_id,
        },
    )
    if row is None:
        raise missing()
    return Access(project_id, row["organization_id"], row["standing"])


def require(caller: Caller, project_id: UUID, scope: str) -> Access:
    """The access of a caller who may do more than look at what is public.

    The route has checked his scopes in his own organisation; a share has those of its role. Raises
    NotFound, Forbidden.
    """
    access = find(caller, project_id)
    if access.standing == "public":
        raise Forbidden("This project is public: others see it and nothing of what belongs to it.")
    if access.standing != "member" and scope not in SCOPES_OF_ROLE[access.standing]:
        raise Forbidden(f"This project is shared with you as {access.standing}, which is not enough for it.")
    return access


def require_manager(caller: Caller, project_id: UUID) -> Access:
    """For deletion and shares: an owner or admin, of the organisation or by a share, or one of its keys."""
    access = require(caller, project_id, "projects:write")
    if access.standing == "member":
        allowed = caller.role is None or caller.role in _MANAGERS  # keys and platform admins have no role
    else:
        allowed = access.standing == "admin"
    if not allowed:
        raise Forbidden("Only owners and admins delete a project, restore it or share it.")
    return access


def missing() -> NotFound:
    return NotFound("There is no such project.")
