"""Months on the calendar, of 28 to 31 days."""

import calendar
from datetime import datetime

# Seconds of the epoch at which the year 9999 begins. Senders' times must lie before: datetime ends a
# year later, and there must be room to count on from them.
YEAR_9999 = 253_370_764_800


def add_months(anchor: datetime, months: int) -> datetime:
    """The same day and time `months` later, or the month's last day where it is shorter.

    Always counted from the anchor: 31 January, 28 February, 31 March.
    """
    index = anchor.year * 12 + anchor.month - 1 + months
    year, month = divmod(index, 12)
    day = min(anchor.day, calendar.monthrange(year, month + 1)[1])
    return anchor.replace(year=year, month=month + 1, day=day)
