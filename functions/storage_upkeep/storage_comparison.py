"""What S3 lists, what the database says is stored, and what is counted: are they the same?"""

import time
from dataclasses import dataclass, field

from aws_lambda_powertools import Logger

from backplane import buckets, db, stored_objects
from backplane.problems import Unavailable

FOLDERS = ("artifacts/", "projects/", "uploads/")
MOST_TOLD = 100

logger = Logger(child=True)


@dataclass
class Drift:
    """How many; `told` names the first of each."""

    missing: int = 0  # rows whose object is not there
    unknown: int = 0  # objects that no row speaks for
    different: int = 0  # of another size
    miscounted: int = 0  # organisations whose count is not the sum of their objects
    told: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.missing + self.unknown + self.different + self.miscounted


def compare(ends: float) -> Drift:
    """Raises Unavailable where the time does not suffice."""
    drift = Drift()
    for folder in FOLDERS:
        after = folder
        for part in buckets.listing(folder):
            if time.monotonic() > ends:
                raise Unavailable("The comparison did not end in time.")
            until = part[-1][0] if part else folder + "\U0010ffff"
            _compare_part(dict(part), after, until, drift)
            after = until
        _compare_part({}, after, folder + "\U0010ffff", drift)
    _compare_counts(drift)
    for told in drift.told:
        logger.error(told)
    return drift


def _compare_part(listed: dict[str, int], after: str, until: str, drift: Drift) -> None:
    """Keys beyond `after` up to `until`."""
    rows = db.run(
        lambda tx: tx.execute(
            """
            SELECT s3_key, state, bytes, purged_at IS NOT NULL AS purged,
                   stored_at > clock_timestamp() - interval '1 hour' AS is_young
            FROM storage.objects
            WHERE s3_key > %(after)s
              AND s3_key <= %(until)s
              AND (state = 'stored' OR s3_key = ANY(%(listed)s))
            """,
            {"after": after, "until": until, "listed": list(listed)},
        ).fetchall()
    )
    known = {row["s3_key"]: row for row in rows}
    for key, row in known.items():
        if row["state"] != "stored" or row["is_young"]:  # it may have come after it was listed
            continue
        if key not in listed:
            drift.missing += 1
            _tell(drift, f"missing: {key}")
        elif listed[key] != row["bytes"]:
            drift.different += 1
            _tell(drift, f"different: {key} has {listed[key]} bytes, its row says {row['bytes']}")
    for key in listed:
        if key not in known or known[key]["purged"]:
            drift.unknown += 1
            _tell(drift, f"unknown: {key}")


def _compare_counts(drift: Drift) -> None:
    rows = db.run(
        lambda tx: tx.execute(
            """
            SELECT organization_id, coalesce(c.used, 0) AS used, coalesce(o.bytes, 0) AS bytes
            FROM (
                SELECT organization_id, sum(bytes) AS bytes
                FROM storage.objects
                WHERE state IN ('granted', 'stored')
                GROUP BY organization_id
            ) AS o
            FULL JOIN (
                SELECT organization_id, used FROM billing.usage_counters WHERE key = %(key)s
            ) AS c USING (organization_id)
            JOIN tenancy.organizations AS t ON t.id = organization_id AND t.deleted_at IS NULL
            WHERE coalesce(c.used, 0) <> coalesce(o.bytes, 0)
            """,
            {"key": stored_objects.LIMIT},
        ).fetchall()
    )
    for row in rows:
        drift.miscounted += 1
        _tell(
            drift, f"miscounted: {row['organization_id']} has {row['bytes']} bytes, {row['used']} are counted"
        )


def _tell(drift: Drift, what: str) -> None:
    if len(drift.told) < MOST_TOLD:
        drift.told.append(what)
