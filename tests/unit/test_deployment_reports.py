"""What moves a deployment: every state against every report, told before, at once and after."""

from datetime import UTC, datetime, timedelta
from itertools import permutations, product

import pytest

from backplane.deployment_reports import TERMINAL, Status, combined, judge

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
EARLIER, LATER = NOON - timedelta(seconds=1), NOON + timedelta(seconds=1)
ENDS: tuple[Status, ...] = ("successful", "failed", "aborted")
STATES: tuple[Status, ...] = ("pending", "in_progress", *ENDS)

# From each state, what a report of each state does that was told (earlier than, at the same time as, later
# than) the newest one so far.
STALE, APPLIED, LATER_ONLY = ("stale",) * 3, ("applied",) * 3, ("stale", "stale", "applied")
TERMINATED = ("terminal",) * 3
TABLE: dict[Status, dict[Status, tuple[str, ...]]] = {
    "pending": {
        "pending": LATER_ONLY,
        "in_progress": APPLIED,
        "successful": APPLIED,
        "failed": APPLIED,
        "aborted": APPLIED,
    },
    "in_progress": {
        "pending": STALE,
        "in_progress": LATER_ONLY,
        "successful": APPLIED,
        "failed": APPLIED,
        "aborted": APPLIED,
    },
    "successful": dict.fromkeys(STATES, TERMINATED),
    "failed": dict.fromkeys(STATES, TERMINATED),
    "aborted": dict.fromkeys(STATES, TERMINATED),
}


@pytest.mark.parametrize(("now", "told"), list(product(STATES, STATES)))
def test_each_report_on_each_state_does_what_the_table_says(now: Status, told: Status) -> None:
    assert tuple(judge(now, NOON, told, at) for at in (EARLIER, NOON, LATER)) == TABLE[now][told]


@pytest.mark.parametrize("told", STATES)
def test_the_first_report_of_what_is_pending_is_news_whatever_it_says(told: Status) -> None:
    assert judge("pending", None, told, EARLIER) == "applied"


@pytest.mark.parametrize("end", ENDS)
def test_every_order_of_a_lifes_reports_ends_alike(end: Status) -> None:
    life: list[tuple[Status, datetime]] = [
        ("pending", EARLIER),
        ("in_progress", NOON),
        ("in_progress", LATER),
        (end, EARLIER),  # a clock that is behind
    ]
    for order in permutations(life):
        status: Status = "pending"
        at = None
        for told, told_at in order:
            if judge(status, at, told, told_at) == "applied":
                status, at = told, told_at
        assert status == end, order


@pytest.mark.parametrize(
    ("builds", "whole"),
    [
        ((), "pending"),
        (("pending",), "in_progress"),
        (("successful",), "successful"),
        (("successful", "in_progress"), "in_progress"),
        (("failed", "in_progress"), "in_progress"),
        (("successful", "successful"), "successful"),
        (("successful", "aborted"), "aborted"),
        (("aborted", "failed", "successful"), "failed"),
    ],
)
def test_a_deployment_is_over_when_all_its_builds_are_and_as_good_as_the_worst(
    builds: tuple[Status, ...], whole: Status
) -> None:
    for order in permutations(builds):
        status = combined(order, "pending")
        assert status == whole
        assert (status in TERMINAL) is bool(order and TERMINAL.issuperset(order))
