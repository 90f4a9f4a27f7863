"""The functions of the running stack, by name."""

import os
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

from local import invocation
from local.children import Children
from local.environment import Outcome
from local.function import Function
from local.log_stream import Report
from local.pool import Pool, Throttled
from local.terminal import say

__all__ = ["Runtime", "Throttled", "UnknownFunction"]

DEFAULT_POOL = 4  # environments a function; BACKPLANE_LOCAL_POOL changes it
DRAIN = 3.0  # seconds that requests under way are given when the stack stops


class UnknownFunction(LookupError):  # noqa: N818  Lambda's word
    pass


class Runtime:
    """Every function, by its physical name, its logical id or its folder."""

    def __init__(self, functions: Iterable[Function], children: Children, logs: Path) -> None:
        self._children = children
        self._logs = logs
        self._limit = int(os.environ.get("BACKPLANE_LOCAL_POOL") or DEFAULT_POOL)
        self._pools: dict[str, Pool] = {}  # by logical id
        self._by_name: dict[str, Pool] = {}
        self.replace(functions)

    @property
    def functions(self) -> list[Function]:
        return [pool.function for pool in self._pools.values()]

    @property
    def busy(self) -> int:
        """Environments at work."""
        return sum(pool.busy for pool in self._pools.values())

    def replace(self, functions: Iterable[Function]) -> None:
        """The template's functions from now on; what is running ends as it began."""
        before, self._pools = self._pools, {}
        for function in functions:
            pool = before.pop(function.logical_id, None) or self._pool_of(function)
            pool.replace(function)
            self._pools[function.logical_id] = pool
        self._by_name = {
            name: pool
            for pool in self._pools.values()
            for name in (pool.function.folder, pool.function.logical_id, pool.function.name)
        }
        for gone in before.values():
            gone.close()

    def _pool_of(self, function: Function) -> Pool:
        return Pool(function, self._children, self._logs / f"{function.folder}.log", self._limit)

    def find(self, name: str) -> Function:
        """Raises UnknownFunction."""
        return self._pool(name).function

    def invoke(
        self, name: str, payload: bytes, *, request_id: str | None = None, until: float | None = None
    ) -> Outcome:
        """Run a function and print a line about it. Raises UnknownFunction, Throttled, OSError.

        Past `until`, by the monotonic clock, the outcome is LATE, and the function goes on alone.
        """
        pool = self._pool(name)
        request_id = request_id or str(uuid.uuid4())
        began = time.monotonic()
        outcome, status = None, "throttled"
        try:
            outcome = pool.invoke(payload, request_id, until=until)
            status = outcome.status.value
        except OSError as error:
            status = "unstarted"
            say(str(error))
            raise
        finally:
            waited = (time.monotonic() - began) * 1000
            _tell(pool.function.folder, request_id, status, waited, outcome)
        return outcome

    def close(self) -> None:
        """Wait for the invocations under way, but not for long, and end the environments."""
        deadline = time.monotonic() + DRAIN
        while self.busy and time.monotonic() < deadline:
            time.sleep(0.02)
        for pool in self._pools.values():
            pool.close()

    def _pool(self, name: str) -> Pool:
        try:
            return self._by_name[name]
        except KeyError:
            raise UnknownFunction(name) from None


def _tell(folder: str, request_id: str, status: str, milliseconds: float, outcome: Outcome | None) -> None:
    """Print the invocation's line, once its log has come."""

    def tell(report: Report) -> None:
        line = invocation.summary(folder, request_id, status, milliseconds, report)
        say("\n".join([line, *invocation.troubles(report.lines)]))

    if outcome and outcome.report:
        outcome.report.add_done_callback(lambda coming: tell(coming.result()))
    else:
        tell(Report())
