"""What a caller may do with one project: by his organisation, by a share, or because it is public.

A route enters a project with its transaction, which from then on sees the rows of the organisation
that owns the project: for a shared one that is not the caller's. Whoever may not know of a project
hears that there is none.
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
    is_deleted: bool = False  # which its organisation alone may know


def find(tx: db.Tx, caller: Caller, project_id: UUID) -> Access:
    """Enters the project unless it is merely public. Raises NotFound where he may not know of it."""
    row = tx.execute(
        """
        SELECT a.organization_id, a.standing, p.deleted_at IS NOT NULL AS is_deleted
        FROM projects.find_access(%(project_id)s, %(organization_id)s, %(user_id)s) AS a
        LEFT JOIN projects.projects AS p ON p.id = %(project_id)s
        """,
        {
            "project_id": project_id,
            "organization_id": caller.organization_id,
            "user_id": caller.user_id,
        },
    ).fetchone()
    if row is None:
        raise missing()
    found = Access(project_id, **row)
    if found.standing not in {"member", "public"}:
        db.enter(tx, found.organization_id)
    return found


def enter(tx: db.Tx, caller: Caller, project_id: UUID, scope: str, *, deleted: bool = False) -> Access:
    """For a caller who may do more than look at what is public. `deleted`: also where it was deleted.

    The route has checked his scopes in his own organisation; a share has those of its role. Raises
    NotFound, Forbidden.
    """
    found = find(tx, caller, project_id)
    if found.is_deleted and not deleted:
        raise missing()
    if found.standing == "public":
        raise Forbidden(
            "This project is public: others see it and its files, and nothing else of what belongs to it."
        )
    if found.standing != "member" and scope not in SCOPES_OF_ROLE[found.standing]:
        raise Forbidden(
            f"This project is shared with you as {found.standing}, and this takes more: ask for another role."
        )
    return found


def look(tx: db.Tx, caller: Caller, project_id: UUID) -> Access:
    """For what of a project others see where it is public. Raises NotFound."""
    found = find(tx, caller, project_id)
    if found.standing == "public":
        db.enter(tx, found.organization_id)
    return found


def enter_as_manager(tx: db.Tx, caller: Caller, project_id: UUID, *, deleted: bool = False) -> Access:
    """For deletion and shares: an owner or admin, of the organisation or by a share, or one of its keys."""
    found = enter(tx, caller, project_id, "projects:write", deleted=deleted)
    if found.standing == "member":
        allowed = caller.role is None or caller.role in _MANAGERS  # keys and platform admins have no role
    else:
        allowed = found.standing == "admin"
    if not allowed:
        raise Forbidden("Only owners and admins delete a project, restore it or share it. Ask one of them.")
    return found


def missing() -> NotFound:
    return NotFound("There is no such project, or it is not yours to see. GET /v1/projects lists yours.")
