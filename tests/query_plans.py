"""The plan by which PostgreSQL answers what code asks, for tests that an index serves it."""

from collections.abc import Callable
from typing import Any

import pytest

from backplane import db


class Explained(Exception):  # noqa: N818  no error: what was asked for
    def __init__(self, plan: str) -> None:
        super().__init__(plan)
        self.plan = plan


class Explaining:
    """A transaction that shows the plan of the first statement it is given, run to its end."""

    def __init__(self, tx: db.Tx) -> None:
        self.tx = tx

    def execute(self, query: str | bytes, params: Any) -> Any:
        asked = query.decode() if isinstance(query, bytes) else query
        lines = self.tx.execute(
            f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {asked}".encode(), params
        ).fetchall()
        raise Explained("\n".join(line["QUERY PLAN"] for line in lines))


def plan_of(tx: db.Tx, ask: Callable[[Any], Any]) -> str:
    with pytest.raises(Explained) as explained:
        ask(Explaining(tx))
    return explained.value.plan
