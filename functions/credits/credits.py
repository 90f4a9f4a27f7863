"""Credits: balance, debits, entries, prices and usage of the caller's organisation."""

import json
from typing import Annotated, Any

from aws_lambda_powertools.event_handler.openapi.params import Query
from pydantic import Field, field_validator

from backplane import api, db, ledger

MAX_QUANTITY = 1_000_000
MAX_DETAILS_BYTES = 4096  # kept for ever, and answered again with each page of entries

router = api.Router()


class DebitRequest(api.Body):
    operation: str = Field(min_length=1, max_length=63)
    quantity: int = Field(default=1, ge=1, le=MAX_QUANTITY)
    details: dict[str, Any] | None = None

    @field_validator("details")
    @classmethod
    def _bounded(cls, details: dict[str, Any] | None) -> dict[str, Any] | None:
        if details is not None and len(json.dumps(details, ensure_ascii=False).encode()) > MAX_DETAILS_BYTES:
            raise ValueError(f"at most {MAX_DETAILS_BYTES} bytes of JSON are kept")
        return details


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
