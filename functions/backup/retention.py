"""Which backups are old enough to go: the newest of each day, week and month stays for a while."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import cluster_snapshot

from backplane.archives import DUMP, FOLDER, MANIFEST, Bucket, name_in, time_of

ALL_OF: Final = timedelta(days=1)  # up to the newest; of what is older the newest of each period stays
STRAY_AFTER: Final = timedelta(days=1)  # a dump without a manifest is nobody's any more


@dataclass(frozen=True)
class Policy:
    """How many days, weeks and months, of those that have a backup, keep their newest."""

    daily: int = 7
    weekly: int = 4
    monthly: int = 12


def expired(names: Iterable[str], policy: Policy, verified: Iterable[str] = ()) -> list[str]:
    """The backups that may be deleted, oldest first: none of the last day, nor the newest verified one."""
    newest_first = sorted(set(names), reverse=True)
    # Whoever backs up before he changes something wants that very backup, whatever comes after it.
    kept = {name for name in newest_first if time_of(newest_first[0]) - time_of(name) < ALL_OF}
    kept.update(sorted(set(verified) & set(newest_first))[-1:])
    periods = ((policy.daily, _day), (policy.weekly, _week), (policy.monthly, _month))
    for count, period in periods:
        newest: dict[str, str] = {}
        for name in newest_first:
            newest.setdefault(period(time_of(name)), name)
        kept.update(list(newest.values())[:count])
    return [name for name in reversed(newest_first) if name not in kept]


def apply(bucket: Bucket, policy: Policy, verified: Iterable[str]) -> list[str]:
    """Delete what has expired, and dumps whose manifest never came; the names of the backups deleted.

    The manifest goes last, so that what breaks off is found again. Raises ArchiveError and botocore's errors.
    """
    keys = set(bucket.objects())
    names = {name_in(key) for key in keys if key.endswith(MANIFEST)}
    deleted = expired(names, policy, verified)
    for name in deleted:
        manifest = bucket.manifest(name)
        if manifest.snapshot:
            cluster_snapshot.delete(manifest.snapshot)
        for key in (f"{FOLDER}{name}{DUMP}", f"{FOLDER}{name}{MANIFEST}"):
            if key in keys:
                bucket.client.delete_object(Bucket=bucket.name, Key=key)
    latest = datetime.now(UTC) - STRAY_AFTER
    for key in keys:
        name = name_in(key)
        if key.endswith(DUMP) and name not in names and time_of(name) < latest:
            bucket.client.delete_object(Bucket=bucket.name, Key=key)
    return deleted


def _day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d")


def _week(moment: datetime) -> str:
    return moment.strftime("%G-%V")  # ISO's: the days around New Year are one week


def _month(moment: datetime) -> str:
    return moment.strftime("%Y-%m")
