"""Partitions: made ahead of their time, dropped when it is over. platform.partitioned_tables says which."""

import time

from aws_lambda_powertools import Logger

from backplane import db, maintenance_lock
from backplane.problems import Unavailable

logger = Logger(child=True)


def keep_up(ends: float) -> tuple[int, bool]:
    """How many were made and dropped, each in a transaction of its own, and whether those were all.

    While a backup or a migration is under way nothing is: there is time until the last partition ahead is
    used up. Raises Unavailable where that is near.
    """
    changed = 0
    for parent in db.run(_parents):
        for function in ("make_partition", "drop_partition"):
            while time.monotonic() < ends:
                name = _next(function, parent)
                if name is None:
                    break
                logger.info("partition", extra={"step": function, "partition": name})
                changed += 1
            else:
                return changed, False
    return changed, True


def _parents(tx: db.Tx) -> list[str]:
    rows = tx.execute("SELECT parent FROM platform.partitioned_tables ORDER BY parent").fetchall()
    return [row["parent"] for row in rows]


def _next(function: str, parent: str) -> str | None:
    """The partition that one step has made or dropped."""

    def step(tx: db.Tx) -> str | None:
        if not maintenance_lock.take_in_transaction(tx):
            _refuse_unless_one_is_ahead(tx, parent)
            logger.info("a backup or a migration is under way: partitions wait", extra={"parent": parent})
            return None
        row = tx.execute(f"SELECT platform.{function}(%s) AS name".encode(), [parent]).fetchone()
        return row["name"] if row else None

    return db.run(step)


def _refuse_unless_one_is_ahead(tx: db.Tx, parent: str) -> None:
    row = tx.execute(
        """
        SELECT to_regclass(parent || to_char(
                   date_trunc(period, clock_timestamp() AT TIME ZONE 'UTC') + ('1 ' || period)::interval,
                   '"_p"YYYYMMDD')) IS NOT NULL AS ahead
        FROM platform.partitioned_tables
        WHERE parent = %s
        """,
        [parent],
    ).fetchone()
    if row and not row["ahead"]:
        raise Unavailable(
            f"{parent} has no partition for its next period, and a backup or a migration is on."
        )
