"""Who is in an organisation, as what. Nobody gives a role above his own or touches whoever is above him, and
an organisation keeps an owner, however many leave at once: each change holds the organisation's row.
"""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import organization_rows
from pydantic import BaseModel, BeforeValidator, Field

from backplane import api, audit_log, auth, db, members
from backplane.auth import Caller
from backplane.problems import Forbidden, InvalidState, NotFound
from backplane.scopes import SCOPES_OF_ROLE, Role

PERSONAL = "Make an organisation for others with POST /v1/organizations."

Id = Annotated[
    UUID, Field(strict=False), BeforeValidator(lambda value: value if isinstance(value, str) else None)
]


class NewRole(api.Body):
    role: Role


class Transfer(api.Body):
    user_id: Id


class Member(BaseModel):
    user_id: UUID
    email: str | None  # null for the organisation's keys, too
    name: str | None
    image_url: str | None
    role: Role
    joined_at: datetime


def newest(tx: db.Tx, caller: Caller, *, before: tuple[datetime, UUID] | None, limit: int) -> list[Member]:
    joined_before, below = before or (None, None)
    rows = tx.execute(
        f"""
        {_MEMBERS}
        WHERE m.organization_id = %(organization_id)s
          AND (%(joined_before)s::timestamptz IS NULL
               OR (m.created_at, m.user_id) < (%(joined_before)s, %(below)s))
        ORDER BY m.created_at DESC, m.user_id DESC
        LIMIT %(limit)s
        """.encode(),
        {
            "organization_id": caller.organization_id,
            "with_email": caller.kind != "organization_key",
            "joined_before": joined_before,
            "below": below,
            "limit": limit,
        },
    ).fetchall()
    return [Member.model_validate(row) for row in rows]


def change_role(tx: db.Tx, caller: Caller, user_id: UUID, role: Role) -> Member:
    """Raises NotFound, Forbidden (above him), InvalidState (the last owner, or not ours to change)."""
    caller = _hold(tx, caller)
    before = _role_of(tx, caller, user_id)
    _require_reach(caller, before)
    _require_reach(caller, role)
    if before == "owner" != role:
        _require_another_owner(tx, caller, user_id)
    _give(tx, caller, user_id, role, before)
    return _member(tx, caller, user_id)


def remove(tx: db.Tx, caller: Caller, user_id: UUID) -> None:
    """Raises NotFound, Forbidden (above him), InvalidState (the last owner, or not ours to change)."""
    caller = _hold(tx, caller)
    role = _role_of(tx, caller, user_id)
    if user_id != caller.user_id:
        auth.require(caller, "members:manage")
        _require_reach(caller, role)
    if role == "owner":
        _require_another_owner(tx, caller, user_id)
    tx.execute(
        "DELETE FROM tenancy.organization_members WHERE organization_id = %s AND user_id = %s",
        [caller.organization_id, user_id],
    )
    _note(tx, caller, "membership.deleted", user_id, {"role": role})
    members.tell(tx, "deleted", caller.organization_id, user_id)


def transfer(tx: db.Tx, caller: Caller, user_id: UUID) -> Member:
    """Raises NotFound, InvalidState (to himself, or not ours to change). A visiting platform admin, who is no
    owner, only adds one.
    """
    caller = _hold(tx, caller)
    if user_id == caller.user_id:
        raise InvalidState("You own the organisation already. Name the member who is to own it.")
    before = _role_of(tx, caller, user_id)
    if before != "owner":
        _give(tx, caller, user_id, "owner", before)
    if caller.user_id is not None and caller.role == "owner":
        _give(tx, caller, caller.user_id, "admin", "owner")
    return _member(tx, caller, user_id)


def _hold(tx: db.Tx, caller: Caller) -> Caller:
    """The caller as he is once he holds the organisation's row: another owner may have changed his role."""
    organization_rows.require_ours(organization_rows.hold(tx, caller), PERSONAL)
    if caller.role is None:  # visiting
        return caller
    row = tx.execute(
        "SELECT role FROM tenancy.organization_members WHERE organization_id = %s AND user_id = %s",
        [caller.organization_id, caller.user_id],
    ).fetchone()
    if row is None:
        raise NotFound("You are not a member of this organisation any more.")
    return auth.member(caller, caller.organization_id, row["role"])


def _role_of(tx: db.Tx, caller: Caller, user_id: UUID) -> Role:
    row = tx.execute(
        "SELECT role FROM tenancy.organization_members WHERE organization_id = %s AND user_id = %s",
        [caller.organization_id, user_id],
    ).fetchone()
    if row is None:
        raise NotFound("This organisation has no such member. GET …/members lists those it has.")
    role: Role = row["role"]
    return role


def _require_reach(caller: Caller, role: Role) -> None:
    """Raises Forbidden where the role may do what the caller may not."""
    if not SCOPES_OF_ROLE[role] <= caller.scopes:
        raise Forbidden(f"Your role in this organisation is below {role}. Ask an owner.")


def _require_another_owner(tx: db.Tx, caller: Caller, user_id: UUID) -> None:
    other = tx.execute(
        """
        SELECT 1
        FROM tenancy.organization_members
        WHERE organization_id = %s AND role = 'owner' AND user_id <> %s
        LIMIT 1
        """,
        [caller.organization_id, user_id],
    ).fetchone()
    if other is None:
        raise InvalidState(
            "The organisation has no other owner. Make a member its owner (POST …/transfer), or delete it."
        )


def _give(tx: db.Tx, caller: Caller, user_id: UUID, role: Role, before: Role) -> None:
    if role == before:
        return
    tx.execute(
        "UPDATE tenancy.organization_members SET role = %s WHERE organization_id = %s AND user_id = %s",
        [role, caller.organization_id, user_id],
    )
    _note(tx, caller, "membership.updated", user_id, {"role": role, "before": before})
    members.tell(tx, "updated", caller.organization_id, user_id, role)


_MEMBERS = """
    SELECT m.user_id, m.role, m.created_at AS joined_at, u.image_url,
           CASE WHEN %(with_email)s THEN u.email END AS email,
           nullif(trim(concat_ws(' ', u.first_name, u.last_name)), '') AS name
    FROM tenancy.organization_members AS m
    JOIN identity.users AS u ON u.id = m.user_id
"""


def _member(tx: db.Tx, caller: Caller, user_id: UUID) -> Member:
    row = tx.execute(
        f"{_MEMBERS} WHERE m.organization_id = %(organization_id)s AND m.user_id = %(user_id)s".encode(),
        {"organization_id": caller.organization_id, "user_id": user_id, "with_email": True},
    ).fetchone()
    return Member.model_validate(row)


def _note(tx: db.Tx, caller: Caller, action: str, user_id: UUID, details: dict[str, str]) -> None:
    audit_log.write(
        tx,
        action,
        actor=caller.actor,
        target=f"user:{user_id}",
        organization_id=caller.organization_id,
        details=details,
    )
