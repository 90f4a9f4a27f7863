"""One function's execution environments: started on demand, reused, replaced when its files change."""

import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from local.children import Children
from local.environment import Environment, Outcome, Status
from local.function import Function
from local.sources import Sources

MAX_WAITING = 1000  # requests a function; more are throttled at once
MAX_WAIT = 29.0  # seconds a request waits for an environment
ATTEMPTS = 20  # at an initialization that failed on files that have changed since
SETTLED = 0.5  # seconds without a change before a failure is the files' own: writers are held up, too


class Throttled(Exception):  # noqa: N818  Lambda's word
    """No environment came free in time: Lambda's 429."""


class Pool:
    """Requests beyond the environments wait, first come, first served.

    An environment made from anything but the present function and files gets no more requests; what
    runs in it may end.
    """

    def __init__(self, function: Function, children: Children, log: Path, limit: int) -> None:
        self.function = function
        self._children = children
        self._log = log
        self._limit = limit
        self._lock = threading.Lock()
        self._sources = Sources((function.code, *function.layers))
        self._made_from: tuple[Function, int] = (function, 0)  # what an environment has to be made from
        self._idle: list[Environment] = []  # the last used first: it is the warmest
        self._places = 0  # environments that stand or are about to
        self._waiting: deque[Future[Environment | None]] = deque()

    @property
    def busy(self) -> int:
        with self._lock:
            return self._places - len(self._idle)

    def invoke(
        self, payload: bytes, request_id: str, *, patience: float = MAX_WAIT, until: float | None = None
    ) -> Outcome:
        """Run the handler on one event. Raises Throttled.

        Past `until`, by the monotonic clock, the outcome is LATE, and the handler goes on alone.
        """
        self._look()
        taken = self._take(patience if until is None else min(patience, until - time.monotonic()))
        try:
            environment = self._present(taken)
            outcome = environment.invoke(payload, request_id, until)
            # A new environment may have loaded a file half written: it fails to load (which the emulator may
            # tell as a process that ended), or its handler meets a module that is still empty. In one that
            # has worked before, an error is its own.
            torn = {Status.INIT} if environment is taken else {Status.INIT, Status.ERROR, Status.CRASH}
            for _ in range(ATTEMPTS):
                if outcome.status not in torn or self._is_settled(environment.made_from):
                    break
                environment = self._present(environment)
                outcome = environment.invoke(payload, request_id, until)
        except BaseException:
            self._give(None)
            raise
        if outcome.status is Status.LATE:
            threading.Thread(target=self._finish, args=(environment,), name="late", daemon=True).start()
        else:
            self._keep(environment, outcome)
        return outcome

    def replace(self, function: Function) -> None:
        """What the template says of it from now on."""
        with self._lock:
            self.function = function
            if (paths := (function.code, *function.layers)) != self._sources.paths:
                self._sources = Sources(paths)

    def close(self) -> None:
        """End the idle environments; a busy one ends with its process."""
        with self._lock:
            idle = self._forget_idle()
        for environment in idle:
            environment.end()

    def _look(self) -> tuple[Function, int]:
        """What an environment has to be made from, as of now; those made from anything else are ended."""
        edition = self._sources.edition()
        past: list[Environment] = []
        with self._lock:
            made_from = (self.function, max(edition, self._made_from[1]))
            if made_from != self._made_from:
                self._made_from = made_from
                past = self._forget_idle()
        for environment in past:
            environment.end()
        return made_from

    def _is_settled(self, made_from: object) -> bool:
        """Whether the files are still those it was made from, once nobody seems to be writing them."""
        for _ in range(ATTEMPTS):
            if self._look() != made_from:
                return False
            if self._sources.age > SETTLED:
                return True
            time.sleep(SETTLED / 5)
        return True

    def _forget_idle(self) -> list[Environment]:
        idle, self._idle = self._idle, []
        self._places -= len(idle)
        return idle

    def _present(self, environment: Environment | None) -> Environment:
        """That one, or a new one where it is gone or past."""
        if environment and environment.alive and environment.made_from == self._made_from:
            return environment
        if environment:
            environment.end()
        made_from = self._made_from
        return Environment(
            made_from[0],
            self._children,
            self._log,
            made_from=made_from,
            # A file changed twice in a second to the same length would be taken for its old bytecode.
            writes_bytecode=not self._sources.are_young,
        )

    def _finish(self, environment: Environment) -> None:
        self._keep(environment, environment.wait())

    def _keep(self, environment: Environment, outcome: Outcome) -> None:
        """Keep it for the next request, unless it is of no more use."""
        usable = outcome.status in {Status.OK, Status.ERROR} and environment.made_from == self._made_from
        if not usable:
            environment.end()
        self._give(environment if usable else None)

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
            return ticket.result(max(patience, 0))
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
