"""Credits: grants in, debits out, an append-only entry for each.

Every mutation is one SQL function (functions/migrate/migrations/0007_ledger.sql), one round trip,
exact under concurrency; what is here gives it names and types. Amounts are whole credits.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb
from pydantic import BaseModel, Field

from backplane import db
from backplane.problems import IdempotencyConflict, InsufficientCredits, NotFound, Unprocessable

# Lower burns first: what expires soonest is spent before what was bought to keep.
PRIORITY = {"plan": 10, "promotion": 20, "sign_up": 30, "adjustment": 40, "pack": 50}

# Renewals are paid about an hour after the period turns, sometimes after days of retries.
PLAN_GRACE = timedelta(hours=72)


class LiveGrant(BaseModel):
    id: UUID
    source: str
    amount: int
    remaining: int
    expires_at: datetime | None


class Balance(BaseModel):
    available: int
    held: int
    debt: int
    grants: list[LiveGrant]
    updated_at: datetime


class Debit(BaseModel):
    id: UUID
    operation: str
    quantity: int
    unit_cost: int
    amount: int
    available_after: int
    created_at: datetime


class Entry(BaseModel):
    id: UUID
    kind: str
    operation: str | None
    amount: int
    available_after: int
    held_after: int
    version: int
    source_id: UUID | None
    details: dict[str, Any] | None
    created_at: datetime


class OperationUsage(BaseModel):
    operation: str
    credits: int
    count: int


class DayUsage(BaseModel):
    day: date
    credits: int


class Usage(BaseModel):
    from_: datetime = Field(serialization_alias="from")
    to: datetime
    by_operation: list[OperationUsage]
    by_day: list[DayUsage]


def debit(
    organization_id: UUID,
    operation: str,
    quantity: int,
    *,
    key: str,
    actor: str,
    details: Mapping[str, Any] | None = None,
    tx: db.Tx | None = None,
) -> tuple[Debit, bool]:
    """Takes `quantity` times the operation's price, once per `key`.

    Answers the debit, and whether it is a replay of an earlier call with the same key. With `tx`
    it takes part in that transaction; without one it is its own, in one round trip.

    Raises InsufficientCredits (402, not remembered under the key), IdempotencyConflict (409: the key
    was used for another request), Unprocessable (the operation has no price), NotFound.
    """
    query = """
        SELECT *
        FROM credits.debit(%(organization_id)s, %(key)s, %(request_hash)s, %(operation)s, %(quantity)s,
                           %(actor)s, %(details)s)
    """
    params = {
        "organization_id": organization_id,
        "key": key,
        "request_hash": request_hash(operation, quantity, details),
        "operation": operation,
        "quantity": quantity,
        "actor": actor,
        "details": None if details is None else Jsonb(details),
    }
    if tx is not None:
        row = tx.execute(query, params).fetchone()
    else:
        try:
            row = db.call(query, params)
        except psycopg.errors.UniqueViolation:
            # The same key committed while we waited for the account: now it answers with a replay.
            row = db.call(query, params)
    if row is None:
        raise RuntimeError("credits.debit answers one row")
    return _debit_answer(row, operation)


def _debit_answer(row: Mapping[str, Any], operation: str) -> tuple[Debit, bool]:
    match row["outcome"]:
        case "debited":
            return Debit.model_validate(row), False
        case "replayed":
            return Debit.model_validate(row), True
        case "conflict":
            raise IdempotencyConflict(
                "This Idempotency-Key was used for another request. Send a new key, or repeat the first one."
            )
        case "insufficient":
            raise InsufficientCredits(
                f"{operation} costs {row['amount']} credits and {row['available_after']} are available."
                " Buy a pack or upgrade the plan, then repeat the request with the same key."
            )
        case "unknown_operation":
            raise Unprocessable(
                f"There is no operation {operation!r}. GET /v1/credits/costs lists what can be debited.",
                errors=[
                    {"loc": ["body", "operation"], "msg": "Unknown operation", "type": "unknown_operation"}
                ],
            )
        case _:
            raise NotFound("This organisation has no credit account.")


def request_hash(*parts: object) -> bytes:
    """What makes two requests the same: SHA-256 over their canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Credits to give. `source_key` is the business fact that grants once, e.g. `invoice:in_…`."""

    organization_id: UUID
    source: Literal["sign_up", "plan", "pack", "promotion", "adjustment"]
    source_key: str
    amount: int
    actor: str
    expires_at: datetime | None = None
    plan_id: UUID | None = None
    provider: Literal["stripe", "clerk"] | None = None
    provider_subscription_id: str | None = None
    period_end: datetime | None = None
    checkout_session_id: str | None = None
    invoice_id: str | None = None
    payment_intent_id: str | None = None
    charge_id: str | None = None


def grant(tx: db.Tx, grant: Grant) -> tuple[UUID, bool]:
    """Gives credits once per source key. Answers the grant's id and whether this call made it."""
    row = tx.execute(
        """
        SELECT *
        FROM credits.grant_credits(
            p_organization_id => %(organization_id)s, p_source => %(source)s::credits.grant_source,
            p_source_key => %(source_key)s, p_amount => %(amount)s, p_actor => %(actor)s,
            p_priority => %(priority)s, p_expires_at => %(expires_at)s, p_plan_id => %(plan_id)s,
            p_provider => %(provider)s::billing.provider,
            p_provider_subscription_id => %(provider_subscription_id)s,
            p_period_end => %(period_end)s, p_checkout_session_id => %(checkout_session_id)s,
            p_invoice_id => %(invoice_id)s, p_payment_intent_id => %(payment_intent_id)s,
            p_charge_id => %(charge_id)s)
        """,
        {field: getattr(grant, field) for field in Grant.__dataclass_fields__}
        | {"priority": PRIORITY[grant.source]},
    ).fetchone()
    if row is None:
        raise RuntimeError("credits.grant_credits answers one row")
    return row["grant_id"], row["granted"]


