"""Which backups go: by day, week and month, and never the newest nor the newest that is verified."""

from datetime import UTC, datetime, timedelta

import pytest
import retention
from hypothesis import given
from hypothesis import strategies as st
from retention import Policy

from backplane.archives import ArchiveError, name_at, name_in, time_of

NOON = datetime(2026, 3, 18, 12, tzinfo=UTC)  # a Wednesday


def days(*ago: float) -> list[str]:
    return [name_at(NOON - timedelta(days=each)) for each in ago]


def kept(names: list[str], policy: Policy, verified: list[str] | None = None) -> list[str]:
    gone = retention.expired(names, policy, verified or [])
    return sorted(set(names) - set(gone), reverse=True)


def test_the_newest_of_each_day_stays_as_long_as_days_are_kept() -> None:
    names = days(0, 1, 1.1, 1.2, 2, 3)
    assert kept(names, Policy(3, 0, 0)) == days(0, 1, 2)


def test_all_of_the_last_day_stay() -> None:
    """Two before a change and the nightly one after it: none of them goes at once."""
    assert kept(days(0, 0.1, 0.2, 0.9, 1.1), Policy(1, 0, 0)) == days(0, 0.1, 0.2, 0.9)


def test_weeks_are_calendar_weeks_and_their_newest_stays() -> None:
    assert kept(days(0, 2, 3, 4, 9, 10), Policy(1, 2, 0)) == days(0, 3)


def test_months_stay_for_a_year() -> None:
    firsts = [name_at(datetime(2025 + month // 12, month % 12 + 1, 1, tzinfo=UTC)) for month in range(15)]
    assert kept(firsts, Policy(1, 0, 12)) == sorted(firsts, reverse=True)[:12]


def test_a_year_of_daily_backups_leaves_seven_days_four_weeks_and_twelve_months() -> None:
    names = days(*range(400))
    left = kept(names, Policy())
    assert left[:7] == days(*range(7))
    assert len(left) == 7 + 2 + 11  # two of the four weeks and one of the months are among the days
    assert len({name[:13] for name in left}) == 12


def test_days_without_a_backup_do_not_count() -> None:
    """A stack whose backups have failed for a month keeps the last ones."""
    names = days(30, 31, 32, 33)
    assert kept(names, Policy(4, 0, 0)) == names


def test_the_newest_verified_one_stays_however_old_it_is() -> None:
    names = days(0, 1, 2, 90, 91)
    assert kept(names, Policy(2, 0, 0), days(90, 91)) == days(0, 1, 90)


def test_one_that_was_verified_and_is_gone_protects_no_other() -> None:
    names = days(0, 1, 90)
    assert kept(names, Policy(1, 0, 0), days(30, 90)) == days(0, 90)


@given(
    st.lists(st.integers(0, 900 * 24), max_size=40),
    st.integers(1, 10),
    st.integers(0, 6),
    st.integers(0, 14),
    st.data(),
)
def test_the_newest_and_the_newest_verified_are_never_among_what_goes(
    hours: list[int], daily: int, weekly: int, monthly: int, data: st.DataObject
) -> None:
    names = [name_at(NOON - timedelta(hours=each)) for each in hours]
    verified = data.draw(st.lists(st.sampled_from(names))) if names else []
    gone = retention.expired(names, Policy(daily, weekly, monthly), verified)
    assert not {*sorted(names)[-1:], *sorted(verified)[-1:]} & set(gone)
    left = [name for name in names if name not in gone]
    assert retention.expired(left, Policy(daily, weekly, monthly), verified) == []
    last_day = {name for name in names if max(names) <= name_at(time_of(name) + timedelta(days=1))}
    assert len(set(left) - last_day) <= daily + weekly + monthly + 1


def test_a_name_says_when_to_the_second_in_utc() -> None:
    assert days(0) == ["backup_20260318_120000"]
    assert time_of("backup_20260318_120000") == NOON
    assert name_in("s3://somewhere/backups/backup_20260318_120000.dump.zst") == "backup_20260318_120000"


@pytest.mark.parametrize("other", ["", "backup_2026", "dump.sql", "backups/"])
def test_what_is_not_named_as_a_backup_is_refused(other: str) -> None:
    with pytest.raises(ArchiveError, match="is no backup's name"):
        name_in(other)
