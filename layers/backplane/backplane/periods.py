"""Calendar periods in a timezone: days of 23 and 25 hours, months of 28 to 31 days."""

import calendar
from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

# Seconds of the epoch at which the year 9999 begins. Senders' times must lie before: datetime ends a
# year later, and there must be room to count on from them.
YEAR_9999 = 253_370_764_800

Period = Literal["day", "month"]


def around(moment: datetime, period: Period, timezone: str) -> tuple[datetime, datetime]:
    """The period around a moment: its start and its end, which is the next one's start, in UTC.

    Midnights are the timezone's. Where a clock change skips midnight, the day starts at the first
    instant after it.
    """
    zone = ZoneInfo(timezone)
    local = moment.astimezone(zone)
    first = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if period == "month":
        first = first.replace(day=1)
        following = (first + timedelta(days=31)).replace(day=1)
    else:
        following = first + timedelta(days=1)
    return first.astimezone(UTC), following.astimezone(UTC)


def add_months(anchor: datetime, months: int) -> datetime:
    """The same day and time `months` later, or the month's last day where it is shorter.

    Always counted from the anchor: 31 January, 28 February, 31 March.
    """
    index = anchor.year * 12 + anchor.month - 1 + months
    year, month = divmod(index, 12)
    day = min(anchor.day, calendar.monthrange(year, month + 1)[1])
    return anchor.replace(year=year, month=month + 1, day=day)
