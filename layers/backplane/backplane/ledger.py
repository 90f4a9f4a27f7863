"""Credits: grants in, debits out, an append-only entry for each.

Every mutation is one SQL function (functions/migrate/migrations; where several make it, the last one
counts), one round trip, exact under concurrency; what is here gives it names and types. Amounts are
whole credits. Holds are in holds.py, what puts an entry right (refunds, claw-backs, adjustments) in
corrections.py, the proof of the books in audits.py, what was used in usage.py, what runs low in
low_balance.py.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb
from pydantic import BaseModel

from backplane import db, idempotency, outbox
from backplane.problems import IdempotencyConflict, InsufficientCredits, NotFound, Problem, Unprocessable

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
        "request_hash": idempotency.request_hash(operation, quantity, details),
        "operation": operation,
        "quantity": quantity,
        "actor": actor,
        "details": None if details is None else Jsonb(details),
    }
    try:
        row = answer_of(query, params, tx)
    except psycopg.errors.UniqueViolation:
        if tx is not None:
            raise
        # The same key committed while we waited for the account: now it answers with a replay.
        row = answer_of(query, params, tx)
    return _debit_answer(row, operation)


def _debit_answer(row: Mapping[str, Any], operation: str) -> tuple[Debit, bool]:
    match row["outcome"]:
        case "debited":
            return Debit.model_validate(row), False
        case "replayed":
            return Debit.model_validate(row), True
        case "insufficient":
            raise InsufficientCredits(
                f"{operation} costs {row['amount']} credits and {row['available_after']} are available."
                " Buy a pack or upgrade the plan, then repeat the request with the same key."
            )
        case outcome:
            raise refusal(outcome, operation)


def answer_of(query: str, params: Mapping[str, Any], tx: db.Tx | None) -> DictRow:
    """The row that a function of the ledger answers, in the caller's transaction or in its own."""
    row = db.call(query, params) if tx is None else tx.execute(query.encode(), params).fetchone()
    if row is None:
        raise RuntimeError("the ledger's functions answer one row")
    return row


def refusal(outcome: str, operation: str | None = None) -> Problem:
    """The refusals that several functions of the ledger share."""
    match outcome:
        case "conflict":
            return IdempotencyConflict(
                "This Idempotency-Key was used for another request. Send a new key, or repeat the first one."
            )
        case "unknown_operation":
            return Unprocessable(
                f"There is no operation {operation!r}. GET /v1/credits/costs lists what can be debited.",
                errors=[
                    {"loc": ["body", "operation"], "msg": "Unknown operation", "type": "unknown_operation"}
                ],
            )
        case "unknown_account":
            return NotFound("There is no such organisation with a credit account. Check its id.")
    raise RuntimeError(f"the ledger answered {outcome!r}")


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
    if row["granted"]:
        outbox.written()
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
    """What can be spent now: grants past their expiry are left out and holds past theirs are back,
    though not booked yet.

    One statement, so that the account and its grants are of one moment. Raises NotFound.
    """
    rows = tx.execute(
        """
        WITH back AS (
            SELECT u.grant_id, sum(u.amount)::bigint AS credits
            FROM credits.holds AS h
            CROSS JOIN unnest(h.allocations) AS u
            JOIN credits.grants AS g ON g.id = u.grant_id
            WHERE h.organization_id = %(organization_id)s
              AND h.state = 'open'
              AND h.expires_at <= statement_timestamp()
              AND NOT credits.is_over(g, statement_timestamp())
            GROUP BY u.grant_id
        )
        SELECT b.available, b.held, b.debt, b.updated_at,
               g.id, g.source, g.amount, g.remaining + coalesce(back.credits, 0) AS remaining, g.expires_at
        FROM credits.balances AS b
        LEFT JOIN (credits.grants AS g LEFT JOIN back ON back.grant_id = g.id)
            ON g.organization_id = b.organization_id
            AND (g.live OR back.credits > 0)
            AND coalesce(g.expires_at > statement_timestamp(), true)
        WHERE b.organization_id = %(organization_id)s
        ORDER BY g.priority, g.expires_at NULLS LAST, g.created_at, g.id
        """,
        {"organization_id": organization_id},
    ).fetchall()
    if not rows:
        raise NotFound("There is no such organisation with a credit account. Check its id.")
    grants = [LiveGrant.model_validate(row) for row in rows if row["id"] is not None]
    return Balance(
        available=rows[0]["available"],
        held=rows[0]["held"],
        debt=rows[0]["debt"],
        grants=list(_without(grants, sum(grant.remaining for grant in grants) - rows[0]["available"])),
        updated_at=rows[0]["updated_at"],
    )


def _without(grants: Iterable[LiveGrant], paid: int) -> Iterator[LiveGrant]:
    """The grants less what a hold past its expiry pays of a debt when it is booked."""
    for grant in grants:
        kept = max(grant.remaining - paid, 0)
        paid -= grant.remaining - kept
        if kept:
            yield grant.model_copy(update={"remaining": kept})


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


def costs(tx: db.Tx) -> dict[str, int]:
    """The price of one unit of each operation."""
    rows = tx.execute("SELECT operation, unit_cost FROM credits.costs() ORDER BY operation").fetchall()
    return {row["operation"]: row["unit_cost"] for row in rows}
