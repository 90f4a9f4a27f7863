"""A connection that waits no longer than its invocation has time.

A server or a network that falls silent says no farewell: statement_timeout is the server's own, and a
socket whose peer's machine still acknowledges what it gets never fails.
"""

import time
from typing import Final, Self, TypeVar

import psycopg
from psycopg.abc import PQGen, PQGenConn
from psycopg.rows import DictRow

from backplane import deadline

# Seconds beyond the work's time, less than deadline.MARGIN: for the server's own word that time is up,
# which says more than silence.
GRACE: Final = 0.25
INTERVAL: Final = 0.1  # seconds between looks at signals, psycopg's own

T = TypeVar("T")


class BoundedConnection(psycopg.Connection[DictRow]):
    """Raises OperationalError without an SQLSTATE where the time is over; drop the connection then."""

    def wait(self, gen: PQGen[T], interval: float = INTERVAL, timeout: float | None = None) -> T:
        return super().wait(gen, interval, left() if timeout is None else timeout)

    @classmethod
    def _connect_gen(cls, conninfo: str = "") -> PQGenConn[Self]:
        # libpq's connect_timeout has whole seconds, two at least, for each address that a name has.
        ends = time.monotonic() + left()
        connecting = super()._connect_gen(conninfo)
        try:
            wanted = next(connecting)
            while True:
                ready = yield wanted
                if time.monotonic() > ends:
                    connecting.close()
                    raise psycopg.errors.ConnectionTimeout("the invocation's time is over")
                wanted = connecting.send(ready)
        except StopIteration as connected:
            made: Self = connected.value
            return made


def left() -> float:
    """Seconds until nothing is waited for any more."""
    return max(0.0, deadline.remaining() + GRACE)
