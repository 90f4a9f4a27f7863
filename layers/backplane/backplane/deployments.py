"""Deployments: the state machine that callbacks, polls and people move, and what follows from its steps.

A deployment is pending, then in progress, and ends successful, failed or aborted, once. At its provider it
is one job or several (a build a platform); it ends when the last of its builds does, and a submission to a
store is recorded beside them. docs/deployments.md draws it.

Locks are taken in one order everywhere: the organisation's counts, the project, the deployment.
"""

from typing import Final
from uuid import UUID

from backplane import artifacts, db, deployment_rows, inbox, limits, outbox, project_status
from backplane.deployment_reports import TERMINAL, Outcome, Provider, Report, Status, Urls, judge
from backplane.deployment_rows import LIMIT, Deployment

__all__ = [
    "Outcome",
    "Provider",
    "Report",
    "Status",
    "Urls",
    "advance",
    "announce",
    "find",
    "subject",
    "subjects",
]

GIVEN_BACK: Final = frozenset({"failed", "aborted"})  # ends that count against no limit


def subject(organization_id: UUID, external_id: str) -> str:
    """The name under which callbacks wait in the inbox for the deployment that a job belongs to."""
    return f"deployment.job:{organization_id}:{external_id}"


def subjects(tx: db.Tx, deployment_id: UUID) -> list[str]:
    """All names under which callbacks may wait for a deployment."""
    rows = tx.execute(
        "SELECT organization_id, external_id FROM deploys.provider_jobs WHERE deployment_id = %s",
        [deployment_id],
    ).fetchall()
    return [subject(row["organization_id"], row["external_id"]) for row in rows]


def find(tx: db.Tx, organization_id: UUID, provider: Provider, external_id: str) -> UUID | None:
    """The deployment of a provider's job; None where nobody has named it yet. Locks the subject, so that a
    callback that parks for it does so before it is named, and is replayed then.
    """
    inbox.lock(tx, subject(organization_id, external_id))
    row = tx.execute(
        """
        SELECT d.id
        FROM deploys.provider_jobs AS j
        JOIN deploys.deployments AS d ON d.id = j.deployment_id
        WHERE j.organization_id = %(organization_id)s
          AND j.external_id = %(external_id)s
          AND (d.provider = %(provider)s OR d.provider IS NULL)
        """,
        {"organization_id": organization_id, "provider": provider, "external_id": external_id},
    ).fetchone()
    return None if row is None else row["id"]


def advance(tx: db.Tx, deployment_id: UUID, report: Report) -> Outcome:
    """Applies what was told, once and in whatever order it came.

    applied: something changed, and the history says what. stale: something newer stands. terminal: it is
    over, and the report adds nothing. unknown: there is no such deployment, or the job is another one's.
    """
    deployment = deployment_rows.lock(tx, deployment_id, counts=report.status in TERMINAL)
    if deployment is None:
        return "unknown"
    outcome, status = _judged(tx, deployment, report)
    if outcome != "applied":
        return outcome
    if deployment.status not in TERMINAL and not _of_a_submission(report):
        deployment_rows.store(tx, deployment, status, report)
    deployment_rows.record(tx, deployment, report.kind, status, report, detail=report.error)
    artifacts.offer(tx, deployment.id, report)
    if status != deployment.status:
        _follow(tx, deployment, status)
    return outcome


def _judged(tx: db.Tx, deployment: Deployment, report: Report) -> tuple[Outcome, Status]:
    """What becomes of a report, and the deployment's state with it."""
    over = deployment.status in TERMINAL
    if _of_a_submission(report):
        return deployment_rows.move_job(tx, deployment, report), deployment.status
    if over:
        adds = report.status == deployment.status and deployment_rows.add(tx, deployment, report)
        return "applied" if adds else "terminal", deployment.status
    if report.external_id is None:
        return judge(deployment.status, None, report.status, report.occurred_at), report.status
    outcome = deployment_rows.move_job(tx, deployment, report)
    return outcome, deployment_rows.status_of_jobs(tx, deployment)


def _of_a_submission(report: Report) -> bool:
    """It is recorded beside the builds, whose end is the deployment's."""
    return report.job == "submission" and report.external_id is not None


def _follow(tx: db.Tx, deployment: Deployment, status: Status) -> None:
    """What a new state does elsewhere."""
    if status in GIVEN_BACK:
        limits.give_back(tx, deployment.organization_id, LIMIT)
    if status in TERMINAL:
        url = deployment_rows.public_url(tx, deployment) if status == "successful" else None
        project_status.deployed(tx, deployment.project_id, status, url)
    announce(tx, "deployment.changed", deployment, status)


def announce(tx: db.Tx, event_type: str, deployment: Deployment, status: Status) -> None:
    outbox.append(
        tx,
        event_type,
        organization_id=deployment.organization_id,
        payload={
            "deployment_id": str(deployment.id),
            "project_id": str(deployment.project_id),
            "status": status,
        },
    )
