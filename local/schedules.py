"""Schedules of five minutes or less, run; the others are named, to be invoked by hand.

A run that takes longer than its interval delays the next one: a schedule never overlaps itself.
"""

import json
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from local.aws import ACCOUNT, REGION
from local.function import Function, name_in
from local.intrinsics import Resource
from local.refusal import Refusal
from local.runtime import Runtime, Throttled, UnknownFunction

RULE, SCHEDULE = "AWS::Events::Rule", "AWS::Scheduler::Schedule"

LONGEST = timedelta(minutes=5)
FIRST = 1.0  # seconds after the stack is ready
RETRY = 1.0  # seconds

_RATE = re.compile(r"rate\((\d+) (minute|hour|day)s?\)")
_CRON = re.compile(r"cron\((\S+) (\S+) (\S+) (\S+) (\S+) (\S+)\)")
_MINUTES = re.compile(r"(\*|\d+(?:-\d+)?)(?:/(\d+))?")

# When a run is due after one at a moment.
Next = Callable[[datetime], datetime]


@dataclass(frozen=True)
class Schedule:
    logical_id: str
    function: Function
    expression: str
    event: Callable[[datetime], Any]
    next: Next | None  # None: it is rarer than LONGEST


def schedules(resources: Iterable[Resource], runtime: Runtime) -> list[Schedule]:
    """The enabled ones, one a target. Raises Refusal where one can't be played."""
    found = []
    for each in resources:
        expression = each.properties.get("ScheduleExpression")
        if expression and each.properties.get("State", "ENABLED") == "ENABLED":
            targets = each.properties.get("Targets", []) if each.kind == RULE else [each.properties["Target"]]
            found += [_schedule(each, expression, target, runtime) for target in targets]
    return found


def _schedule(resource: Resource, expression: str, target: Mapping[str, Any], runtime: Runtime) -> Schedule:
    try:
        function = runtime.find(name_in(target["Arn"]))
    except UnknownFunction:
        raise Refusal(
            f"{resource.logical_id}: the local cloud runs schedules whose target is a function of this "
            f"template, not {target['Arn']}."
        ) from None
    return Schedule(
        logical_id=resource.logical_id,
        function=function,
        expression=expression,
        event=_event(resource, target.get("Input")),
        next=next_run(resource.logical_id, expression),
    )


def next_run(logical_id: str, expression: str) -> Next | None:
    """Raises Refusal where the expression is none."""
    if rate := _RATE.fullmatch(expression):
        interval = timedelta(**{f"{rate[2]}s": int(rate[1])})
        return (lambda last: last + interval) if timedelta(0) < interval <= LONGEST else None
    if cron := _CRON.fullmatch(expression):
        minutes = _minutes(cron[1]) if all(field in {"*", "?"} for field in cron.groups()[1:]) else set()
        return _each_hour(minutes) if _longest_gap(minutes) <= LONGEST else None
    if expression.startswith("at("):
        return None
    raise Refusal(f"{logical_id}: {expression!r} is no rate(), cron() or at() expression.")


def _minutes(field: str) -> set[int]:
    """The minutes of an hour that a cron expression's first field means."""
    chosen: set[int] = set()
    for part in field.split(","):
        found = _MINUTES.fullmatch(part)
        if found is None:
            return set()
        first, _, last = found[1].partition("-")
        start = 0 if first == "*" else int(first)
        end = int(last) if last else start if first != "*" and not found[2] else 59
        chosen.update(range(start, end + 1, int(found[2] or 1) or 1))
    return {minute for minute in chosen if minute < 60}  # noqa: PLR2004  minutes an hour


def _longest_gap(minutes: set[int]) -> timedelta:
    ordered = sorted(minutes)
    if not ordered:
        return timedelta.max
    following = [*ordered[1:], ordered[0] + 60]
    return timedelta(minutes=max(after - before for before, after in zip(ordered, following, strict=True)))


def _each_hour(minutes: set[int]) -> Next:
    def following(last: datetime) -> datetime:
        moment = last.replace(second=0, microsecond=0) + timedelta(minutes=1)
        while moment.minute not in minutes:
            moment += timedelta(minutes=1)
        return moment

    return following


def _event(resource: Resource, written: str | None) -> Callable[[datetime], Any]:
    """What the function is given: the schedule's own input, or the event of its kind."""
    is_rule = resource.kind == RULE
    name = resource.properties.get("Name", resource.logical_id)
    group = resource.properties.get("GroupName", "default")
    path = f"events:{REGION}:{ACCOUNT}:rule" if is_rule else f"scheduler:{REGION}:{ACCOUNT}:schedule/{group}"
    arn = f"arn:aws:{path}/{name}"

    def event(due: datetime) -> Any:
        if written is not None:
            return _filled(written, arn, due)
        return {
            "version": "0",
            "id": str(uuid.uuid4()),
            "detail-type": "Scheduled Event",
            "source": "aws.events" if is_rule else "aws.scheduler",
            "account": ACCOUNT,
            "time": _timestamp(due),
            "region": REGION,
            "resources": [arn],
            "detail": {} if is_rule else "{}",
        }

    return event


def _filled(written: str, arn: str, due: datetime) -> Any:
    """docs.aws.amazon.com/scheduler/latest/UserGuide/managing-schedule-context-attributes.html."""
    attributes = {
        "schedule-arn": arn,
        "scheduled-time": _timestamp(due),
        "execution-id": str(uuid.uuid4()),
        "attempt-number": "1",
    }
    for name, value in attributes.items():
        written = written.replace(f"<aws.scheduler.{name}>", value)
    try:
        return json.loads(written)
    except ValueError:
        return written


def _timestamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class Clock:
    """Runs the frequent ones, each on a thread of its own."""

    def __init__(self, schedules: Iterable[Schedule], runtime: Runtime) -> None:
        self._runtime = runtime
        self._schedules = list(schedules)
        self._stopping = threading.Event()

    @property
    def by_hand(self) -> list[Schedule]:
        """Those that are too rare to be run."""
        return [each for each in self._schedules if each.next is None]

    def start(self) -> None:
        for each in self._schedules:
            if each.next:
                name = f"schedule {each.logical_id}"
                threading.Thread(target=self._run, args=(each, each.next), name=name, daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()

    def _run(self, schedule: Schedule, following: Next) -> None:
        due = datetime.now(UTC) + timedelta(seconds=FIRST)
        while not self._stopping.wait(max((due - datetime.now(UTC)).total_seconds(), 0)):
            payload = json.dumps(schedule.event(due)).encode()
            try:
                self._runtime.invoke(schedule.function.name, payload)
            except (Throttled, UnknownFunction, OSError):  # the terminal has a line about it
                self._stopping.wait(RETRY)
            now = datetime.now(UTC)
            due = following(due)
            while due < now:  # runs missed while this one took its time, or the machine slept
                due = following(due)


def by_hand(clock: Clock) -> str | None:
    """A line about the schedules that are not run."""
    rare = [f"{each.function.folder} ({each.expression})" for each in clock.by_hand]
    if not rare:
        return None
    example = clock.by_hand[0].function.folder
    return f"Rarer than every five minutes, so yours to run: {', '.join(rare)}: make invoke F={example}"
