"""How an organisation's deployments went: how many are in which state, and which part ended well."""

from collections.abc import Mapping
from typing import Final, get_args

from pydantic import BaseModel

from backplane.deployment_reports import TERMINAL, End, Status

# A subquery: {state: count} of %(organization_id)s, NULL without any. Answered from an index.
COUNTS: Final = """
    (
        SELECT jsonb_object_agg(counted.status, counted.deployments)
        FROM (
            SELECT status, count(*) AS deployments
            FROM deploys.deployments
            WHERE organization_id = %(organization_id)s AND deleted_at IS NULL
            GROUP BY status
        ) AS counted
    )
"""
STATES: Final[tuple[Status, ...]] = ("pending", "in_progress", *get_args(End))


class DeploymentStats(BaseModel):
    total: int
    by_status: dict[Status, int]
    success_rate: float | None  # of those that are over, from 0 to 1; null without any


def stats(counts: Mapping[Status, int] | None) -> DeploymentStats:
    """From what COUNTS answers."""
    by_status = {status: (counts or {}).get(status, 0) for status in STATES}
    over = sum(by_status[status] for status in TERMINAL)
    return DeploymentStats(
        total=sum(by_status.values()),
        by_status=by_status,
        success_rate=round(by_status["successful"] / over, 4) if over else None,
    )
