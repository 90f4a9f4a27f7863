"""Shares: people of other organisations who were invited to a project, and what each may do there."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel

from backplane import api, db, invitations, outbox
from backplane.access import Access
from backplane.auth import Caller
from backplane.problems import Conflict, NotFound

Role = Literal["viewer", "editor", "admin"]


class NewShare(api.Body):
    email: invitations.Email
    role: Role = "viewer"
    expires_in: invitations.ExpiresIn = invitations.DEFAULT_SECONDS  # seconds


class Share(BaseModel):
    id: UUID
    email: str
    role: Role
    state: invitations.State
    user_id: UUID | None
    expires_at: datetime
    accepted_at: datetime | None
    created_at: datetime


class InvitedShare(Share):
    token: str | None = None  # for the invited person; shown once


_COLUMNS = f"id, email, role, user_id, expires_at, accepted_at, created_at, {invitations.STATE}"


def invite(tx: db.Tx, access: Access, caller: Caller, new: NewShare) -> InvitedShare:
    """A new token for an address that has not accepted yet; the one before opens nothing any more.

    Raises Conflict where the address has accepted: delete the share first to change its role.
    """
    invitation = invitations.mint("project")
    row = tx.execute(
        f"""
        INSERT INTO projects.shares AS s
            (organization_id, project_id, email, role, token_hash, expires_at, invited_by)
        VALUES
            (%(organization_id)s, %(project_id)s, %(email)s, %(role)s, %(token_hash)s,
             clock_timestamp() + make_interval(secs => %(expires_in)s), %(invited_by)s)
        ON CONFLICT (project_id, email) DO UPDATE
        SET role = EXCLUDED.role,
            token_hash = EXCLUDED.token_hash,
            expires_at = EXCLUDED.expires_at,
            invited_by = EXCLUDED.invited_by
        WHERE s.accepted_at IS NULL
        RETURNING {_COLUMNS}
        """.encode(),
        {
            "organization_id": access.organization_id,
            "project_id": access.project_id,
            "email": new.email.lower(),
            "role": new.role,
            "token_hash": invitation.token_hash,
            "expires_in": new.expires_in,
            "invited_by": caller.user_id,
        },
    ).fetchone()
    if row is None:
        raise Conflict("The project is shared with this address. Delete that share to change it.")
    outbox.append(
        tx,
        "project.shared",
        organization_id=access.organization_id,
        payload={"project_id": str(access.project_id), "share_id": str(row["id"]), "role": new.role},
    )
    return InvitedShare.model_validate(row | {"token": invitation.token})


def shares(tx: db.Tx, project_id: UUID, *, before: UUID | None, limit: int) -> list[Share]:
    rows = tx.execute(
        f"""
        SELECT {_COLUMNS}
        FROM projects.shares
        WHERE project_id = %(project_id)s AND (%(before)s::uuid IS NULL OR id < %(before)s)
        ORDER BY id DESC
        LIMIT %(limit)s
        """.encode(),
        {"project_id": project_id, "before": before, "limit": limit},
    ).fetchall()
    return [Share.model_validate(row) for row in rows]


def remove(tx: db.Tx, project_id: UUID, share_id: UUID) -> None:
    """Ends a share or withdraws an invitation, from the next request on. Raises NotFound."""
    removed = tx.execute(
        "DELETE FROM projects.shares WHERE project_id = %s AND id = %s", [project_id, share_id]
    )
    if not removed.rowcount:
        raise NotFound("This project has no such share. GET its /shares lists them.")
