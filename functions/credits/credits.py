"""Credits: balance, debits, holds, refunds, entries, prices, usage and audit of the caller's organisation."""

from typing import Annotated, Any, Self
from uuid import UUID

from aws_lambda_powertools.event_handler.openapi.params import Query
from pydantic import Field, field_validator, model_validator

from backplane import api, audits, corrections, db, holds, ledger, low_balance, paging, requests
from backplane import usage as used
from backplane.problems import InsufficientCredits, InvalidState

MAX_QUANTITY = 1_000_000
MAX_AMOUNT = 1_000_000_000
MAX_DETAILS_BYTES = 4096  # kept for ever, and answered again with each page of entries

router = api.Router()

Reason = Annotated[str, Field(min_length=1, max_length=500, pattern=r"\S")]


class DebitRequest(api.Body):
    operation: str = Field(min_length=1, max_length=63)
    quantity: int = Field(default=1, ge=1, le=MAX_QUANTITY)
    details: dict[str, Any] | None = None

    @field_validator("details")
    @classmethod
    def _bounded(cls, details: dict[str, Any] | None) -> dict[str, Any] | None:
        if details is not None and requests.stored_bytes(details) > MAX_DETAILS_BYTES:
            raise ValueError(f"at most {MAX_DETAILS_BYTES} bytes of JSON are kept")
        return details


class HoldRequest(DebitRequest):
    expires_in: int = Field(default=holds.DEFAULT_SECONDS, ge=1, le=holds.MAX_SECONDS)  # seconds


class SettleRequest(api.Body):
    """What was used, in units or in credits. Neither: all that was held."""

    quantity: int | None = Field(default=None, ge=0, le=MAX_QUANTITY)
    amount: int | None = Field(default=None, ge=0, le=MAX_AMOUNT)

    @model_validator(mode="after")
    def _one_measure(self) -> Self:
        if self.quantity is not None and self.amount is not None:
            raise ValueError("send quantity or amount, not both")
        return self


class RefundRequest(api.Body):
    amount: int | None = Field(default=None, ge=1, le=MAX_AMOUNT)  # None: all that is left
    reason: Reason


class AdjustmentRequest(api.Body):
    amount: int = Field(ge=-MAX_AMOUNT, le=MAX_AMOUNT)  # below 0: to take
    reason: Reason
    allow_debt: bool = False

    @field_validator("amount")
    @classmethod
    def _not_nothing(cls, amount: int) -> int:
        if amount == 0:
            raise ValueError("an adjustment gives or takes something")
        return amount


class LowBalance(api.Body):
    threshold: int = Field(ge=0, le=MAX_AMOUNT)  # less available than this is low; 0: never


@router.get("/v1/credits", scope="read")
def balance(caller: api.Caller) -> ledger.Balance:
    """What is available, what is held, what is owed, and the grants it comes from."""
    return db.run(
        lambda tx: ledger.balance(tx, caller.organization_id), organization_id=caller.organization_id
    )


@router.get("/v1/credits/costs", scope="read")
def costs(caller: api.Caller) -> dict[str, int]:
    """What one unit of each operation costs, in credits."""
    return db.run(ledger.costs, organization_id=caller.organization_id)


@router.post("/v1/credits/debits", scope="credits:spend", status_code=201, raises=(InsufficientCredits,))
def debit(body: DebitRequest, caller: api.Caller, key: api.IdempotencyKey) -> api.Response[ledger.Debit]:
    """Spends credits on an operation, at the server's price, exactly once per Idempotency-Key."""
    made, replayed = ledger.debit(
        caller.organization_id,
        body.operation,
        body.quantity,
        key=key,
        actor=caller.actor,
        details=body.details,
    )
    return api.answer(made, status_code=201, replayed=replayed)


@router.post("/v1/credits/holds", scope="credits:spend", status_code=201, raises=(InsufficientCredits,))
def hold(body: HoldRequest, caller: api.Caller, key: api.IdempotencyKey) -> api.Response[holds.Hold]:
    """Sets credits aside until what they are for is done: then settle the hold, or release it.

    What is held when it expires is available again.
    """
    made, replayed = holds.hold(
        caller.organization_id,
        body.operation,
        body.quantity,
        expires_in=body.expires_in,
        key=key,
        actor=caller.actor,
        details=body.details,
    )
    return api.answer(made, status_code=201, replayed=replayed)


