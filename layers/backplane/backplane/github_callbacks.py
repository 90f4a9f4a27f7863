"""GitHub's callbacks: the statuses of deployments. docs.github.com/webhooks/webhook-events-and-payloads

The delivery's id is a header and the body does not name its kind, so it is told by its fields. Kinds other
than `deployment_status` are recorded without effect.
"""

import json
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, Field

from backplane import callbacks, inbox, requests
from backplane.callbacks import Address, Error, Text, Told
from backplane.deployment_reports import Report, Status, Urls
from backplane.inbox import Event
from backplane.problems import InvalidPayload

# `inactive` says that a later deployment took its place, which ends nothing.
STATUSES: Final[Mapping[str, Status]] = {
    "pending": "pending",
    "queued": "pending",
    "waiting": "pending",
    "in_progress": "in_progress",
    "success": "successful",
    "failure": "failed",
    "error": "failed",
}
_KINDS: Final = ("deployment_status", "deployment", "hook")  # `hook`: a ping
_KEPT: Final = {
    "deployment_status": (
        "id", "state", "description", "environment_url", "log_url", "target_url", "created_at", "updated_at"
    ),
    "deployment": ("id", "sha", "environment"),
    "workflow_run": ("html_url",),
}  # fmt: skip


class DeploymentStatus(BaseModel):
    description: Error | None = None
    web: Address | None = Field(None, alias="environment_url")
    logs: Address | None = Field(None, alias="log_url")
    target: Address | None = Field(None, alias="target_url")


class Deployment(BaseModel):
    id: int = Field(strict=True, gt=0, lt=2**63)
    sha: Text | None = None


class WorkflowRun(BaseModel):
    page: Address | None = Field(None, alias="html_url")


class Body(BaseModel):
    status: DeploymentStatus = Field(alias="deployment_status")
    deployment: Deployment
    run: WorkflowRun | None = Field(None, alias="workflow_run")


# ---- the envelope ----


def received(integration_id: UUID, delivery: str, body: bytes) -> Event:
    """A verified body as an event, by its delivery's id. Raises InvalidPayload."""
    return parse(callbacks.event_id(integration_id, delivery), body)


def parse(event_id: str, body: bytes) -> Event:
    """A recorded body as an event. Raises InvalidPayload."""
    data, defect = requests.parse_event(body)
    event_type = _type(data)
    told_at = None
    if event_type in EFFECTS:
        status = data["deployment_status"]
        told_at = "deployment_status.updated_at", status.get("updated_at") or status.get("created_at")
    return callbacks.event(
        "github", event_id, event_type, data, body, defect=defect, told_at=told_at, keep=_kept
    )


def _type(data: Mapping[str, Any]) -> str:
    kind = next((kind for kind in _KINDS if kind in data), "other")
    if kind == "hook":
        return "ping"
    if kind != "deployment_status":
        return kind
    if not isinstance(data[kind], dict):
        raise InvalidPayload("deployment_status is not an object.")
    return f"deployment_status.{requests.envelope_text(data[kind], 'state')}"


def _kept(event_type: str, data: Mapping[str, Any]) -> bytes | None:
    """What the inbox keeps of a body: not whose repository it is and who pushed to it."""
    if event_type not in EFFECTS:
        return None
    kept = {}
    for part, names in _KEPT.items():
        if isinstance(told := data.get(part), dict):
            kept[part] = {name: told[name] for name in names if name in told}
    return json.dumps(kept).encode()


# ---- what it tells ----


def told(event: Event) -> Told:
    # GitHub sends "" for addresses that were not given.
    body = callbacks.read(Body, _without_blanks(event.data))
    status = STATUSES[event.type.partition(".")[2]]
    report = Report(
        provider="github",
        status=status,
        occurred_at=event.occurred_at,
        actor="github",
        external_id=str(body.deployment.id),
        urls=Urls(
            web=body.status.web if status == "successful" else None,
            details=body.run.page if body.run else None,
            logs=body.status.logs or body.status.target,
        ),
        git_commit=body.deployment.sha,
        error=body.status.description if status == "failed" else None,
    )
    return Told(report, (str(body.deployment.id),))


def _without_blanks(data: Mapping[str, Any]) -> dict[str, Any]:
    status = data["deployment_status"]
    return {**data, "deployment_status": {name: value for name, value in status.items() if value != ""}}


EFFECTS: Final[Mapping[str, inbox.Effect]] = {
    f"deployment_status.{state}": callbacks.effect("github", told) for state in STATUSES
}
