"""Who did what to whom: rows that are only ever added. Names are pseudonymous, `user:<id>`, `key:<id>`."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb
from pydantic import BaseModel

from backplane import db


class AuditEntry(BaseModel):
    id: UUID
    organization_id: UUID | None
    actor: str
    action: str
    target: str
    details: dict[str, Any]
    created_at: datetime


def write(
    tx: db.Tx,
    action: str,
    *,
    actor: str,
    target: str,
    organization_id: UUID | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Adds a row, e.g. `service_key.created` of `key:<id>`, in the transaction of what it tells."""
    tx.execute(
        """
        INSERT INTO platform.audit_log (organization_id, actor, action, target, details)
        VALUES (%(organization_id)s, %(actor)s, %(action)s, %(target)s, %(details)s)
        """,
        {
            "organization_id": organization_id,
            "actor": actor,
            "action": action,
            "target": target,
            "details": Jsonb(dict(details or {})),
        },
    )


def newest(tx: db.Tx, *, organization_id: UUID | None, before: UUID | None, limit: int) -> list[AuditEntry]:
    """The newest entries of all that the transaction sees, or of one organisation."""
    # Only what is asked for: a plan that is made for any question finds no index.
    whose = "organization_id = %(organization_id)s" if organization_id else "true"
    rows = tx.execute(
        f"""
        SELECT id, organization_id, actor, action, target, details, created_at
        FROM platform.audit_log
        WHERE {whose} AND (%(before)s::uuid IS NULL OR id < %(before)s)
        ORDER BY id DESC
        LIMIT %(limit)s
        """.encode(),
        {"organization_id": organization_id, "before": before, "limit": limit},
    ).fetchall()
    return [AuditEntry.model_validate(row) for row in rows]


def newest_in(
    tx: db.Tx,
    organization_id: UUID,
    *,
    actor: str | None,
    target: str | None,
    before: tuple[datetime, UUID] | None,
    limit: int,
) -> list[AuditEntry]:
    """The newest entries of an organisation, of one actor or about one target where that is asked for.

    In the order of the organisation's own index, however long the log of all of them is.
    """
    created_before, below = before or (None, None)
    rows = tx.execute(
        """
        SELECT id, organization_id, actor, action, target, details, created_at
        FROM platform.audit_log
        WHERE organization_id = %(organization_id)s
          AND (%(actor)s::text IS NULL OR actor = %(actor)s)
          AND (%(target)s::text IS NULL OR target = %(target)s)
          AND (%(created_before)s::timestamptz IS NULL
               OR (created_at, id) < (%(created_before)s, %(below)s))
        ORDER BY created_at DESC, id DESC
        LIMIT %(limit)s
        """,
        {
            "organization_id": organization_id,
            "actor": actor,
            "target": target,
            "created_before": created_before,
            "below": below,
            "limit": limit,
        },
    ).fetchall()
    return [AuditEntry.model_validate(row) for row in rows]
