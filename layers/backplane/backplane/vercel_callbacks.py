"""Vercel's callbacks: a deployment from its creation to its end. vercel.com/docs/webhooks/webhooks-api"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import BaseModel, Field, StringConstraints

from backplane import callbacks, inbox, requests
from backplane.callbacks import Address, Error, Name, Text, Told
from backplane.deployment_reports import Report, Status, Urls
from backplane.inbox import Event

# `ready` is built, and its checks begin; `succeeded` comes when those that block are through.
# The others (blocked, rollback, cleanup, check-rerequested …) are recorded without effect.
_STATUSES: Final[Mapping[str, Status]] = {
    "deployment.created": "in_progress",
    "deployment.ready": "in_progress",
    "deployment.succeeded": "successful",
    "deployment.promoted": "successful",
    "deployment.error": "failed",
    "deployment.canceled": "aborted",
}
_COMMITS: Final = ("githubCommitSha", "gitlabCommitSha", "bitbucketCommitSha")


class Deployment(BaseModel):
    id: Name
    host: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.-]{1,253}$")] | None = Field(
        None, alias="url"
    )
    meta: dict[str, Any] | None = None
    error: Error | None = Field(None, alias="errorMessage")

    @property
    def commit(self) -> str | None:
        told = (self.meta or {}).get
        return next((value[:255] for name in _COMMITS if isinstance(value := told(name), str)), None)


class Links(BaseModel):
    deployment: Address | None = None


class Payload(BaseModel):
    deployment: Deployment
    links: Links | None = None
    error: Error | None = Field(None, alias="errorMessage")
    target: Text | None = None


# ---- the envelope ----


def received(integration_id: UUID, body: bytes) -> Event:
    """A verified body as an event. Raises InvalidPayload where it has no envelope to record it by."""
    data, defect = requests.parse_event(body)
    identifier = callbacks.event_id(integration_id, requests.envelope_text(data, "id"))
    return _event(identifier, data, defect, body)


def parse(event_id: str, body: bytes) -> Event:
    """A recorded body as an event. Raises InvalidPayload."""
    data, defect = requests.parse_event(body)
    return _event(event_id, data, defect, body)


def _event(event_id: str, data: dict[str, Any], defect: str | None, body: bytes) -> Event:
    event_type = requests.envelope_text(data, "type")
    told_at = "createdAt", data.get("createdAt")
    return callbacks.event(
        "vercel", event_id, event_type, data, body, defect=defect, told_at=told_at, keep=_kept
    )


def _kept(event_type: str, data: Mapping[str, Any]) -> bytes | None:
    """What the inbox keeps of a body: not who did it, what he wrote, and nothing of kinds without effect."""
    if event_type not in EFFECTS:
        return None
    kept = dict(data)
    if isinstance(payload := data.get("payload"), dict):
        payload = {name: value for name, value in payload.items() if name not in {"user", "team"}}
        if isinstance(deployment := payload.get("deployment"), dict) and isinstance(
            meta := deployment.get("meta"), dict
        ):
            meta = {name: meta[name] for name in _COMMITS if name in meta}
            payload["deployment"] = deployment | {"meta": meta}
        kept["payload"] = payload
    return json.dumps(kept).encode()


# ---- what it tells ----


def told(event: Event) -> Told:
    payload = callbacks.read(Payload, event.data.get("payload"))
    deployment, status = payload.deployment, _STATUSES[event.type]
    report = Report(
        provider="vercel",
        status=status,
        occurred_at=event.occurred_at,
        actor="vercel",
        external_id=deployment.id,
        platform="web",
        urls=Urls(
            web=f"https://{deployment.host}" if deployment.host and status == "successful" else None,
            details=payload.links.deployment if payload.links else None,
        ),
        git_commit=deployment.commit,
        error=payload.error or deployment.error,
    )
    return Told(report, (deployment.id,))


EFFECTS: Final[Mapping[str, inbox.Effect]] = dict.fromkeys(_STATUSES, callbacks.effect("vercel", told))
