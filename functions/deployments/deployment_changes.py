"""What callers do with deployments: begin one, say what its provider calls it, end it by hand, delete it.

Locks: what callbacks wait for, then as backplane.deployments has them.
"""

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

import deployment_views
from deployment_requests import Build, Completion, NewDeployment, provider_by, provider_of
from psycopg.types.json import Jsonb

from backplane import (
    artifacts,
    db,
    deployment_rows,
    deployments,
    inbox,
    limits,
    project_status,
    stored_objects,
)
from backplane.access import Access
from backplane.auth import Caller
from backplane.deployment_reports import TERMINAL, EventKind
from backplane.deployments import Report, Status, Urls
from backplane.problems import Conflict, InvalidState


def start(tx: db.Tx, found: Access, caller: Caller, new: NewDeployment) -> UUID:
    """Raises NotFound (the project is deleted), PlanLimitReached, Conflict (the id is another one's)."""
    builds = [] if new.external_id is None else [Build(external_id=new.external_id)]
    _lock_subjects(tx, found.organization_id, builds)
    limits.take(tx, found.organization_id, deployment_rows.LIMIT)
    deployment_id = project_status.lock(tx, found.project_id, live=True)
    # By hand somebody is at it already; else somebody is once there is something to call it by.
    status: Status = "in_progress" if builds or new.type == "manual" else "pending"
    tx.execute(
        f"""
        INSERT INTO deploys.deployments
            (id, organization_id, project_id, created_by, type, platform, provider, environment, status,
             config, project_name, app_version, started_at, next_poll_at)
        SELECT %(id)s, organization_id, id, %(created_by)s, new.type, %(platform)s, %(provider)s,
               %(environment)s, %(status)s, %(config)s, title, %(app_version)s,
               CASE WHEN %(under_way)s THEN clock_timestamp() END,
               clock_timestamp() + {deployment_rows.PATIENCE}
        FROM projects.projects
        CROSS JOIN (SELECT %(type)s::deploys.type AS type) AS new
        WHERE id = %(project_id)s
        """.encode(),
        {
            "id": deployment_id,
            "project_id": found.project_id,
            "created_by": caller.user_id,
            "type": new.type,
            "platform": new.platform,
            "provider": provider_of(new),
            "environment": new.environment,
            "status": status,
            "under_way": status == "in_progress",
            "config": Jsonb(new.config),
            "app_version": new.app_version,
        },
    )
    deployment = _held(tx, deployment_id)
    _name(tx, deployment, builds)
    report = _by(caller, status, "started", external_id=new.external_id)
    deployment_rows.record(tx, deployment, "started", status, report)
    project_status.deploying(tx, found.project_id)
    deployments.announce(tx, "deployment.started", deployment, status)
    return deployment_id


def link(tx: db.Tx, found: Access, caller: Caller, deployment_id: UUID, builds: Sequence[Build]) -> None:
    """Says what a provider calls a deployment's builds; a repetition changes nothing. Raises NotFound,
    InvalidState (it is over), Conflict (an id is another one's).
    """
    _lock_subjects(tx, found.organization_id, builds)
    deployment = _held(tx, deployment_id)
    if deployment.status in TERMINAL:
        raise _over(deployment.status)
    _name(tx, deployment, builds)
    report = _by(caller, "in_progress", "linked")
    deployments.advance(tx, deployment_id, replace(report, provider=provider_by(builds[0].external_id)))
    deployments.announce(tx, "deployment.started", deployment, "in_progress")


def cancel(tx: db.Tx, caller: Caller, deployment_id: UUID) -> None:
    """What the provider does moves nothing here any more. Raises NotFound, InvalidState."""
    _end(tx, deployment_id, _by(caller, "aborted", "canceled"))