def end_subscription(
    tx: db.Tx, organization_id: UUID, provider: str, provider_subscription_id: str, *, actor: str
) -> None:
    """Expires what remains of a subscription's plan credits. Packs and sign-up credits stay."""
    tx.execute(
        """
        SELECT credits.end_subscription(
            %(organization_id)s, %(provider)s, %(provider_subscription_id)s, %(actor)s)
        """,
        {
            "organization_id": organization_id,
            "provider": provider,
            "provider_subscription_id": provider_subscription_id,
            "actor": actor,
        },
    )


def balance(tx: db.Tx, organization_id: UUID) -> Balance:
    """What can be spent now: grants past their expiry are left out, though not booked yet."""
    account = tx.execute(
        "SELECT available, held, debt, updated_at FROM credits.accounts WHERE organization_id = %s",
        [organization_id],
    ).fetchone()
    if account is None:
        raise NotFound("This organisation has no credit account.")
    grants = tx.execute(
        """
        SELECT id, source, amount, remaining, expires_at, expires_at <= clock_timestamp() IS TRUE AS due
        FROM credits.grants
        WHERE organization_id = %s AND live
        ORDER BY priority, expires_at NULLS LAST, created_at, id
        """,
        [organization_id],
    ).fetchall()
    due = sum(row["remaining"] for row in grants if row["due"])
    return Balance(
        available=account["available"] - due,
        held=account["held"],
        debt=account["debt"],
        grants=[LiveGrant.model_validate(row) for row in grants if not row["due"]],
        updated_at=account["updated_at"],
    )


def entries(tx: db.Tx, organization_id: UUID, *, before_version: int | None, limit: int) -> list[Entry]:
    """The newest entries, at most `limit`, older than `before_version` where one is given."""
    rows = tx.execute(
        """
        SELECT id, kind, operation, amount, available_after, held_after, version, source_id, details,
               created_at
        FROM credits.entries
        WHERE organization_id = %(organization_id)s
          AND (%(before)s::bigint IS NULL OR version < %(before)s)
        ORDER BY version DESC
        LIMIT %(limit)s
        """,
        {"organization_id": organization_id, "before": before_version, "limit": limit},
    ).fetchall()
    return [Entry.model_validate(row) for row in rows]


def usage(tx: db.Tx, organization_id: UUID, *, days: int, now: datetime | None = None) -> Usage:
    """Credits used in the last `days` days, by operation (most first) and by UTC day (oldest first)."""
    to = now or datetime.now(UTC)
    since = to - timedelta(days=days)
    params = {"organization_id": organization_id, "since": since, "to": to}
    by_operation = tx.execute(
        """
        SELECT operation, -sum(amount)::bigint AS credits, count(*) AS count
        FROM credits.entries
        WHERE organization_id = %(organization_id)s
          AND operation IS NOT NULL
          AND kind IN ('debit', 'settle', 'refund')
          AND created_at >= %(since)s AND created_at <= %(to)s
        GROUP BY operation
        ORDER BY credits DESC, operation
        """,
        params,
    ).fetchall()
    by_day = tx.execute(
        """
        SELECT (created_at AT TIME ZONE 'UTC')::date AS day, -sum(amount)::bigint AS credits
        FROM credits.entries
        WHERE organization_id = %(organization_id)s
          AND operation IS NOT NULL
          AND kind IN ('debit', 'settle', 'refund')
          AND created_at >= %(since)s AND created_at <= %(to)s
        GROUP BY day
        ORDER BY day
        """,
        params,
    ).fetchall()
    return Usage(
        from_=since,
        to=to,
        by_operation=[OperationUsage.model_validate(row) for row in by_operation],
        by_day=[DayUsage.model_validate(row) for row in by_day],
    )


def costs(tx: db.Tx) -> dict[str, int]:
    """The price of one unit of each operation."""
    rows = tx.execute("SELECT operation, unit_cost FROM credits.costs() ORDER BY operation").fetchall()
    return {row["operation"]: row["unit_cost"] for row in rows}
