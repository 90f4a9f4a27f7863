"""Months from an anchor: short ones, leap years."""

from datetime import datetime

import pytest

from backplane.periods import add_months


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


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
