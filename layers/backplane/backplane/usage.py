"""Usage: what credits were spent on, and when, summed from the ledger's entries."""

from datetime import date, datetime, timedelta
from uuid import UUID

from pydantic import BaseModel, Field

from backplane import db
from backplane.problems import NotFound


class OperationUsage(BaseModel):
    operation: str
    credits: int
    count: int


class DayUsage(BaseModel):
    day: date
    credits: int


class Usage(BaseModel):
    from_: datetime = Field(serialization_alias="from")
    to: datetime
    by_operation: list[OperationUsage]
    by_day: list[DayUsage]


def usage(tx: db.Tx, organization_id: UUID, *, days: int) -> Usage:
    """Credits used in the last `days` times 24 hours, by operation (most first) and by day of the
    organisation's timezone (oldest first), less what was refunded in that time, on the day of the
    refund. `count` is of what was debited and settled. One statement, so that both add up to the same.
    """
    rows = tx.execute(
        """
        WITH span AS MATERIALIZED (
            -- Both ends are columns: a subtraction where they are compared would stand behind the row-level
            -- security of entries, and the index would be read from the first entry on.
            SELECT now.at - %(length)s AS since, now.at AS until, o.timezone
            FROM tenancy.organizations AS o
            CROSS JOIN (SELECT clock_timestamp() AS at) AS now
            WHERE o.id = %(organization_id)s
        ), used AS (
            SELECT e.operation, (e.created_at AT TIME ZONE span.timezone)::date AS day, e.kind,
                   -e.amount AS credits
            FROM span
            JOIN credits.entries AS e ON e.created_at BETWEEN span.since AND span.until
            WHERE e.organization_id = %(organization_id)s
              AND e.operation IS NOT NULL
              AND e.kind IN ('debit', 'settle', 'refund')
        )
        SELECT span.until, used.operation, used.day, used.credits, used.count
        FROM span
        LEFT JOIN (
            SELECT operation, day, sum(credits)::bigint AS credits,
                   count(*) FILTER (WHERE kind <> 'refund') AS count
            FROM used
            GROUP BY GROUPING SETS ((operation), (day))
        ) AS used ON true
        ORDER BY used.day, used.credits DESC, used.operation
        """,
        {"organization_id": organization_id, "length": timedelta(days=days)},
    ).fetchall()
    if not rows:
        raise NotFound("This organisation does not exist any more.")
    until: datetime = rows[0]["until"]
    return Usage(
        from_=until - timedelta(days=days),
        to=until,
        by_operation=[OperationUsage.model_validate(row) for row in rows if row["operation"] is not None],
        by_day=[DayUsage.model_validate(row) for row in rows if row["day"] is not None],
    )
