"""Domain events, written in the caller's transaction: an event stands if and only if its cause does."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from backplane import db


def append(tx: db.Tx, event_type: str, *, organization_id: UUID | None, payload: Mapping[str, Any]) -> None:
    """Writes one event, e.g. `subscription.changed`, for the publisher to put on the bus."""
    tx.execute(
        """
        INSERT INTO platform.outbox (organization_id, type, payload)
        VALUES (%(organization_id)s, %(type)s, %(payload)s)
        """,
        {"organization_id": organization_id, "type": event_type, "payload": Jsonb(dict(payload))},
    )
