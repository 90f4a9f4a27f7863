"""Days and months where people live: clock changes, short months, leap years."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.periods import add_months, around


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("zone", "moment", "start", "hours"),
    [
        ("UTC", "2026-03-29T12:00+00:00", "2026-03-29T00:00+00:00", 24),
        ("Europe/Berlin", "2026-03-29T12:00+00:00", "2026-03-28T23:00+00:00", 23),  # spring
        ("Europe/Berlin", "2026-10-25T12:00+00:00", "2026-10-24T22:00+00:00", 25),  # autumn
        ("America/New_York", "2026-03-08T12:00+00:00", "2026-03-08T05:00+00:00", 23),
        ("America/New_York", "2026-11-01T12:00+00:00", "2026-11-01T04:00+00:00", 25),
        ("Asia/Kolkata", "2026-06-01T18:29:59+00:00", "2026-05-31T18:30+00:00", 24),
        ("Asia/Kolkata", "2026-06-01T18:30+00:00", "2026-06-01T18:30+00:00", 24),
        ("Australia/Lord_Howe", "2026-10-04T05:00+00:00", "2026-10-03T13:30+00:00", 23.5),
        ("America/Santiago", "2026-09-06T12:00+00:00", "2026-09-06T04:00+00:00", 23),  # no midnight that day
        ("Pacific/Apia", "2011-12-31T12:00+00:00", "2011-12-31T10:00+00:00", 24),  # after a day that wasn't
    ],
)
def test_a_day_lasts_as_long_as_it_does_there(zone: str, moment: str, start: str, hours: float) -> None:
    assert around(at(moment), "day", zone) == (at(start), at(start) + timedelta(hours=hours))


@pytest.mark.parametrize(
    ("zone", "moment", "start", "end"),
    [
        ("UTC", "2026-02-28T23:59:59+00:00", "2026-02-01T00:00+00:00", "2026-03-01T00:00+00:00"),
        ("UTC", "2028-02-29T00:00+00:00", "2028-02-01T00:00+00:00", "2028-03-01T00:00+00:00"),
        ("UTC", "2026-12-31T23:59:59+00:00", "2026-12-01T00:00+00:00", "2027-01-01T00:00+00:00"),
        ("UTC", "2026-01-31T12:00+00:00", "2026-01-01T00:00+00:00", "2026-02-01T00:00+00:00"),
        ("Europe/Berlin", "2026-03-15T00:00+00:00", "2026-02-28T23:00+00:00", "2026-03-31T22:00+00:00"),
        ("Pacific/Auckland", "2026-05-31T12:00+00:00", "2026-05-31T12:00+00:00", "2026-06-30T12:00+00:00"),
        (
            "America/Los_Angeles",
            "2026-03-01T07:59:59+00:00",
            "2026-02-01T08:00+00:00",
            "2026-03-01T08:00+00:00",
        ),
    ],
)
def test_a_month_runs_from_its_first_midnight_there_to_the_next(
    zone: str, moment: str, start: str, end: str
) -> None:
    assert around(at(moment), "month", zone) == (at(start), at(end))


_zones = st.sampled_from(
    [
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "America/Santiago",
        "Asia/Kathmandu",
        "Pacific/Chatham",
        "Africa/Cairo",
    ]
)


@given(st.datetimes(datetime(2000, 1, 1), datetime(2037, 12, 1), timezones=st.just(UTC)), _zones)
def test_days_follow_each_other_without_gap_or_overlap(moment: datetime, zone: str) -> None:
    start, end = around(moment, "day", zone)
    assert start <= moment < end
    assert around(start, "day", zone) == (start, end)
    assert around(end, "day", zone)[0] == end
    assert around(end - timedelta(microseconds=1), "day", zone) == (start, end)


@given(st.datetimes(datetime(2000, 1, 1), datetime(2037, 12, 1), timezones=st.just(UTC)), _zones)
def test_months_follow_each_other_without_gap_or_overlap(moment: datetime, zone: str) -> None:
    start, end = around(moment, "month", zone)
    assert start <= moment < end
    assert around(end, "month", zone)[0] == end
    assert around(end - timedelta(microseconds=1), "month", zone) == (start, end)


@pytest.mark.parametrize(
    ("anchor", "months", "expected"),
    [
        ("2026-01-31T09:30+00:00", 1, "2026-02-28T09:30+00:00"),
        ("2026-01-31T09:30+00:00", 2, "2026-03-31T09:30+00:00"),  # from the anchor, not from February
        ("2026-01-31T09:30+00:00", 3, "2026-04-30T09:30+00:00"),
        ("2028-01-31T09:30+00:00", 1, "2028-02-29T09:30+00:00"),
        ("2028-02-29T00:00+00:00", 12, "2029-02-28T00:00+00:00"),
        ("2026-12-15T00:00+00:00", 1, "2027-01-15T00:00+00:00"),
        ("2026-03-31T00:00+00:00", -1, "2026-02-28T00:00+00:00"),
        ("2026-01-15T00:00+00:00", -12, "2025-01-15T00:00+00:00"),
        ("2026-01-15T00:00+00:00", 0, "2026-01-15T00:00+00:00"),
    ],
)
def test_months_are_counted_from_the_anchor(anchor: str, months: int, expected: str) -> None:
    assert add_months(at(anchor), months) == at(expected)
