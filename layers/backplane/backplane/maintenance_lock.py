"""The advisory lock that migrations and backups hold, one at a time.

A dump's ACCESS SHARE locks stop a migration, and every reader queues behind that.
"""

import random
import time
from typing import Final

import psycopg
from psycopg.rows import DictRow

LOCK: Final = 0x6261636B706C616E  # "backplan" in ASCII


class BusyError(RuntimeError):
    """Another session has held the lock for as long as was waited."""


def take(connection: psycopg.Connection[DictRow], wait: float) -> None:
    """Take the lock for this session, a direct one, waiting so many seconds at most. Raises BusyError."""
    # Not waited for inside a statement, which would hold a snapshot: CREATE INDEX CONCURRENTLY of
    # the one who has the lock waits for snapshots.
    deadline = time.monotonic() + wait
    while True:
        row = connection.execute("SELECT pg_try_advisory_lock(%s) AS held", [LOCK]).fetchone()
        if row and row["held"]:
            return
        if time.monotonic() > deadline:
            raise BusyError(f"another migration or a backup has held the maintenance lock for {wait:.0f} s")
        time.sleep(random.uniform(0.05, 0.25))  # noqa: S311  jitter, not a secret


def take_in_transaction(connection: psycopg.Connection[DictRow]) -> bool:
    """Take the lock until the transaction ends, if it is free. Works through a pooler, too."""
    row = connection.execute("SELECT pg_try_advisory_xact_lock(%s) AS held", [LOCK]).fetchone()
    return bool(row and row["held"])


def release(connection: psycopg.Connection[DictRow]) -> None:
    connection.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
