"""Credits: balance, debits, entries, prices and usage of the caller's organisation."""

from typing import Annotated, Any

from aws_lambda_powertools.event_handler.openapi.params import Query
from pydantic import Field

from backplane import api, db, ledger

MAX_CREDITS_AT_ONCE = 1_000_000

router = api.Router()


class DebitRequest(api.Body):
    operation: str = Field(min_length=1, max_length=63)
    quantity: int = Field(default=1, ge=1, le=MAX_CREDITS_AT_ONCE)
    details: dict[str, Any] | None = Field(default=None, max_length=50)


@router.get("/v1/credits", scope="read")
def balance(caller: api.Caller) -> ledger.Balance:
    return db.run(
        lambda tx: ledger.balance(tx, caller.organization_id), organization_id=caller.organization_id
    )


@router.get("/v1/credits/costs", scope="read")
def costs(caller: api.Caller) -> dict[str, int]:
    return db.run(ledger.costs, organization_id=caller.organization_id)


@router.post("/v1/credits/debits", scope="credits:spend", status_code=201)
def debit(body: DebitRequest, caller: api.Caller, key: api.IdempotencyKey) -> api.Response[ledger.Debit]:
    made, replayed = ledger.debit(
        caller.organization_id,
        body.operation,
        body.quantity,
        key=key,
        actor=caller.actor,
        details=body.details,
    )
    return api.answer(made, status_code=201, replayed=replayed)


@router.get("/v1/credits/entries", scope="read")
def entries(caller: api.Caller, limit: api.Limit = 20, cursor: api.Cursor = None) -> api.Page[ledger.Entry]:
    before = api.decode_cursor(cursor, int)
    items = db.run(
        lambda tx: ledger.entries(tx, caller.organization_id, before_version=before, limit=limit + 1),
        organization_id=caller.organization_id,
    )
    more = len(items) > limit
    items = items[:limit]
    return api.Page(items=items, next_cursor=api.encode_cursor(items[-1].version) if more else None)


@router.get("/v1/credits/usage", scope="read")
def usage(caller: api.Caller, days: Annotated[int, Query(ge=1, le=366)] = 30) -> ledger.Usage:
    return db.run(
        lambda tx: ledger.usage(tx, caller.organization_id, days=days), organization_id=caller.organization_id
    )


handler = api.lambda_handler(router)
