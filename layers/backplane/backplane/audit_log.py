"""Who did what to whom: rows that are only ever added. Names are pseudonymous, `user:<id>`, `key:<id>`."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from backplane import db


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
