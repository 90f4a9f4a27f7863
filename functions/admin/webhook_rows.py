"""The webhook inbox as platform admins see it."""

import json
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel

from backplane import db, requests
from backplane.inbox import Provider
from backplane.problems import NotFound

Stored = Literal["processed", "ignored", "stale", "parked", "quarantined", "failed", "dead"]


class Webhook(BaseModel):
    id: UUID
    provider: Provider
    event_id: str
    event_type: str
    status: Stored
    reason: str | None
    waiting_for: str | None
    organization_id: UUID | None
    attempts: int
    occurred_at: datetime
    received_at: datetime
    processed_at: datetime | None
    next_attempt_at: datetime | None


class WholeWebhook(Webhook):
    error: str | None  # the last failure's traceback
    body: Any  # as parsed; its text where it holds what JSON can escape and nothing can store; null: trimmed


def newest(
    tx: db.Tx, *, status: Stored | None, provider: Provider | None, before: UUID | None, limit: int
) -> list[Webhook]:
    # Only what is asked for, and as it stands (both are enums): else no plan finds the index of a status.
    wanted = [f"{name} = '{value}'" for name, value in (("status", status), ("provider", provider)) if value]
    rows = tx.execute(
        f"""
        SELECT id, provider, event_id, event_type, status, reason, waiting_for, organization_id, attempts,
               occurred_at, received_at, processed_at, next_attempt_at
        FROM platform.webhook_inbox
        WHERE {" AND ".join([*wanted, "(%(before)s::uuid IS NULL OR id < %(before)s)"])}
        ORDER BY id DESC
        LIMIT %(limit)s
        """.encode(),
        {"before": before, "limit": limit},
    ).fetchall()
    return [Webhook.model_validate(row) for row in rows]


def find(tx: db.Tx, webhook_id: UUID) -> WholeWebhook:
    """Raises NotFound."""
    row = tx.execute("SELECT * FROM platform.webhook_inbox WHERE id = %s", [webhook_id]).fetchone()
    if row is None:
        raise NotFound("There is no such event in the inbox. GET /v1/admin/webhooks lists them.")
    return WholeWebhook.model_validate(row | {"body": _shown(row["body"])})


def _shown(body: bytes | None) -> Any:
    if body is None:
        return None
    text = bytes(body).decode(errors="replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if requests.unstorable(value) else value
