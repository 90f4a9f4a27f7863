"""Deployments for tests, as they are once started, and what stands of them."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from tests.counters import transaction
from tests.databases import Database
from tests.ledgers import new_account, rows

from backplane import deployments
from backplane.deployments import Outcome, Report, Status

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
BUILD = "147a3212-49fd-446f-b4e3-a6519acf264a"


@dataclass(frozen=True)
class Deployed:
    id: UUID
    project_id: UUID
    organization_id: UUID


def deploy(database: Database, *builds: str, organization_id: UUID | None = None, **fields: Any) -> Deployed:
    """A deployment under way with its builds, of a new project that is not counted, where no organisation
    is given in one of its own.
    """
    made = Deployed(uuid4(), uuid4(), organization_id or new_account(database))
    rows(
        database,
        """
        INSERT INTO projects.projects (id, organization_id, kind, title, status)
        VALUES (%s, %s, 'mobile', 'Fitness', 'deploying')
        """,
        made.project_id,
        made.organization_id,
    )
    columns = {
        "id": made.id,
        "organization_id": made.organization_id,
        "project_id": made.project_id,
        "type": "eas-build",
        "platform": "android",
        "provider": "eas",
        "status": "in_progress",
        "project_name": "Fitness",
        "next_poll_at": NOON,
    } | fields
    rows(
        database,
        f"INSERT INTO deploys.deployments ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))})",
        *columns.values(),
    )
    rows(
        database,
        """
        INSERT INTO billing.usage_counters (organization_id, key, period_start, used)
        VALUES (%s, 'app.deployments', '-infinity', 1)
        ON CONFLICT (organization_id, key, period_start) DO UPDATE SET used = usage_counters.used + 1
        """,
        made.organization_id,
    )
    for build in builds:
        rows(
            database,
            """
            INSERT INTO deploys.provider_jobs (organization_id, external_id, deployment_id, kind)
            VALUES (%s, %s, %s, 'build')
            """,
            made.organization_id,
            build,
            made.id,
        )
    return made


def told(status: Status, seconds: float = 0, *, build: str | None = BUILD, **fields: Any) -> Report:
    """What a callback says, so long after noon."""
    at = NOON + timedelta(seconds=seconds)
    return Report(**{"status": status, "occurred_at": at, "external_id": build, "provider": "eas"} | fields)


def tell(database: Database, deployed: Deployed, report: Report) -> Outcome:
    """In a transaction and a connection of its own, so that several can at once."""
    with transaction(database, deployed.organization_id, "backplane_system") as tx:
        return deployments.advance(tx, deployed.id, report)


def stored(database: Database, deployed: Deployed) -> dict[str, Any]:
    return rows(database, "SELECT * FROM deploys.deployments WHERE id = %s", deployed.id)[0]


def project(database: Database, deployed: Deployed) -> dict[str, Any]:
    return rows(database, "SELECT * FROM projects.projects WHERE id = %s", deployed.project_id)[0]


def steps(database: Database, deployed: Deployed) -> list[tuple[str, str]]:
    """(kind, status) of each row of the history."""
    found = rows(
        database,
        "SELECT kind, status FROM deploys.deployment_events WHERE deployment_id = %s ORDER BY id",
        deployed.id,
    )
    return [(row["kind"], row["status"]) for row in found]


def announced(database: Database, event_type: str) -> list[dict[str, Any]]:
    found = rows(database, "SELECT payload FROM platform.outbox WHERE type = %s ORDER BY id", event_type)
    return [row["payload"] for row in found]
