"""Generations as they are stored and shown; what starts and ends them is in leases.py."""

import hmac
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel

from backplane import db
from backplane.auth import Caller
from backplane.keys import hash_secret
from backplane.problems import InvalidState, NotFound

AgentType = Literal[
    "orchestrator", "backend", "frontend", "database", "auth", "integrations", "devops", "designer"
]
Status = Literal["pending", "in_progress", "completed", "failed"]


class Person(BaseModel):
    id: UUID
    email: str | None
    name: str | None


class Generation(BaseModel):
    id: UUID
    project_id: UUID
    user: Person | None  # null where a key started it
    agent_type: AgentType
    prompt: str
    response: str | None
    status: Status
    operation: str
    quantity: int
    hold_id: UUID
    debit_id: UUID | None  # what it was charged by; it can be refunded
    amount_settled: int | None
    tokens_used: int
    files_version: int | None  # in force when it was done, where it brought files
    duration_ms: int | None
    error_message: str | None
    lock_expires_at: datetime
    created_at: datetime
    completed_at: datetime | None


_COLUMNS = """
    g.id, g.project_id, g.agent_type, g.prompt, g.response, g.status, g.hold_id, g.tokens_used,
    g.files_version, g.duration_ms, g.error_message, g.lock_expires_at, g.created_at, g.completed_at,
    h.operation, h.quantity, h.debit_id, h.amount_settled,
    CASE WHEN g.user_id IS NOT NULL THEN jsonb_build_object(
        'id', g.user_id, 'email', u.email,
        'name', nullif(trim(concat_ws(' ', u.first_name, u.last_name)), '')) END AS user
    FROM projects.generations AS g
    JOIN credits.holds AS h ON h.id = g.hold_id
    LEFT JOIN identity.users AS u ON u.id = g.user_id
"""


def read(tx: db.Tx, generation_id: UUID) -> Generation:
    """Raises NotFound."""
    row = tx.execute(f"SELECT {_COLUMNS} WHERE g.id = %s".encode(), [generation_id]).fetchone()
    if row is None:
        raise missing()
    return Generation.model_validate(row)


def newest(tx: db.Tx, project_id: UUID, *, before: UUID | None, limit: int) -> list[Generation]:
    rows = tx.execute(
        f"""
        SELECT {_COLUMNS}
        WHERE g.project_id = %(project_id)s AND (%(before)s::uuid IS NULL OR g.id < %(before)s)
        ORDER BY g.id DESC
        LIMIT %(limit)s
        """.encode(),
        {"project_id": project_id, "before": before, "limit": limit},
    ).fetchall()
    return [Generation.model_validate(row) for row in rows]


def project_of(tx: db.Tx, generation_id: UUID) -> UUID:
    """The project of a generation that the caller's organisation has, or that is shared with him."""
    row = tx.execute("SELECT project_id FROM projects.generations WHERE id = %s", [generation_id]).fetchone()
    if row is None:
        raise missing()
    project_id: UUID = row["project_id"]
    return project_id


# ---- for those that change them ----


@dataclass(frozen=True, slots=True)
class Row:
    """What the operations on a generation need to know of it."""

    id: UUID
    organization_id: UUID
    project_id: UUID
    user_id: UUID | None
    status: Status
    hold_id: UUID
    hold_state: str  # open, unless a server settled or released it by itself
    counted_at: datetime
    lock_token_hash: bytes
    seconds_left: float  # of the lease


def running(tx: db.Tx, project_id: UUID) -> Row | None:
    return find(tx, "g.project_id = %(project_id)s AND g.status = 'in_progress'", project_id=project_id)


def of_token(tx: db.Tx, caller: Caller, generation_id: UUID, lock_token: str) -> Row:
    """Raises NotFound, Conflict (another token than the one it started with)."""
    row = find(
        tx,
        "g.id = %(id)s AND g.organization_id = %(organization_id)s",
        id=generation_id,
        organization_id=caller.organization_id,
    )
    if row is None:
        raise missing()
    if not hmac.compare_digest(row.lock_token_hash, hash_secret(lock_token)):
        raise InvalidState("The lock token is not this generation's. Send the one that starting it answered.")
    return row


def find(tx: db.Tx, condition: str, **params: Any) -> Row | None:
    row = tx.execute(
        f"""
        SELECT g.id, g.organization_id, g.project_id, g.user_id, g.status, g.hold_id, h.state AS hold_state,
               g.counted_at, g.lock_token_hash,
               extract(epoch FROM g.lock_expires_at - clock_timestamp())::float8 AS seconds_left
        FROM projects.generations AS g
        JOIN credits.holds AS h ON h.id = g.hold_id
        WHERE {condition}
        """.encode(),
        params,
    ).fetchone()
    return None if row is None else Row(**row)


def missing() -> NotFound:
    return NotFound("There is no such generation. GET a project's /generations lists those there are.")
