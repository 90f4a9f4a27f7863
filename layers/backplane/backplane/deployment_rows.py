"""Deployments as they are stored: held, moved, and every step written down. deployments.py says when."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg.rows import DictRow

from backplane import db, limits, project_status
from backplane.deployment_reports import TERMINAL, EventKind, Outcome, Report, Status, combined, judge

LIMIT: Final = "app.deployments"  # counts what is under way and what succeeded, until it is deleted

# Of a deployment's row: how long silence is nothing to worry about. Builds take minutes and may queue; who
# deploys by hand may take days.
PATIENCE: Final = """
    CASE type WHEN 'manual' THEN interval '7 days'
              WHEN 'web' THEN interval '15 minutes'
              ELSE interval '30 minutes' END
"""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a step must know of the row it is about to change, which it has locked."""

    id: UUID
    organization_id: UUID
    project_id: UUID
    status: Status
    stale_at: datetime | None


def lock(tx: db.Tx, deployment_id: UUID, *, counts: bool = False) -> Deployment | None:
    """The deployment, its project and, where the step may end it badly, its organisation's count held
    until the transaction ends. None where it is not there.
    """
    found = tx.execute(
        "SELECT organization_id, project_id FROM deploys.deployments WHERE id = %s", [deployment_id]
    ).fetchone()
    if found is None:
        return None
    if counts:
        limits.give_back(tx, found["organization_id"], LIMIT, 0)  # only its lock
    project_status.lock(tx, found["project_id"])
    row = tx.execute(
        """
        SELECT id, organization_id, project_id, status, stale_at
        FROM deploys.deployments
        WHERE id = %s
        FOR NO KEY UPDATE
        """,
        [deployment_id],
    ).fetchone()
    return None if row is None else Deployment(**row)


def move_job(tx: db.Tx, deployment: Deployment, report: Report) -> Outcome:
    """A job that was not named before is one from now on."""
    values = {
        "organization_id": deployment.organization_id,
        "deployment_id": deployment.id,
        "external_id": report.external_id,
        "kind": report.job,
        "platform": report.platform,
        "status": report.status,
        "told_at": report.occurred_at,
        "details_url": report.urls.details,
        "error": report.error,
    }
    job = _named(tx, values)
    if job is None or job["deployment_id"] != deployment.id:
        return "unknown"
    outcome = judge(job["status"], job["told_at"], report.status, report.occurred_at)
    if outcome == "applied":
        tx.execute(
            """
            UPDATE deploys.provider_jobs
            SET status = %(status)s::deploys.status,
                told_at = %(told_at)s,
                platform = coalesce(platform, %(platform)s),
                details_url = coalesce(%(details_url)s, details_url),
                error = %(error)s
            WHERE organization_id = %(organization_id)s AND external_id = %(external_id)s
            """,
            values,
        )
    return outcome


def _named(tx: db.Tx, values: Mapping[str, Any]) -> DictRow | None:
    """The job of this name, which may be another deployment's; from now on where there was none."""
    tx.execute(
        """
        INSERT INTO deploys.provider_jobs (organization_id, external_id, deployment_id, kind, platform)
        VALUES (%(organization_id)s, %(external_id)s, %(deployment_id)s, %(kind)s, %(platform)s)
        ON CONFLICT (organization_id, external_id) DO NOTHING
        """,
        values,
    )
    return tx.execute(
        """
        SELECT deployment_id, status, told_at
        FROM deploys.provider_jobs
        WHERE organization_id = %(organization_id)s AND external_id = %(external_id)s
        """,
        values,
    ).fetchone()


def public_url(tx: db.Tx, deployment: Deployment) -> str | None:
    """Where the world finds it; None where it is not the world's."""
    row = tx.execute(
        "SELECT web_url FROM deploys.deployments WHERE id = %s AND environment = 'production'",
        [deployment.id],
    ).fetchone()
    return None if row is None else row["web_url"]