def complete(tx: db.Tx, caller: Caller, deployment_id: UUID, told: Completion) -> None:
    """Raises NotFound, InvalidState (it ended otherwise)."""
    report = Report(
        status=told.status,
        source="user",
        kind="completed",
        actor=caller.actor,
        urls=Urls(
            android=told.android_build_url,
            ios=told.ios_build_url,
            web=told.web_url,
            archive=told.application_archive_url,
            details=told.build_details_url,
            logs=told.logs_url,
        ),
        app_version=told.app_version,
        build_number=told.build_number,
        git_commit=told.git_commit,
        build_log=told.build_log,
        error=told.error_log,
    )
    _end(tx, deployment_id, report)


def delete(tx: db.Tx, caller: Caller, deployment_id: UUID) -> None:
    """Only of our lists: what is deployed stays where it is. Our copies of its artefacts go. Makes room in
    the plan's limits where it still counted. Raises NotFound, InvalidState (it is under way).
    """
    deployment = _held(tx, deployment_id, counts=True)
    if deployment.status not in TERMINAL:
        raise InvalidState(f"The deployment is {deployment.status}: cancel it before you delete it.")
    deleted = tx.execute(
        """
        UPDATE deploys.deployments
        SET deleted_at = clock_timestamp()
        WHERE id = %s AND deleted_at IS NULL
        """,
        [deployment_id],
    ).rowcount
    if not deleted:  # by another request, a moment ago
        raise deployment_views.missing()
    if deployment.status == "successful":
        limits.give_back(tx, deployment.organization_id, deployment_rows.LIMIT)
    for object_id in artifacts.stored(tx, deployment_id):
        stored_objects.release(tx, object_id, of="stored")
    status = deployment.status
    deployment_rows.record(tx, deployment, "deleted", status, _by(caller, status, "deleted"))


# ---- the parts ----


def _by(caller: Caller, status: Status, kind: EventKind, external_id: str | None = None) -> Report:
    return Report(status=status, source="user", kind=kind, actor=caller.actor, external_id=external_id)


def _end(tx: db.Tx, deployment_id: UUID, report: Report) -> None:
    """Saying the same again adds what is missing, and else changes nothing."""
    deployment = _held(tx, deployment_id, counts=True)
    if deployments.advance(tx, deployment_id, report) == "terminal" and deployment.status != report.status:
        raise _over(deployment.status)


def _held(tx: db.Tx, deployment_id: UUID, *, counts: bool = False) -> deployment_rows.Deployment:
    deployment = deployment_rows.lock(tx, deployment_id, counts=counts)
    if deployment is None:
        raise deployment_views.missing()
    return deployment


def _lock_subjects(tx: db.Tx, organization_id: UUID, builds: Sequence[Build]) -> None:
    """So that a callback which looks for the build now parks before it is named, or finds it named."""
    for external_id in sorted({build.external_id for build in builds}):
        inbox.lock(tx, deployments.subject(organization_id, external_id))


def _name(tx: db.Tx, deployment: deployment_rows.Deployment, builds: Sequence[Build]) -> None:
    for build in builds:
        row = tx.execute(
            """
            INSERT INTO deploys.provider_jobs AS job
                (organization_id, external_id, deployment_id, kind, platform)
            VALUES (%(organization_id)s, %(external_id)s, %(deployment_id)s, 'build', %(platform)s)
            ON CONFLICT (organization_id, external_id) DO UPDATE
            SET platform = coalesce(job.platform, EXCLUDED.platform)
            RETURNING deployment_id
            """,
            {
                "organization_id": deployment.organization_id,
                "external_id": build.external_id,
                "deployment_id": deployment.id,
                "platform": build.platform,
            },
        ).fetchone()
        if row is None or row["deployment_id"] != deployment.id:
            raise Conflict(
                f"{build.external_id} is known already, as a part of another deployment. Each build belongs"
                " to one deployment."
            )


def _over(status: Status) -> InvalidState:
    return InvalidState(f"The deployment is over, and {status}: nothing changes that any more.")
