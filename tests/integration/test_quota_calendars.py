"""Quotas on the calendars where people live, and of those who move: PostgreSQL's clock against Python's."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.counters import DAY, MONTH, counters, live_in, take_at
from tests.databases import Database
from tests.ledgers import Kept, new_account, rows

LIMIT = 10  # a day, on the free plan
TICK = timedelta(microseconds=1)
ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",  # midnight comes twice
    "America/Santiago",  # midnight is skipped
    "Africa/Cairo",
    "Asia/Beirut",
    "America/Scoresbysund",
    "Atlantic/Azores",
    "Asia/Kathmandu",  # 5:45
    "Pacific/Chatham",  # 12:45, 13:45
    "Australia/Lord_Howe",  # 30 minutes of summer time
    "America/St_Johns",
    "Pacific/Apia",  # had no 30 December 2011
    "Pacific/Kiritimati",
    "Etc/GMT+12",
]
database_kept = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], print_blob=True
)
zones = st.sampled_from(ZONES)
moments = st.datetimes(datetime(2012, 1, 1), datetime(2037, 6, 1), timezones=st.just(UTC))


@pytest.fixture
def owner(database: Database) -> Iterator[Kept]:
    """One connection for all that is looked at."""
    with database.connect() as connection:
        yield Kept(connection)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def counter(owner: Kept, key: str, zone: str, moment: datetime, of: UUID | None = None) -> dict[str, Any]:
    """The counter of that moment; without an organisation the calendar's alone."""
    query = "SELECT * FROM billing.counter_at(%s, %s, %s, %s)"
    return rows(owner, query, of or uuid4(), key, zone, moment)[0]


# ---- calendars ----


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
        ("Australia/Lord_Howe", "2026-04-05T05:00+00:00", "2026-04-04T13:00+00:00", 24.5),
        ("America/Santiago", "2026-09-06T12:00+00:00", "2026-09-06T04:00+00:00", 23),  # no midnight that day
        ("America/Havana", "2026-11-01T04:30+00:00", "2026-11-01T04:00+00:00", 25),  # the first of two
        ("Pacific/Apia", "2011-12-30T09:00+00:00", "2011-12-29T10:00+00:00", 24),
        (
            "Pacific/Apia",
            "2011-12-30T12:00+00:00",
            "2011-12-30T10:00+00:00",
            24,
        ),  # the 31st
    ],
)
def test_a_day_lasts_as_long_as_it_does_there(
    owner: Kept, zone: str, moment: str, start: str, hours: float
) -> None:
    found = counter(owner, DAY, zone, at(moment))
    assert found["period_start"] == at(start)
    assert found["resets_at"] == at(start) + timedelta(hours=hours)


