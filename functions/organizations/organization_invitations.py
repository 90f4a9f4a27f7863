"""Invitations to an organisation: whom its admins asked in, and what became of it."""

from datetime import datetime
from typing import Literal
from uuid import UUID

import organization_rows
from psycopg.rows import DictRow
from pydantic import BaseModel

from backplane import api, audit_log, db, invitations, outbox
from backplane.auth import Caller
from backplane.problems import Conflict, NotFound

Role = Literal["admin", "editor", "member", "viewer"]  # an owner is made of a member


class NewInvitation(api.Body):
    email: invitations.Email
    role: Role = "viewer"
    expires_in: invitations.ExpiresIn = invitations.DEFAULT_SECONDS  # seconds


class Invited(BaseModel):
    id: UUID
    email: str
    role: Role
    state: invitations.State
    invited_by: UUID | None
    user_id: UUID | None  # who accepted
    expires_at: datetime
    accepted_at: datetime | None
    created_at: datetime


class NewlyInvited(Invited):
    token: str | None = None  # for the invited person; shown once


_COLUMNS = f"id, email, role, invited_by, user_id, expires_at, accepted_at, created_at, {invitations.STATE}"


def invite(tx: db.Tx, caller: Caller, new: NewInvitation) -> NewlyInvited:
    """A new token for an address; the one before opens nothing any more.

    Raises Conflict where a member has this address, InvalidState where others than we make members.
    """
    organization_rows.require_ours(
        organization_rows.hold(tx, caller), "Make an organisation for others with POST /v1/organizations."
    )
    email = new.email.lower()
    _refuse_a_member(tx, caller.organization_id, email)
    invitation = invitations.mint("organization")
    row = _store(tx, caller, email, new, invitation.token_hash)
    _note(tx, caller, "invitation.created", row["id"], {"role": new.role})
    outbox.append(
        tx,
        "invitation.created",
        organization_id=caller.organization_id,
        payload={
            "organization_id": str(caller.organization_id),
            "invitation_id": str(row["id"]),
            "role": new.role,
        },
    )
    return NewlyInvited.model_validate(row | {"token": invitation.token})


def _refuse_a_member(tx: db.Tx, organization_id: UUID, email: str) -> None:
    """Raises Conflict where the address is a member's, by his profile or by what he accepted."""
    member = tx.execute(
        """
        SELECT 1
        FROM tenancy.organization_members AS m
        JOIN identity.users AS u ON u.id = m.user_id
        LEFT JOIN tenancy.invitations AS i
            ON i.organization_id = m.organization_id AND i.user_id = m.user_id AND i.email = %(email)s
        WHERE m.organization_id = %(organization_id)s AND (lower(u.email) = %(email)s OR i.id IS NOT NULL)
        LIMIT 1
        """,
        {"organization_id": organization_id, "email": email},
    ).fetchone()
    if member is not None:
        raise Conflict("Who has this address is a member. Change his role with PATCH …/members/{user_id}.")


def _store(tx: db.Tx, caller: Caller, email: str, new: NewInvitation, token_hash: bytes) -> DictRow:
    row = tx.execute(
        f"""
        INSERT INTO tenancy.invitations (organization_id, email, role, token_hash, expires_at, invited_by)
        VALUES (%(organization_id)s, %(email)s, %(role)s, %(token_hash)s,
                clock_timestamp() + make_interval(secs => %(expires_in)s), %(invited_by)s)
        ON CONFLICT (organization_id, email) DO UPDATE
        SET role = EXCLUDED.role,
            token_hash = %(token_hash)s, -- EXCLUDED's may not be read
            expires_at = EXCLUDED.expires_at,
            invited_by = EXCLUDED.invited_by,
            user_id = NULL,
            accepted_at = NULL
        RETURNING {_COLUMNS}
        """.encode(),
        {
            "organization_id": caller.organization_id,
            "email": email,
            "role": new.role,
            "token_hash": token_hash,
            "expires_in": new.expires_in,
            "invited_by": caller.user_id,
        },
    ).fetchone()
    if row is None:
        raise RuntimeError("an insert or update answers its row")
    return row


def newest(tx: db.Tx, organization_id: UUID, *, before: UUID | None, limit: int) -> list[Invited]:
    rows = tx.execute(
        f"""
        SELECT {_COLUMNS}
        FROM tenancy.invitations
        WHERE organization_id = %(organization_id)s AND (%(before)s::uuid IS NULL OR id < %(before)s)
        ORDER BY id DESC
        LIMIT %(limit)s
        """.encode(),
        {"organization_id": organization_id, "before": before, "limit": limit},
    ).fetchall()
    return [Invited.model_validate(row) for row in rows]


def withdraw(tx: db.Tx, caller: Caller, invitation_id: UUID) -> None:
    """Raises NotFound."""
    withdrawn = tx.execute(
        "DELETE FROM tenancy.invitations WHERE organization_id = %s AND id = %s",
        [caller.organization_id, invitation_id],
    )
    if not withdrawn.rowcount:
        raise NotFound("This organisation has no such invitation. GET …/invitations lists those it has.")
    _note(tx, caller, "invitation.deleted", invitation_id, {})


def _note(tx: db.Tx, caller: Caller, action: str, invitation_id: UUID, details: dict[str, str]) -> None:
    audit_log.write(
        tx,
        action,
        actor=caller.actor,
        target=f"invitation:{invitation_id}",
        organization_id=caller.organization_id,
        details=details,
    )
