"""The functions' execution environments: started on demand, reused, at most so many a function."""

import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from local import invocation
from local.children import Children
from local.environment import Environment, Outcome, Status
from local.function import Function
from local.log_stream import Report
from local.terminal import say

DEFAULT_POOL = 4  # environments a function; BACKPLANE_LOCAL_POOL changes it
MAX_WAITING = 1000  # requests a function; more are throttled at once
MAX_WAIT = 29.0  # seconds, API Gateway's patience with an integration
DRAIN = 3.0  # seconds that requests under way are given when the stack stops


class Throttled(Exception):  # noqa: N818  Lambda's word
    """No environment came free in time: Lambda's 429."""


class UnknownFunction(LookupError):  # noqa: N818  Lambda's word
    pass


class Pool:
    """One function's environments. Requests beyond them wait, first come, first served."""

    def __init__(self, function: Function, children: Children, log: Path, limit: int) -> None:
        self.function = function
        self._children = children
        self._log = log
        self._limit = limit
        self._lock = threading.Lock()
        self._idle: list[Environment] = []  # the last used first: it is the warmest
        self._places = 0  # environments that stand or are about to
        self._waiting: deque[Future[Environment | None]] = deque()

    @property
    def busy(self) -> int:
        with self._lock:
            return self._places - len(self._idle)

    def invoke(self, payload: bytes, request_id: str, *, patience: float = MAX_WAIT) -> Outcome:
        """Run the handler on one event. Raises Throttled."""
        environment = self._take(patience)
        kept = None
        try:
            if environment is None or not environment.alive:
                if environment:
                    environment.end()
                environment = Environment(self.function, self._children, self._log)
            outcome = environment.invoke(payload, request_id)
            if outcome.status in {Status.OK, Status.ERROR}:
                kept = environment
            else:
                environment.end()
            return outcome
        finally:
            self._give(kept)

    def close(self) -> None:
        """End the idle environments; a busy one ends with its process."""
        with self._lock:
            idle, self._idle = self._idle, []
            self._places -= len(idle)
        for environment in idle:
            environment.end()

    def _take(self, patience: float) -> Environment | None:
        """An idle environment, or None: the right to start one. Raises Throttled."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
            if self._places < self._limit:
                self._places += 1
                return None
            if len(self._waiting) >= MAX_WAITING:
                raise Throttled
            ticket: Future[Environment | None] = Future()
            self._waiting.append(ticket)
        with suppress(TimeoutError):
            return ticket.result(patience)
        with self._lock:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                raise Throttled
        return ticket.result()  # it came between the two

    def _give(self, environment: Environment | None) -> None:
        """Hand the place to who waits longest; with None, the right to start a new environment."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set_result(environment)
            elif environment:
                self._idle.append(environment)
            else:
                self._places -= 1


class Runtime:
    """Every function, by its physical name, its logical id or its folder."""

    def __init__(self, functions: Iterable[Function], children: Children, logs: Path) -> None:
        limit = int(os.environ.get("BACKPLANE_LOCAL_POOL") or DEFAULT_POOL)
        self._pools = [Pool(each, children, logs / f"{each.folder}.log", limit) for each in functions]
        self._by_name = {
            name: pool
            for pool in self._pools
            for name in (pool.function.folder, pool.function.logical_id, pool.function.name)
        }

    def find(self, name: str) -> Function:
        """Raises UnknownFunction."""
        return self._pool(name).function

    def invoke(self, name: str, payload: bytes, *, request_id: str | None = None) -> Outcome:
        """Run a function and print a line about it. Raises UnknownFunction, Throttled."""
        pool = self._pool(name)
        request_id = request_id or str(uuid.uuid4())
        began = time.monotonic()
        outcome, status = None, "throttled"
        try:
            outcome = pool.invoke(payload, request_id)
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
        while any(pool.busy for pool in self._pools) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pool in self._pools:
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