@pytest.mark.parametrize(
    ("zone", "moment", "start", "end"),
    [
        ("UTC", "2026-02-28T23:59:59+00:00", "2026-02-01T00:00+00:00", "2026-03-01T00:00+00:00"),
        ("UTC", "2028-02-29T00:00+00:00", "2028-02-01T00:00+00:00", "2028-03-01T00:00+00:00"),
        ("UTC", "2026-01-31T12:00+00:00", "2026-01-01T00:00+00:00", "2026-02-01T00:00+00:00"),
        ("UTC", "2026-12-31T23:59:59+00:00", "2026-12-01T00:00+00:00", "2027-01-01T00:00+00:00"),
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
    owner: Kept, zone: str, moment: str, start: str, end: str
) -> None:
    found = counter(owner, MONTH, zone, at(moment))
    assert (found["period_start"], found["resets_at"]) == (at(start), at(end))


@given(zones, moments, st.sampled_from([DAY, MONTH]))
@example("America/Havana", at("2026-11-01T04:30+00:00"), DAY)
@example("Asia/Beirut", at("2026-03-28T22:00+00:00"), DAY)
@example("UTC", at("2028-02-29T23:59:59+00:00"), MONTH)
@example("UTC", at("2026-01-31T00:00+00:00"), MONTH)
@settings(database_kept, max_examples=100)
def test_a_period_holds_its_dates_from_the_first_instant_to_the_last(
    owner: Kept, zone: str, moment: datetime, key: str
) -> None:
    found = counter(owner, key, zone, moment)
    start, end = found["period_start"], found["resets_at"]
    there = ZoneInfo(zone)

    def first_of(instant: datetime) -> date:
        local = instant.astimezone(there).date()
        return local if key == DAY else local.replace(day=1)

    assert start <= moment < end
    assert found["period"] == first_of(moment) == first_of(start) == first_of(end - TICK)
    assert first_of(start - TICK) < found["period"] < first_of(end)
    following = counter(owner, key, zone, end)
    assert (following["period_start"], following["period"]) == (end, first_of(end))


# ---- those who move ----

step = st.tuples(
    st.floats(min_value=0, max_value=30),  # hours later
    st.none() | zones,  # moved there
    st.integers(min_value=1, max_value=LIMIT),  # and took so many
)


@given(moments, zones, st.lists(step, min_size=1, max_size=12))
@settings(database_kept, max_examples=30)
def test_whoever_moves_wins_nothing_and_each_date_counts_once(
    database: Database, owner: Kept, start: datetime, home: str, steps: list[tuple[float, str | None, int]]
) -> None:
    organization_id = new_account(database)
    live_in(owner, organization_id, home)
    zone, now = home, start
    taken: list[tuple[datetime, int]] = []
    for hours, moved, quantity in steps:
        now += timedelta(hours=hours) + TICK
        before = counter(owner, DAY, zone, now, organization_id)
        if moved is not None:
            zone = moved
            live_in(owner, organization_id, zone)
            after = counter(owner, DAY, zone, now, organization_id)
            if now < before["period_end"]:  # where it began, the date is not over
                assert after["used"] >= before["used"]
            if before["used"]:
                assert after["resets_at"] >= before["period_end"]
                assert after["resets_at"] - before["period_end"] <= timedelta(days=1, hours=27)
            before = after
        answer = take_at(owner, organization_id, now, DAY, quantity=quantity)
        assert (answer["refused_key"] is None) == (before["used"] + quantity <= LIMIT)
        if answer["refused_key"] is None:
            taken.append((now, quantity))
        else:
            assert now < answer["resets_at"]

    stored = counters(owner, organization_id, DAY)
    for row in stored:
        within = [n for moment, n in taken if row["period_start"] <= moment < row["period_end"]]
        assert row["used"] == sum(within) <= LIMIT
        # A date that it is somewhere on earth: so in n days there are at most n, and those at the edges.
        assert abs(row["period"] - row["period_start"].astimezone(UTC).date()) <= timedelta(days=1)
    assert sum(row["used"] for row in stored) == sum(n for _, n in taken)
    for earlier, later in pairwise(stored):
        assert earlier["period"] < later["period"]
        assert earlier["period_end"] <= later["period_start"]

    give_back = "SELECT billing.correct_count(%s, %s, %s, %s)"
    for moment, quantity in taken:  # each failed, and finds its own counter
        rows(owner, give_back, organization_id, [DAY], -quantity, moment)
    assert {row["used"] for row in counters(owner, organization_id, DAY)} <= {0}


def test_following_the_midnights_around_the_earth_gives_a_day_a_day(database: Database, owner: Kept) -> None:
    """The trick that pays 24 times a day where a timezone counts from its own midnight."""
    organization_id = new_account(database)
    start = at("2026-06-01T00:00+00:00")
    got = 0
    for hour in range(96):  # four days; each hour he lives where midnight has just passed
        west = (hour + 11) % 24 - 11
        live_in(owner, organization_id, f"Etc/GMT{west:+d}")
        now = start + timedelta(hours=hour, minutes=1)
        assert now.astimezone(ZoneInfo(f"Etc/GMT{west:+d}")).hour == 0
        got += take_at(owner, organization_id, now, DAY, quantity=LIMIT)["refused_key"] is None
    assert got <= 5
