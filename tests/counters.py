"""Counts at any moment, and what stands of them: the clock is an argument here."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from tests.databases import Database
from tests.ledgers import Owned, rows

from backplane import db

T = TypeVar("T")

DAY, MONTH = "app.messages_per_day", "app.messages_per_month"


def plan_id(database: Owned, plan: str = "free") -> UUID:
    found: UUID = rows(database, "SELECT id FROM billing.plans WHERE key = %s", plan)[0]["id"]
    return found


def take_at(
    database: Owned, organization_id: UUID, at: datetime, *keys: str, quantity: int = 1, plan: str = "free"
) -> dict[str, Any]:
    """What billing.take answers at that moment; `refused_key` is None where it counted."""
    return rows(
        database,
        "SELECT * FROM billing.take_at(%s, %s, %s, %s, %s)",
        organization_id,
        plan_id(database, plan),
        list(keys),
        quantity,
        at,
    )[0]


def live_in(database: Owned, organization_id: UUID, timezone: str) -> None:
    rows(database, "UPDATE tenancy.organizations SET timezone = %s WHERE id = %s", timezone, organization_id)


def counters(database: Owned, organization_id: UUID, key: str) -> list[dict[str, Any]]:
    """A key's counters, oldest first; a stock's begins at no time."""
    return rows(
        database,
        """
        SELECT nullif(period_start, '-infinity') AS period_start, period, period_end, used
        FROM billing.usage_counters
        WHERE organization_id = %s AND key = %s
        ORDER BY period_start
        """,
        organization_id,
        key,
    )


def used(database: Owned, organization_id: UUID, key: str) -> int:
    """By the newest counter."""
    found = counters(database, organization_id, key)
    return found[-1]["used"] if found else 0


@contextmanager
def transaction(database: Database, organization_id: UUID, role: str = "backplane_app") -> Iterator[db.Tx]:
    """A transaction on a connection of its own, as the application has it: for callers that race."""
    with database.connect(role) as connection, connection.transaction():
        connection.execute("SELECT set_config('app.organization_id', %s, true)", [str(organization_id)])
        yield connection


def at_once(count: int, work: Callable[[int], T]) -> list[T]:
    """What `work` answers in as many threads, which begin together."""
    begin = threading.Barrier(count)

    def one(number: int) -> T:
        begin.wait(timeout=60)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))
