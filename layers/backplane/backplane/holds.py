"""Holds: credits set aside before a piece of work, settled by what it used or released.

Held credits can be neither spent nor lost: they do not expire while they are held. A hold that
nobody closes ends by itself at its `expires_at` and gives its credits back.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from psycopg.types.json import Jsonb
from pydantic import BaseModel

from backplane import db, idempotency, ledger
from backplane.problems import InsufficientCredits, InvalidState, NotFound

DEFAULT_SECONDS = 900
MAX_SECONDS = 86_400


class Hold(BaseModel):
    id: UUID
    amount: int
    state: Literal["open"]  # as it was made; a replay answers the same
    expires_at: datetime


class Settlement(BaseModel):
    id: UUID
    state: Literal["settled"]
    amount_settled: int
    amount_released: int
    debit_id: UUID


class Release(BaseModel):
    id: UUID
    state: Literal["released", "expired"]
    amount_released: int


def hold(
    organization_id: UUID,
    operation: str,
    quantity: int,
    *,
    key: str,
    actor: str,
    expires_in: int = DEFAULT_SECONDS,
    details: Mapping[str, Any] | None = None,
    tx: db.Tx | None = None,
) -> tuple[Hold, bool]:
    """Sets `quantity` times the operation's price aside for `expires_in` seconds, once per `key`.

    Answers the hold, and whether it is a replay of an earlier call with the same key. With `tx`
    it takes part in that transaction; without one it is its own, in one round trip.

    Raises InsufficientCredits (402, not remembered under the key), IdempotencyConflict (409),
    Unprocessable (the operation has no price), NotFound.
    """
    row = ledger.answer_of(
        """
        SELECT *
        FROM credits.hold(%(organization_id)s, %(key)s, %(request_hash)s, %(operation)s, %(quantity)s,
                          %(expires_in)s, %(actor)s, %(details)s)
        """,
        {
            "organization_id": organization_id,
            "key": key,
            "request_hash": idempotency.request_hash(operation, quantity, expires_in, details),
            "operation": operation,
            "quantity": quantity,
            "expires_in": expires_in,
            "actor": actor,
            "details": None if details is None else Jsonb(details),
        },
        tx,
    )
    return _held(row, operation)


def _held(row: Mapping[str, Any], operation: str) -> tuple[Hold, bool]:
    match row["outcome"]:
        case "held" | "replayed":
            return Hold.model_validate({**row, "state": "open"}), row["outcome"] == "replayed"
        case "insufficient":
            raise InsufficientCredits(
                f"{operation} may cost {row['amount']} credits and {row['available']} are available."
                " Buy a pack or upgrade the plan, then repeat the request with the same key."
            )
        case outcome:
            raise ledger.refusal(outcome, operation)


def settle(
    organization_id: UUID,
    hold_id: UUID,
    *,
    key: str,
    actor: str,
    quantity: int | None = None,
    amount: int | None = None,
    tx: db.Tx | None = None,
) -> tuple[Settlement, bool]:
    """Turns an open hold into a debit: of `amount` credits, or of `quantity` at the price of the day it
    was held, or of all of it. Less returns the rest; more takes the rest from what is available.

    Answers the settlement, and whether it is a replay: of the same key, or of the same outcome under
    another. Raises InsufficientCredits (402, the hold stays open), Conflict (409 invalid_state: it
    is released, expired or settled at another amount), IdempotencyConflict (409), NotFound.
    """
    row = ledger.answer_of(
        """
        SELECT *
        FROM credits.settle(%(organization_id)s, %(hold_id)s, %(key)s, %(request_hash)s, %(quantity)s,
                            %(amount)s, %(actor)s)
        """,
        {
            "organization_id": organization_id,
            "hold_id": hold_id,
            "key": key,
            "request_hash": idempotency.request_hash(str(hold_id), quantity, amount),
            "quantity": quantity,
            "amount": amount,
            "actor": actor,
        },
        tx,
    )
    return _settled(row)


_WHY_NOT_SETTLED = {
    "settled": "The hold was settled at another amount. Refund its debit, or debit what is missing.",
    "released": "The hold was released: its credits are back. Debit what was used instead.",
    "expired": "The hold has expired: its credits are back. Debit what was used instead.",
}


def _settled(row: Mapping[str, Any]) -> tuple[Settlement, bool]:
    match row["outcome"]:
        case "settled" | "replayed":
            return Settlement.model_validate(row), row["outcome"] == "replayed"
        case "insufficient":
            raise InsufficientCredits(
                f"{row['missing']} credits more than were held are needed and {row['available']} are"
                " available. The hold stays open: settle less, or repeat this when there are more."
            )
        case "invalid_state":
            raise InvalidState(_WHY_NOT_SETTLED[row["state"]])
        case "unknown_hold":
            raise NotFound("This organisation has no such hold. GET /v1/credits/entries lists what it has.")
        case outcome:
            raise ledger.refusal(outcome)


def release(
    organization_id: UUID, hold_id: UUID, *, key: str, actor: str, tx: db.Tx | None = None
) -> tuple[Release, bool]:
    """Gives an open hold's credits back to where they came from.

    Answers the release, and whether they were back already: by the same key, by another, or because
    the hold had expired. Raises Conflict (409 invalid_state: it is settled), IdempotencyConflict
    (409), NotFound.
    """
    row = ledger.answer_of(
        """
        SELECT *
        FROM credits.release(%(organization_id)s, %(hold_id)s, %(key)s, %(request_hash)s, %(actor)s)
        """,
        {
            "organization_id": organization_id,
            "hold_id": hold_id,
            "key": key,
            "request_hash": idempotency.request_hash(str(hold_id)),
            "actor": actor,
        },
        tx,
    )
    match row["outcome"]:
        case "released" | "replayed":
            return Release.model_validate(row), row["outcome"] == "replayed"
        case "invalid_state":
            raise InvalidState(
                "The hold is settled. What it took can be given back by a refund of its debit.",
            )
        case "unknown_hold":
            raise NotFound("This organisation has no such hold. GET /v1/credits/entries lists what it has.")
        case outcome:
            raise ledger.refusal(outcome)


def overdue(tx: db.Tx, *, limit: int) -> list[UUID]:
    """Organisations with open holds that have expired."""
    rows = tx.execute(
        """
        SELECT organization_id
        FROM credits.holds
        WHERE state = 'open' AND expires_at <= statement_timestamp()
        GROUP BY organization_id
        ORDER BY min(expires_at)
        LIMIT %s
        """,
        [limit],
    ).fetchall()
    return [row["organization_id"] for row in rows]
