"""What an organisation's projects come to, and what was done last: one query each."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel

from backplane import db

Period = Literal["24h", "7d", "30d", "90d"]
_HOURS: dict[Period, int] = {"24h": 24, "7d": 7 * 24, "30d": 30 * 24, "90d": 90 * 24}


class Stats(BaseModel):
    total: int  # deleted ones too
    public: int  # deleted ones too
    active: int  # not deleted
    avg_messages: float | None  # of the active ones; null without any
    last_activity: datetime | None
    created: int  # in the period
    changed: int  # in the period, of the active ones


class Activity(BaseModel):
    type: Literal["project"]
    id: UUID
    name: str
    timestamp: datetime


def stats(tx: db.Tx, organization_id: UUID, period: Period) -> Stats:
    row = tx.execute(
        """
        SELECT count(*) AS total,
               count(*) FILTER (WHERE is_public) AS public,
               count(*) FILTER (WHERE deleted_at IS NULL) AS active,
               round(avg(message_count) FILTER (WHERE deleted_at IS NULL), 2)::float8 AS avg_messages,
               max(updated_at) AS last_activity,
               count(*) FILTER (WHERE created_at > since.moment) AS created,
               count(*) FILTER (WHERE updated_at > since.moment AND deleted_at IS NULL) AS changed
        FROM projects.projects
        CROSS JOIN (SELECT statement_timestamp() - make_interval(hours => %(hours)s) AS moment) AS since
        WHERE organization_id = %(organization_id)s
        """,
        {"organization_id": organization_id, "hours": _HOURS[period]},
    ).fetchone()
    return Stats.model_validate(row)


def activity(tx: db.Tx, organization_id: UUID, *, before: UUID | None, limit: int) -> list[Activity]:
    """The latest first: projects as they were made. Ids ascend with time, and an index has them."""
    rows = tx.execute(
        """
        SELECT 'project' AS type, id, title AS name, created_at AS timestamp
        FROM projects.projects
        WHERE organization_id = %(organization_id)s
          AND deleted_at IS NULL
          AND (%(before)s::uuid IS NULL OR id < %(before)s)
        ORDER BY id DESC
        LIMIT %(limit)s
        """,
        {"organization_id": organization_id, "before": before, "limit": limit},
    ).fetchall()
    return [Activity.model_validate(row) for row in rows]
