"""Schedules run, with the events that AWS sends, and never over themselves."""

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from local import schedules
from local.environment import Outcome, Status
from local.intrinsics import Resource
from local.refusal import Refusal
from local.schedules import RULE, SCHEDULE, Clock, Schedule
from tests.e2e.local_cloud import until
from tests.e2e.local_deliveries import Toys, start_toys

pytestmark = pytest.mark.xdist_group("deliveries")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toys]:
    with start_toys(tmp_path_factory.mktemp("schedules")) as toys:
        yield toys


def first(toys: Toys, role: str) -> Any:
    return until(lambda: toys.seen(role), f"{role} runs shortly after the start")[0]["event"]


def test_a_rules_schedule_sends_eventbridges_event(toys: Toys) -> None:
    event = first(toys, "ticking")
    due = datetime.strptime(event["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)

    assert (event["detail-type"], event["source"], event["detail"]) == ("Scheduled Event", "aws.events", {})
    assert (event["version"], event["account"], event["region"]) == ("0", "123456789012", "us-east-1")
    assert event["resources"] == ["arn:aws:events:us-east-1:123456789012:rule/TickingEachMinute"]
    assert event["id"]
    assert abs(datetime.now(UTC) - due) < timedelta(minutes=2)


def test_a_schedulers_input_is_sent_with_its_context_filled_in(toys: Toys) -> None:
    event = first(toys, "ticking_too")

    assert set(event) == {"due"}
    assert datetime.strptime(event["due"], "%Y-%m-%dT%H:%M:%SZ")


def test_rare_and_disabled_ones_are_not_run_and_the_rare_ones_named(
    toys: Toys, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    first(toys, "ticking")
    with start_toys(tmp_path_factory.mktemp("rare")):
        told = capfd.readouterr().out

    assert "worker (cron(0 3 * * ? *))" in told
    assert "make invoke F=worker" in told
    assert toys.seen("nightly") == []


def test_schedulers_own_event_says_where_it_comes_from(toys: Toys) -> None:
    target = {"Arn": toys.runtime.find("Nightly").name}
    properties = {"ScheduleExpression": "rate(1 minute)", "Target": target, "Name": "often"}
    (schedule,) = schedules.schedules([Resource("Often", SCHEDULE, properties)], toys.runtime)
    event = schedule.event(datetime(2026, 3, 1, tzinfo=UTC))

    assert (event["source"], event["detail"]) == ("aws.scheduler", "{}")
    assert event["resources"] == ["arn:aws:scheduler:us-east-1:123456789012:schedule/default/often"]
    assert event["time"] == "2026-03-01T00:00:00Z"


def test_a_schedule_for_anything_but_a_function_is_refused(toys: Toys) -> None:
    properties = {"ScheduleExpression": "rate(1 minute)", "Targets": [{"Arn": toys.arn("IdleJobs")}]}

    with pytest.raises(Refusal, match="Rule: the local cloud runs schedules whose target is a function"):
        schedules.schedules([Resource("Rule", RULE, properties)], toys.runtime)


def test_a_schedule_never_overlaps_itself_and_what_it_missed_is_not_made_up_for(toys: Toys) -> None:
    slow = _Slow()
    each_tick = Schedule(
        logical_id="Slow",
        function=toys.runtime.find("Nightly"),
        expression="",
        event=lambda due: {"due": due.isoformat()},
        next=lambda last: last + timedelta(milliseconds=10),
    )
    clock = Clock([each_tick], slow)  # type: ignore[arg-type]  # as much of a runtime as a clock needs
    clock.start()
    until(lambda: len(slow.due) >= 4, "it runs again and again")
    clock.stop()
    gaps = [after - before for before, after in zip(slow.due, slow.due[1:], strict=False)]

    assert slow.most_at_once == 1
    assert all(gap >= timedelta(milliseconds=50) for gap in gaps), "the missed ones are left out"


class _Slow:
    """A runtime whose every invocation takes longer than the interval."""

    def __init__(self) -> None:
        self.due: list[datetime] = []
        self.most_at_once = 0
        self._running = 0
        self._lock = threading.Lock()

    def invoke(self, name: str, payload: bytes) -> Outcome:
        with self._lock:
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
            self.due.append(datetime.fromisoformat(json.loads(payload)["due"]))
        time.sleep(0.06)
        with self._lock:
            self._running -= 1
        return Outcome(Status.OK, b"null")