@router.post(
    "/v1/credits/holds/<hold_id>/settle", scope="credits:settle", raises=(InsufficientCredits, InvalidState)
)
def settle(
    hold_id: UUID, body: SettleRequest, caller: api.Caller, key: api.IdempotencyKey
) -> api.Response[holds.Settlement]:
    """Takes what was used out of a hold, and makes the rest available again.

    More than was held is taken from what is available.
    """
    made, replayed = holds.settle(
        caller.organization_id,
        hold_id,
        quantity=body.quantity,
        amount=body.amount,
        key=key,
        actor=caller.actor,
    )
    return api.answer(made, replayed=replayed)


@router.post("/v1/credits/holds/<hold_id>/release", scope="credits:settle", raises=(InvalidState,))
def release(hold_id: UUID, caller: api.Caller, key: api.IdempotencyKey) -> api.Response[holds.Release]:
    """Makes all of a hold available again."""
    made, replayed = holds.release(caller.organization_id, hold_id, key=key, actor=caller.actor)
    return api.answer(made, replayed=replayed)


@router.post(
    "/v1/credits/debits/<debit_id>/refunds", scope="credits:refund", status_code=201, raises=(InvalidState,)
)
def refund(
    debit_id: UUID, body: RefundRequest, caller: api.Caller, key: api.IdempotencyKey
) -> api.Response[corrections.Refund]:
    """Gives a debit's credits back, in one or several parts and never more than it took."""
    made, replayed = corrections.refund(
        caller.organization_id,
        debit_id,
        amount=body.amount,
        reason=body.reason,
        key=key,
        actor=caller.actor,
    )
    return api.answer(made, status_code=201, replayed=replayed)


@router.get("/v1/credits/entries", scope="read")
def entries(
    caller: api.Caller, limit: paging.Limit = 20, cursor: paging.Cursor = None
) -> paging.Page[ledger.Entry]:
    """Every change of the balance, newest first."""
    before = paging.decode_cursor(cursor, int)
    items = db.run(
        lambda tx: ledger.entries(tx, caller.organization_id, before_version=before, limit=limit + 1),
        organization_id=caller.organization_id,
    )
    return paging.page(items, limit, lambda last: last.version)


@router.get("/v1/credits/usage", scope="read")
def usage(caller: api.Caller, days: Annotated[int, Query(ge=1, le=366)] = 30) -> used.Usage:
    """What was spent, by operation and by day, in the organisation's timezone."""
    return db.run(
        lambda tx: used.usage(tx, caller.organization_id, days=days), organization_id=caller.organization_id
    )


@router.get("/v1/credits/low-balance", scope="read")
def low_balance_threshold(caller: api.Caller) -> LowBalance:
    """Below how many available credits the balance is low."""
    threshold = db.run(
        lambda tx: low_balance.threshold(tx, caller.organization_id), organization_id=caller.organization_id
    )
    return LowBalance(threshold=threshold)


@router.put("/v1/credits/low-balance", scope="billing:manage")
def set_low_balance_threshold(body: LowBalance, caller: api.Caller) -> LowBalance:
    """Sets below how many available credits the event `credits.low_balance` is sent; 0: never."""
    db.run(
        lambda tx: low_balance.set_threshold(tx, caller.organization_id, body.threshold),
        organization_id=caller.organization_id,
    )
    return body


@router.get("/v1/credits/audit", scope="read")
def audit(caller: api.Caller) -> audits.Audit:
    """Adds the balance up again from the entries and the grants, and says whether it is the same."""
    return audits.audit(caller.organization_id)


@router.post(
    "/v1/admin/credits/<organization_id>/adjustments",
    scope="admin",
    status_code=201,
    raises=(InsufficientCredits,),
)
def adjust(
    organization_id: UUID, body: AdjustmentRequest, caller: api.Caller, key: api.IdempotencyKey
) -> api.Response[corrections.Adjustment]:
    """Gives an organisation credits, or takes some, with a reason."""
    made, replayed = corrections.adjust(
        organization_id,
        body.amount,
        reason=body.reason,
        allow_debt=body.allow_debt,
        key=key,
        actor=caller.actor,
    )
    return api.answer(made, status_code=201, replayed=replayed)


handler = api.lambda_handler(router)
