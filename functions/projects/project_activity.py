"""What an organisation's projects come to, and what was done last: one query each."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel

from backplane import db, deployment_stats

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
    deployments: deployment_stats.DeploymentStats


class Activity(BaseModel):
    type: Literal["project", "deployment"]
    id: UUID
    name: str  # a deployment's is its project's, as that was called then
    timestamp: datetime


def stats(tx: db.Tx, organization_id: UUID, period: Period) -> Stats:
    row = tx.execute(
        f"""
        SELECT count(*) AS total,
               count(*) FILTER (WHERE is_public) AS public,
               count(*) FILTER (WHERE deleted_at IS NULL) AS active,
               round(avg(message_count) FILTER (WHERE deleted_at IS NULL), 2)::float8 AS avg_messages,
               max(updated_at) AS last_activity,
               count(*) FILTER (WHERE created_at > since.moment) AS created,
               count(*) FILTER (WHERE updated_at > since.moment AND deleted_at IS NULL) AS changed,
               {deployment_stats.COUNTS} AS deployments
        FROM projects.projects
        CROSS JOIN (SELECT statement_timestamp() - make_interval(hours => %(hours)s) AS moment) AS since
        WHERE organization_id = %(organization_id)s
        """.encode(),
        {"organization_id": organization_id, "hours": _HOURS[period]},
    ).fetchone()
    if row is None:
        raise RuntimeError("an aggregate answers one row")
    return Stats.model_validate({**row, "deployments": deployment_stats.stats(row["deployments"])})


def activity(tx: db.Tx, organization_id: UUID, *, before: UUID | None, limit: int) -> list[Activity]:
    """The latest first: projects as they were made, deployments as they began. Ids ascend with time, in
    both alike, and an index of each has them.
    """
    rows = tx.execute(
        """
        (
            SELECT 'project' AS type, id, title AS name, created_at AS timestamp
            FROM projects.projects
            WHERE organization_id = %(organization_id)s
              AND deleted_at IS NULL
              AND (%(before)s::uuid IS NULL OR id < %(before)s)
            ORDER BY id DESC
            LIMIT %(limit)s
        )
        UNION ALL
        (
            SELECT 'deployment', id, project_name, created_at
            FROM deploys.deployments
            WHERE organization_id = %(organization_id)s
              AND deleted_at IS NULL
              AND (%(before)s::uuid IS NULL OR id < %(before)s)
            ORDER BY id DESC
            LIMIT %(limit)s
        )
        ORDER BY id DESC
        LIMIT %(limit)s
        """,
        {"organization_id": organization_id, "before": before, "limit": limit},
    ).fetchall()
    return [Activity.model_validate(row) for row in rows]
