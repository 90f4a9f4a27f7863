"""Who is in an organisation, as what. Clerk's events change it; a newer state is never undone by an older.

The members of organisations that Backplane made are changed by their admins, in functions/organizations.
"""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from backplane import db, outbox
from backplane.scopes import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    organization_id: UUID
    user_id: UUID
    role: Role  # as granted; who owns the organisation is settled here
    joined_at: datetime
    changed_at: datetime
    as_of: str  # sorts as states succeed each other


def save(tx: db.Tx, member: Membership) -> bool:
    """Stores a membership unless a newer state of it stands, its end included. Answers whether it did.

    The caller holds the organisation's row.
    """
    row = tx.execute(
        """
        INSERT INTO tenancy.organization_members AS m
            (organization_id, user_id, role, granted_role, created_at, changed_at, as_of)
        SELECT %(organization_id)s, %(user_id)s, %(role)s, %(role)s, %(joined_at)s, %(changed_at)s, %(as_of)s
        WHERE NOT EXISTS (
            SELECT 1
            FROM tenancy.former_members
            WHERE organization_id = %(organization_id)s AND user_id = %(user_id)s AND as_of > %(as_of)s
        )
        ON CONFLICT (organization_id, user_id) DO UPDATE
        SET granted_role = EXCLUDED.granted_role,
            created_at = EXCLUDED.created_at,
            changed_at = EXCLUDED.changed_at,
            as_of = EXCLUDED.as_of
        WHERE m.as_of < EXCLUDED.as_of
        RETURNING xmax = 0 AS joined
        """,
        asdict(member),
    ).fetchone()
    if row is None:
        return False
    tx.execute(
        "DELETE FROM tenancy.former_members WHERE organization_id = %s AND user_id = %s",
        [member.organization_id, member.user_id],
    )
    changed = _settle_owner(tx, member.organization_id)
    if row["joined"]:
        tell(tx, "created", member.organization_id, member.user_id, changed.pop(member.user_id, member.role))
    _tell_changes(tx, member.organization_id, changed)
    return True


def remove(
    tx: db.Tx, organization_id: UUID, user_id: UUID, *, removed_at: datetime, as_of: str
) -> Literal["removed", "unknown", "stale"]:
    """Ends a membership unless a newer one stands, and remembers it: a token issued before does not
    bring him back. `unknown` where he was none (yet). The caller holds the organisation's row.
    """
    values = {
        "organization_id": organization_id,
        "user_id": user_id,
        "removed_at": removed_at,
        "as_of": as_of,
    }
    deleted = tx.execute(
        """
        DELETE FROM tenancy.organization_members
        WHERE organization_id = %(organization_id)s AND user_id = %(user_id)s AND as_of < %(as_of)s
        """,
        values,
    )
    remembered = tx.execute(
        """
        INSERT INTO tenancy.former_members AS f (organization_id, user_id, removed_at, as_of)
        SELECT %(organization_id)s, %(user_id)s, %(removed_at)s, %(as_of)s
        WHERE NOT EXISTS (
            SELECT 1
            FROM tenancy.organization_members
            WHERE organization_id = %(organization_id)s AND user_id = %(user_id)s
        )
        ON CONFLICT (organization_id, user_id) DO UPDATE
        SET removed_at = EXCLUDED.removed_at,
            as_of = EXCLUDED.as_of
        WHERE f.as_of < EXCLUDED.as_of
        """,
        values,
    )
    if deleted.rowcount == 0:
        return "unknown" if remembered.rowcount else "stale"
    tell(tx, "deleted", organization_id, user_id)
    settle_owner(tx, organization_id)
    return "removed"


def leave_all(tx: db.Tx, user_id: UUID) -> None:
    """Takes a user who is gone for good out of every organisation. Those that he owned pass on; one of ours
    that has nobody left ends with him.
    """
    rows = tx.execute(
        """
        DELETE FROM tenancy.organization_members
        WHERE user_id = %s
        RETURNING organization_id
        """,
        [user_id],
    ).fetchall()
    tx.execute("DELETE FROM tenancy.former_members WHERE user_id = %s", [user_id])
    for organization_id in sorted(row["organization_id"] for row in rows):
        tell(tx, "deleted", organization_id, user_id)
        settle_owner(tx, organization_id)
        _close_empty(tx, organization_id)


def _close_empty(tx: db.Tx, organization_id: UUID) -> None:
    tx.execute(
        """
        SELECT tenancy.close_organization(o.id)
        FROM tenancy.organizations AS o
        WHERE o.id = %s
          AND NOT EXISTS (SELECT 1 FROM tenancy.organization_members AS m WHERE m.organization_id = o.id)
        """,
        [organization_id],
    )


def clear(tx: db.Tx, organization_id: UUID) -> None:
    """Empties an organisation that is gone for good."""
    tx.execute("DELETE FROM tenancy.organization_members WHERE organization_id = %s", [organization_id])
    tx.execute("DELETE FROM tenancy.former_members WHERE organization_id = %s", [organization_id])


def settle_owner(tx: db.Tx, organization_id: UUID) -> None:
    """Gives an organisation its owner, as docs/authentication.md says, and tells whose role changed."""
    _tell_changes(tx, organization_id, _settle_owner(tx, organization_id))


def _settle_owner(tx: db.Tx, organization_id: UUID) -> dict[UUID, Role]:
    rows = tx.execute(
        "SELECT user_id, role FROM tenancy.settle_owner(%s) ORDER BY user_id", [organization_id]
    ).fetchall()
    return {row["user_id"]: row["role"] for row in rows}


def _tell_changes(tx: db.Tx, organization_id: UUID, roles: dict[UUID, Role]) -> None:
    for user_id, role in roles.items():
        tell(tx, "updated", organization_id, user_id, role)


def tell(tx: db.Tx, what: str, organization_id: UUID, user_id: UUID, role: Role | None = None) -> None:
    """Writes that a membership was created, updated or deleted."""
    payload = {"organization_id": str(organization_id), "user_id": str(user_id)}
    if role is not None:
        payload["role"] = role
    outbox.append(tx, f"membership.{what}", organization_id=organization_id, payload=payload)