def status_of_jobs(tx: db.Tx, deployment: Deployment) -> Status:
    rows = tx.execute(
        """
        SELECT status
        FROM deploys.provider_jobs
        WHERE organization_id = %s AND deployment_id = %s AND kind = 'build'
        """,
        [deployment.organization_id, deployment.id],
    ).fetchall()
    return combined([row["status"] for row in rows], deployment.status)


def _facts(report: Report) -> dict[str, str | None]:
    """What a report says beside the state, by column."""
    return {
        "web_url": report.urls.web,
        "android_build_url": report.urls.android,
        "ios_build_url": report.urls.ios,
        "application_archive_url": report.urls.archive,
        "build_details_url": report.urls.details,
        "logs_url": report.urls.logs,
        "app_version": report.app_version,
        "build_number": report.build_number,
        "git_commit": report.git_commit,
        "build_log": report.build_log,
        "error_log": report.error,
    }


def store(tx: db.Tx, deployment: Deployment, status: Status, report: Report) -> None:
    """What is told replaces what was. News that came by themselves put off the next poll."""
    facts = _facts(report)
    assignments = ", ".join(f"{name} = coalesce(%({name})s, {name})" for name in facts)
    tx.execute(
        f"""
        UPDATE deploys.deployments
        SET {assignments},
            status = %(status)s::deploys.status,
            provider = coalesce(provider, %(provider)s),
            started_at = CASE WHEN %(status)s::deploys.status IN ('pending', 'aborted') THEN started_at
                              ELSE coalesce(started_at, clock_timestamp()) END,
            finished_at = CASE WHEN %(over)s THEN clock_timestamp() END,
            deployed_at = CASE WHEN %(status)s::deploys.status = 'successful' THEN clock_timestamp() END,
            next_poll_at = CASE WHEN %(over)s THEN NULL
                                WHEN %(by_itself)s THEN clock_timestamp() + {PATIENCE}
                                ELSE next_poll_at END,
            polls = CASE WHEN %(by_itself)s THEN 0 ELSE polls END,
            unheard = 0,
            stale_at = NULL,
            stale_reason = NULL
        WHERE id = %(id)s
        """.encode(),
        {
            **facts,
            "id": deployment.id,
            "status": status,
            "provider": report.provider,
            "over": status in TERMINAL,
            "by_itself": report.source != "poll",
        },
    )


def add(tx: db.Tx, deployment: Deployment, report: Report) -> bool:
    """Fills in what of an end is not known yet: a poll may tell of it before the callback that says more."""
    facts = {name: value for name, value in _facts(report).items() if value is not None}
    if not facts:
        return False
    assignments = ", ".join(f"{name} = coalesce({name}, %({name})s)" for name in facts)
    missing = ", ".join(facts)
    return bool(
        tx.execute(
            f"""
            UPDATE deploys.deployments
            SET {assignments}
            WHERE id = %(id)s AND num_nulls({missing}) > 0
            """.encode(),
            {**facts, "id": deployment.id},
        ).rowcount
    )


def record(
    tx: db.Tx,
    deployment: Deployment,
    kind: EventKind,
    status: Status,
    report: Report,
    *,
    detail: str | None = None,
) -> None:
    """A row of the history."""
    tx.execute(
        """
        INSERT INTO deploys.deployment_events
            (organization_id, deployment_id, kind, status, source, actor, external_id, detail, occurred_at)
        VALUES
            (%(organization_id)s, %(deployment_id)s, %(kind)s, %(status)s, %(source)s, %(actor)s,
             %(external_id)s, %(detail)s, coalesce(%(occurred_at)s, clock_timestamp()))
        """,
        {
            "organization_id": deployment.organization_id,
            "deployment_id": deployment.id,
            "kind": kind,
            "status": status,
            "source": report.source,
            "actor": report.actor,
            "external_id": report.external_id,
            "detail": detail,
            "occurred_at": report.occurred_at,
        },
    )
