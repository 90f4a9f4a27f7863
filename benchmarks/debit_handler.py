"""A debit through the whole credits function, in this process, beside the ledger's bare call."""

import os
import sys
import time
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from uuid import UUID

from local.checkout import ROOT
from tests.databases import Database

from backplane import auth, ledger
from benchmarks.debit_clients import use

BARE = "`ledger.debit`"
WARM = 50
ROUNDS = 400


def measure(database: Database, *, warm: int = WARM, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds that a debit took each way, in turns."""
    sys.path[:0] = [str(folder) for folder in sorted((ROOT / "functions").iterdir()) if folder.is_dir()]
    from tests import callers

    os.environ |= {
        "CLERK_ISSUER": callers.ISSUER,
        "CLERK_JWT_KEY": callers.PEM,
        "POWERTOOLS_LOG_LEVEL": "ERROR",
    }
    use(database)
    token = callers.token()
    caller = auth.authenticate({"authorization": f"Bearer {token}"})  # signs him up
    _fill(database, caller.organization_id)

    def bare() -> None:
        ledger.debit(caller.organization_id, "ai_text_chat", 1, key=str(uuid.uuid4()), actor="bench")

    ways = {
        BARE: bare,
        "handler, session token": _handled(token),
        "handler, organisation key": _handled(
            callers.mint(database, caller.organization_id, ["credits:spend"])
        ),
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(warm + rounds):
        for way, work in ways.items():
            began = time.perf_counter()
            work()
            if number >= warm:
                taken[way].append(time.perf_counter() - began)
    return taken


def _handled(credential: str) -> Callable[[], None]:
    from tests import callers, senders

    _, handler = callers.FUNCTIONS["/v1/credits"]
    context: Any = senders.Context()

    def work() -> None:
        event = senders.http_event(
            "POST",
            "/v1/credits/debits",
            body='{"operation": "ai_text_chat"}',
            headers={
                "authorization": f"Bearer {credential}",
                "content-type": "application/json",
                "idempotency-key": str(uuid.uuid4()),
            },
        )
        answer = handler(event, context)
        if answer["statusCode"] != HTTPStatus.CREATED:
            raise RuntimeError(answer["body"])

    return work


def _fill(database: Database, organization_id: UUID) -> None:
    with database.connect() as owner:
        owner.execute(
            "SELECT credits.adjust(%s, 'bench', sha256('bench'), %s, 'bench', false, 'bench')",
            [organization_id, 10**9],
        )
