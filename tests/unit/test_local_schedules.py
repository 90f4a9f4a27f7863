"""Schedules: which are run, when, and with what."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from local.refusal import Refusal
from local.schedules import next_run

START = datetime(2026, 3, 1, 10, 58, 30, tzinfo=UTC)


def times(expression: str, count: int = 3) -> list[str]:
    following = next_run("Schedule", expression)
    assert following is not None
    moments, moment = [], START
    for _ in range(count):
        moment = following(moment)
        moments.append(f"{moment:%H:%M:%S}")
    return moments


@pytest.mark.parametrize(
    ("expression", "due"),
    [
        ("rate(1 minute)", ["10:59:30", "11:00:30", "11:01:30"]),
        ("rate(5 minutes)", ["11:03:30", "11:08:30", "11:13:30"]),
        ("cron(* * * * ? *)", ["10:59:00", "11:00:00", "11:01:00"]),
        ("cron(0/5 * * * ? *)", ["11:00:00", "11:05:00", "11:10:00"]),
        ("cron(*/3 * ? * * *)", ["11:00:00", "11:03:00", "11:06:00"]),
        ("cron(1-59/2 * * * ? *)", ["10:59:00", "11:01:00", "11:03:00"]),
    ],
)
def test_a_schedule_of_five_minutes_or_less_is_run(expression: str, due: list[str]) -> None:
    assert times(expression) == due


@pytest.mark.parametrize(
    "expression",
    [
        "rate(6 minutes)",
        "rate(1 hour)",
        "rate(1 day)",
        "cron(0 3 * * ? *)",
        "cron(0/10 * * * ? *)",
        "cron(0/5 8-18 * * ? *)",
        "cron(* * ? * MON-FRI *)",
        "cron(0,5,10 * * * ? *)",
        "cron(15 * * * ? *)",
        "at(2026-11-20T13:00:00)",
    ],
)
def test_a_rarer_one_is_left_to_be_invoked_by_name(expression: str) -> None:
    assert next_run("Schedule", expression) is None


@pytest.mark.parametrize("expression", ["soon", "rate(five minutes)", "rate(0 minutes", "cron(* * * *)", ""])
def test_what_is_no_schedule_is_refused(expression: Any) -> None:
    with pytest.raises(Refusal, match="Schedule: "):
        next_run("Schedule", expression)


def test_the_hours_end_is_passed_over_without_a_gap() -> None:
    following = next_run("Schedule", "cron(2/4 * * * ? *)")
    assert following is not None
    moment, gaps = START, set()
    for _ in range(40):
        after = following(moment)
        gaps.add(after - moment)
        moment = after

    assert gaps - {timedelta(seconds=210)} == {timedelta(minutes=4)}, "the first one aside"
