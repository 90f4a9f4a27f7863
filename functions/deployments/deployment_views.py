"""Deployments as callers see them: one with its history, and lists in parts, newest first."""

from datetime import datetime
from typing import Any
from uuid import UUID

from deployment_requests import Kind
from pydantic import BaseModel

from backplane import buckets, db
from backplane.artifacts import Kind as ArtifactKind
from backplane.artifacts import State as ArtifactState
from backplane.deployment_reports import EventKind, JobKind, Platform, Provider, Source, Status
from backplane.generations import Person
from backplane.problems import NotFound

MAX_EVENTS = 200  # of the history, the newest


class Deployment(BaseModel):
    id: UUID
    project_id: UUID
    project_name: str  # as it was called when this began
    user: Person | None  # null where a key started it
    type: Kind
    platform: Platform
    provider: Provider | None
    environment: str
    status: Status
    app_version: str | None
    build_number: str | None
    git_commit: str | None
    web_url: str | None
    android_build_url: str | None
    ios_build_url: str | None
    application_archive_url: str | None
    build_details_url: str | None
    logs_url: str | None
    stale_at: datetime | None  # since then nobody knows what has become of it, and stale_reason says why
    stale_reason: str | None
    started_at: datetime | None
    deployed_at: datetime | None
    finished_at: datetime | None
    created_at: datetime
    updated_at: datetime


class Job(BaseModel):
    """What runs at the provider: a build, or what is submitted to a store."""

    external_id: str
    kind: JobKind
    platform: Platform | None
    status: Status
    details_url: str | None
    error: str | None
    created_at: datetime


class Event(BaseModel):
    id: UUID
    kind: EventKind
    status: Status  # the deployment's after it
    source: Source
    actor: str
    external_id: str | None
    detail: str | None
    occurred_at: datetime  # on the clock of who told of it
    created_at: datetime


class Artifact(BaseModel):
    """What a build left, and our copy of it: the provider takes its own away after a while."""

    id: UUID
    kind: ArtifactKind
    state: ArtifactState
    error: str | None  # why it is not copied, yet or at all
    bytes: int | None
    sha256: str | None
    expires_at: datetime | None  # at the provider
    copied_at: datetime | None
    download_url: str | None  # of the copy, for a quarter of an hour


class DeploymentDetails(Deployment):
    config: dict[str, Any]
    build_log: str | None
    error_log: str | None
    builds: list[Job]
    artifacts: list[Artifact]
    events: list[Event]  # oldest first


_COLUMNS = """
    d.id, d.project_id, d.project_name, d.type, d.platform, d.provider, d.environment, d.status,
    d.app_version, d.build_number, d.git_commit, d.web_url, d.android_build_url, d.ios_build_url,
    d.application_archive_url, d.build_details_url, d.logs_url, d.stale_at, d.stale_reason, d.started_at,
    d.deployed_at, d.finished_at, d.created_at, d.updated_at,
    CASE WHEN d.created_by IS NOT NULL THEN jsonb_build_object(
        'id', d.created_by, 'email', u.email,
        'name', nullif(trim(concat_ws(' ', u.first_name, u.last_name)), '')) END AS user
"""
_FROM = """
    FROM deploys.deployments AS d
    LEFT JOIN identity.users AS u ON u.id = d.created_by
"""


def project_of(tx: db.Tx, deployment_id: UUID) -> UUID:
    """The project of a deployment that the caller's organisation has, or that is shared with him."""
    row = tx.execute(
        "SELECT project_id FROM deploys.deployments WHERE id = %s AND deleted_at IS NULL", [deployment_id]
    ).fetchone()
    if row is None:
        raise missing()
    project_id: UUID = row["project_id"]
    return project_id


def read(tx: db.Tx, deployment_id: UUID) -> DeploymentDetails:
    """Raises NotFound."""
    row = tx.execute(
        f"""
        SELECT {_COLUMNS}, d.config, d.build_log, d.error_log
        {_FROM}
        WHERE d.id = %s AND d.deleted_at IS NULL
        """.encode(),
        [deployment_id],
    ).fetchone()
    if row is None:
        raise missing()
    builds = tx.execute(
        """
        SELECT external_id, kind, platform, status, details_url, error, created_at
        FROM deploys.provider_jobs
        WHERE deployment_id = %s
        ORDER BY created_at, external_id
        """,
        [deployment_id],
    ).fetchall()
    events = tx.execute(
        """
        SELECT id, kind, status, source, actor, external_id, detail, occurred_at, created_at
        FROM deploys.deployment_events
        WHERE deployment_id = %s
        ORDER BY id DESC
        LIMIT %s
        """,
        [deployment_id, MAX_EVENTS],
    ).fetchall()
    return DeploymentDetails.model_validate(
        {**row, "builds": builds, "artifacts": _artifacts(tx, deployment_id), "events": events[::-1]}
    )


def _artifacts(tx: db.Tx, deployment_id: UUID) -> list[Artifact]:
    rows = tx.execute(
        """
        SELECT a.id, a.kind, a.state, a.error, a.bytes, a.sha256, a.expires_at, a.copied_at,
               o.s3_key, o.s3_version, o.name
        FROM deploys.artifacts AS a
        LEFT JOIN storage.objects AS o ON o.id = a.object_id AND o.state = 'stored'
        WHERE a.deployment_id = %s
        ORDER BY a.kind
        """,
        [deployment_id],
    ).fetchall()
    return [
        Artifact.model_validate(
            {
                **row,
                "download_url": row["s3_key"]
                and buckets.download_url(row["s3_key"], row["s3_version"], row["name"]),
            }
        )
        for row in rows
    ]


def newest(
    tx: db.Tx,
    organization_id: UUID,
    *,
    project_id: UUID | None = None,
    status: Status | None = None,
    before: UUID | None,
    limit: int,
) -> list[Deployment]:
    """Of an organisation, or of one of its projects. Ids ascend with time, so they are order and cursor."""
    wanted = {"d.project_id = %(project_id)s": project_id, "d.status = %(status)s": status}
    conditions = "".join(f" AND {condition}" for condition, value in wanted.items() if value is not None)
    rows = tx.execute(
        f"""
        SELECT {_COLUMNS}
        {_FROM}
        WHERE d.organization_id = %(organization_id)s
          AND d.deleted_at IS NULL
          {conditions}
          AND (%(before)s::uuid IS NULL OR d.id < %(before)s)
        ORDER BY d.id DESC
        LIMIT %(limit)s
        """.encode(),
        {
            "organization_id": organization_id,
            "project_id": project_id,
            "status": status,
            "before": before,
            "limit": limit,
        },
    ).fetchall()
    return [Deployment.model_validate(row) for row in rows]


def missing() -> NotFound:
    return NotFound("There is no such deployment. GET /v1/deployments lists those there are.")
