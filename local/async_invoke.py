"""Asynchronous invocation: an accepted event is run, tried again, and its end told to a destination.

As Lambda does it, but for the time between attempts: AWS waits one minute and then two. The events are
in memory: those of a stack that stops are lost, and it says how many.
"""

import heapq
import itertools
import os
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from botocore.exceptions import BotoCoreError, ClientError

from local import destinations
from local.aws import Client
from local.destinations import Result
from local.environment import Outcome, Status
from local.function import name_in
from local.intrinsics import Resource
from local.refusal import Refusal
from local.runtime import Runtime, Throttled, UnknownFunction
from local.terminal import say

KIND = "AWS::Lambda::EventInvokeConfig"
DELAYS = (1.0, 2.0)  # seconds before the second attempt and before the third
MAX_BACKOFF = 300.0  # seconds between attempts of an event that finds no environment
WORKERS = 64


@dataclass(frozen=True)
class Settings:
    """Of one function; the defaults are Lambda's."""

    retries: int = 2
    max_age: float = 6 * 3600  # seconds
    on_success: str | None = None  # ARN
    on_failure: str | None = None


@dataclass(frozen=True, order=True)
class _Event:
    due: float  # by the monotonic clock
    number: int  # those due at the same time keep their order
    function: str = field(compare=False)  # its name
    payload: bytes = field(compare=False)
    request_id: str = field(compare=False)
    accepted: float = field(compare=False)
    attempts: int = field(default=0, compare=False)
    throttles: int = field(default=0, compare=False)


class AsynchronousInvocations:
    def __init__(
        self, resources: Iterable[Resource], runtime: Runtime, aws: Client, delays: Sequence[float] = ()
    ) -> None:
        self._runtime = runtime
        self._aws = aws
        self._delays = tuple(delays) or _configured_delays()
        self._settings = settings(resources)
        self._events: list[_Event] = []
        self._unfinished = 0
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="async")
        threading.Thread(target=self._run, name="async", daemon=True).start()

    def replace(self, resources: Iterable[Resource]) -> None:
        """The template's settings from now on. Raises Refusal."""
        self._settings = settings(resources)

    def accept(self, function: str, payload: bytes, request_id: str) -> None:
        now = time.monotonic()
        with self._changed:
            self._unfinished += 1
        self._put(_Event(now, next(self._numbers), function, payload, request_id, accepted=now))

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
            lost = self._unfinished
        self._workers.shutdown(wait=False, cancel_futures=True)
        if lost:
            say(f"{lost} asynchronous invocations were not finished and are lost; AWS would have kept them.")

    def _put(self, event: _Event) -> None:
        with self._changed:
            heapq.heappush(self._events, event)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                wait = self._events[0].due - time.monotonic() if self._events else None
                if self._closed:
                    return
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    continue
                event = heapq.heappop(self._events)
                self._workers.submit(self._try, event)

    def _try(self, event: _Event) -> None:
        limits = self._settings.get(event.function, Settings())
        if time.monotonic() - event.accepted > limits.max_age:
            self._finish(event, limits, "EventAgeExceeded", None)
            return
        try:
            outcome = self._runtime.invoke(event.function, event.payload, request_id=event.request_id)
        except (Throttled, OSError):
            # Lambda's own trouble is no attempt: it begins at a second and doubles.
            wait = min(2.0**event.throttles, MAX_BACKOFF)
            self._put(replace(event, due=time.monotonic() + wait, throttles=event.throttles + 1))
        except UnknownFunction:  # the template has lost it meanwhile
            self._finish(event, limits, "RetriesExhausted", None)
        else:
            self._decide(replace(event, attempts=event.attempts + 1), limits, outcome)

    def _decide(self, event: _Event, limits: Settings, outcome: Outcome) -> None:
        if outcome.status is Status.OK:
            self._finish(event, limits, "Success", outcome.payload)
        elif event.attempts > limits.retries:
            self._finish(event, limits, "RetriesExhausted", outcome.payload)
        else:
            delay = self._delays[min(event.attempts, len(self._delays)) - 1]
            self._put(replace(event, due=time.monotonic() + delay))

    def _finish(self, event: _Event, limits: Settings, condition: str, answer: bytes | None) -> None:
        result = Result(event.request_id, event.function, condition, event.attempts, event.payload, answer)
        destination = limits.on_success if result.succeeded else limits.on_failure
        try:
            if destination:
                destinations.send(destination, result, datetime.now(UTC), self._aws, self._pass_on)
            elif not result.succeeded:
                say(f"{event.function} gave up on {event.request_id} after {event.attempts} attempts.")
        except (BotoCoreError, ClientError) as error:
            say(f"The record of {event.request_id} could not be sent to {destination}: {error}")
        finally:
            with self._changed:
                self._unfinished -= 1

    def _pass_on(self, function: str, payload: bytes) -> None:
        self.accept(name_in(function), payload, str(uuid.uuid4()))


def settings(resources: Iterable[Resource]) -> dict[str, Settings]:
    """By function name. Raises Refusal for a destination that is not played here."""
    found = {}
    for resource in resources:
        if resource.kind == KIND:
            given = resource.properties
            routes = given.get("DestinationConfig") or {}
            found[name_in(str(given["FunctionName"]))] = Settings(
                retries=int(given.get("MaximumRetryAttempts", 2)),
                max_age=float(given.get("MaximumEventAgeInSeconds", 6 * 3600)),
                on_success=_destination(resource, routes.get("OnSuccess")),
                on_failure=_destination(resource, routes.get("OnFailure")),
            )
    return found


def _destination(resource: Resource, given: dict[str, str] | None) -> str | None:
    arn = (given or {}).get("Destination")
    if arn and arn.split(":")[2] not in destinations.SERVICES:
        raise Refusal(
            f"{resource.logical_id} has the destination {arn}; "
            f"here it is a queue, a topic, a bus or a function."
        )
    return arn


def _configured_delays() -> tuple[float, ...]:
    """BACKPLANE_LOCAL_RETRY_DELAYS, as `60,120`. Raises Refusal."""
    text = os.environ.get("BACKPLANE_LOCAL_RETRY_DELAYS", "")
    try:
        return tuple(float(part) for part in text.split(",")) if text else DELAYS
    except ValueError:
        raise Refusal(f"BACKPLANE_LOCAL_RETRY_DELAYS is seconds, as 60,120, not {text}.") from None
