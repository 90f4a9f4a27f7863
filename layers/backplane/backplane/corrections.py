"""What puts an earlier entry right: refunds of debits, claw-backs of grants, adjustments by hand.

Nothing is changed or deleted: each is an entry of its own that says what it corrects.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from backplane import db, idempotency, ledger, outbox
from backplane.problems import InsufficientCredits, InvalidState, NotFound


class Refund(BaseModel):
    id: UUID
    debit_id: UUID
    amount: int
    refunded_total: int  # of the debit, this refund included


class ClawBack(BaseModel):
    id: UUID | None  # None: nothing was left to take
    amount: int
    owed: int  # the part of it that became debt


class Restoration(BaseModel):
    id: UUID
    amount: int


class Adjustment(BaseModel):
    id: UUID
    amount: int
    reason: str
    available_after: int
    debt_after: int
    created_at: datetime


def refund(
    organization_id: UUID,
    debit_id: UUID,
    *,
    reason: str,
    key: str,
    actor: str,
    amount: int | None = None,
    tx: db.Tx | None = None,
) -> tuple[Refund, bool]:
    """Gives `amount` credits of a debit (or a settled hold's) back, or all that is left of it.

    They return to the grants they came from; of a grant whose time is over they come back as one of
    their own, good for 72 hours. Answers the refund, and whether it is a replay.

    Raises Conflict (409 invalid_state: more than is left to refund), IdempotencyConflict (409), NotFound.
    """
    row = ledger.answer_of(
        """
        SELECT *
        FROM credits.refund(%(organization_id)s, %(debit_id)s, %(key)s, %(request_hash)s, %(amount)s,
                            %(reason)s, %(actor)s)
        """,
        {
            "organization_id": organization_id,
            "debit_id": debit_id,
            "key": key,
            "request_hash": idempotency.request_hash(str(debit_id), amount, reason),
            "amount": amount,
            "reason": reason,
            "actor": actor,
        },
        tx,
    )
    return _refunded(row)


def _refunded(row: Mapping[str, Any]) -> tuple[Refund, bool]:
    match row["outcome"]:
        case "refunded" | "replayed":
            return Refund.model_validate(row), row["outcome"] == "replayed"
        case "invalid_state":
            raise InvalidState(
                f"{row['refunded_total']} credits of this debit were refunded and {row['refundable']} are"
                " left: a refund cannot be more than that.",
            )
        case "unknown_debit":
            raise NotFound("This organisation has no such debit. GET /v1/credits/entries lists what it has.")
        case outcome:
            raise ledger.refusal(outcome)


def claw_back(
    tx: db.Tx, grant_id: UUID, *, key: str, actor: str, amount: int | None = None
) -> tuple[ClawBack, bool]:
    """Takes a grant back, or `amount` of it, once per key (the business fact, e.g. `refund:re_…`).

    What is left of it goes; what was spent of it or is held becomes debt, which the next credits pay.
    Never more than the grant less earlier claw-backs and what lapsed unused. Answers the claw-back,
    and whether this call made it.
    """
    row = ledger.answer_of(
        "SELECT * FROM credits.claw_back(%(grant_id)s, %(key)s, %(amount)s, %(actor)s)",
        {"grant_id": grant_id, "key": key, "amount": amount, "actor": actor},
        tx,
    )
    return ClawBack.model_validate(row), row["clawed_back"]


def restore(tx: db.Tx, claw_back_id: UUID, *, actor: str) -> tuple[Restoration, bool]:
    """Undoes a claw-back, once: a dispute was won. Answers the restoration, and whether this call made it."""
    row = ledger.answer_of(
        "SELECT * FROM credits.restore_claw_back(%(claw_back_id)s, %(actor)s)",
        {"claw_back_id": claw_back_id, "actor": actor},
        tx,
    )
    return Restoration.model_validate(row), row["restored"]


def adjust(
    organization_id: UUID,
    amount: int,
    *,
    reason: str,
    key: str,
    actor: str,
    allow_debt: bool = False,
    tx: db.Tx | None = None,
) -> tuple[Adjustment, bool]:
    """Gives credits by hand (above 0), or takes them (below), with a row in the audit log.

    What is taken is at most what is available, unless `allow_debt` lets the rest become debt. Answers
    the adjustment, and whether it is a replay.

    Raises InsufficientCredits (402), IdempotencyConflict (409), NotFound.
    """
    row = ledger.answer_of(
        """
        SELECT *
        FROM credits.adjust(%(organization_id)s, %(key)s, %(request_hash)s, %(amount)s, %(reason)s,
                            %(allow_debt)s, %(actor)s)
        """,
        {
            "organization_id": organization_id,
            "key": key,
            "request_hash": idempotency.request_hash(amount, reason, allow_debt),
            "amount": amount,
            "reason": reason,
            "allow_debt": allow_debt,
            "actor": actor,
        },
        tx,
    )
    if row["outcome"] == "adjusted" and amount > 0:
        outbox.written()
    return _adjusted(row, amount, reason)


def _adjusted(row: Mapping[str, Any], amount: int, reason: str) -> tuple[Adjustment, bool]:
    match row["outcome"]:
        case "adjusted" | "replayed":
            return Adjustment.model_validate({**row, "reason": reason}), row["outcome"] == "replayed"
        case "insufficient":
            raise InsufficientCredits(
                f"{-amount} credits cannot be taken: {row['available_after']} are available."
                " Take less, or send allow_debt to let the rest become debt."
            )
        case outcome:
            raise ledger.refusal(outcome)
