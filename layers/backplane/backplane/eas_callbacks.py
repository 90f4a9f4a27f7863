"""Expo's callbacks: builds and submissions that are over. docs.expo.dev/eas/webhooks

They carry neither an id nor a kind of their own. A build is told from a submission by its fields, and a
delivery from the next by what it is about: id, status and the time of the change.
"""

import json
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, Field

from backplane import callbacks, inbox, requests
from backplane.callbacks import Address, Error, Moment, Name, Text, Told
from backplane.deployment_reports import Platform, Report, Status, Urls
from backplane.inbox import Event

# As EAS calls them, hyphens for underscores and in lower case; it sends only the last three.
STATUSES: Final[Mapping[str, Status]] = {
    "new": "pending",
    "in-queue": "pending",
    "awaiting-build": "pending",
    "in-progress": "in_progress",
    "pending-cancel": "in_progress",
    "finished": "successful",
    "errored": "failed",
    "canceled": "aborted",
}
_OF_BUILDS: Final = frozenset({"buildDetailsPageUrl", "artifacts"})
_OF_SUBMISSIONS: Final = frozenset(
    {"submissionDetailsPageUrl", "submissionInfo", "turtleBuildId", "archiveUrl"}
)
# The rest says who did it, on which machine and what he wrote about it.
_KEPT: Final = (
    "id",
    "status",
    "platform",
    "createdAt",
    "updatedAt",
    "completedAt",
    "expirationDate",
    "error",
)
_KEPT_OF_METADATA: Final = ("appVersion", "appBuildVersion", "buildProfile", "gitCommitHash")


class Failure(BaseModel):
    message: Error | None = None
    code: Text | None = Field(None, alias="errorCode")

    @property
    def told(self) -> str | None:
        return ": ".join(part for part in (self.code, self.message) if part) or None


class Artifacts(BaseModel):
    build: Address | None = Field(None, alias="buildUrl")
    archive: Address | None = Field(None, alias="applicationArchiveUrl")
    xcode_logs: Address | None = Field(None, alias="xcodeBuildLogsUrl")


class Metadata(BaseModel):
    version: Text | None = Field(None, alias="appVersion")
    build_number: Text | int | None = Field(None, alias="appBuildVersion")
    commit: Text | None = Field(None, alias="gitCommitHash")


class Build(BaseModel):
    id: Name
    platform: Text | None = None
    details: Address | None = Field(None, alias="buildDetailsPageUrl")
    artifacts: Artifacts | None = None
    metadata: Metadata | None = None
    error: Failure | None = None
    expires_at: Moment | None = Field(None, alias="expirationDate")


class SubmissionInfo(BaseModel):
    error: Failure | None = None
    logs: Address | None = Field(None, alias="logsUrl")


class Submission(BaseModel):
    id: Name
    platform: Text | None = None
    details: Address | None = Field(None, alias="submissionDetailsPageUrl")
    build_id: Name | None = Field(None, alias="turtleBuildId")
    info: SubmissionInfo | None = Field(None, alias="submissionInfo")


_NO_ARTIFACTS: Final = Artifacts.model_validate({})
_NO_METADATA: Final = Metadata.model_validate({})
_NO_INFO: Final = SubmissionInfo.model_validate({})


# ---- the envelope ----


def received(integration_id: UUID, body: bytes) -> Event:
    """A verified body as an event. Raises InvalidPayload where it has no envelope to record it by."""
    data, defect = requests.parse_event(body)
    at = next((data[name] for name in ("updatedAt", "completedAt") if data.get(name) is not None), "")
    status = requests.envelope_text(data, "status")
    parts = (requests.envelope_text(data, "id"), status, at if isinstance(at, str) else json.dumps(at))
    return _event(callbacks.event_id(integration_id, _kind(data), *parts), data, defect, body)


def parse(event_id: str, body: bytes) -> Event:
    """A recorded body as an event. Raises InvalidPayload."""
    data, defect = requests.parse_event(body)
    return _event(event_id, data, defect, body)


def _event(event_id: str, data: dict[str, Any], defect: str | None, body: bytes) -> Event:
    event_type = f"{_kind(data)}.{requests.envelope_text(data, 'status').lower().replace('_', '-')}"
    times = ("updatedAt", "completedAt", "createdAt")
    told_at = next(((name, data[name]) for name in times if data.get(name) is not None), None)
    return callbacks.event(
        "eas", event_id, event_type, data, body, defect=defect, told_at=told_at, keep=_kept
    )


def _kind(data: Mapping[str, Any]) -> str:
    if data.keys() & _OF_BUILDS or not data.keys() & _OF_SUBMISSIONS:
        return "build"
    return "submission"


def _kept(event_type: str, data: Mapping[str, Any]) -> bytes | None:
    """What the inbox keeps of a body: what is read of it, and nothing of kinds without effect."""
    if event_type not in EFFECTS:
        return None
    kept = {name: data[name] for name in (*_KEPT, *_OF_BUILDS, *_OF_SUBMISSIONS) if name in data}
    metadata = data.get("metadata")
    if isinstance(metadata, dict):
        metadata = {name: metadata[name] for name in _KEPT_OF_METADATA if name in metadata}
    return json.dumps(kept | {"metadata": metadata}).encode()


# ---- what it tells ----


def build_told(event: Event) -> Told:
    build = callbacks.read(Build, event.data)
    artifacts, metadata = build.artifacts or _NO_ARTIFACTS, build.metadata or _NO_METADATA
    artifact = artifacts.build or artifacts.archive
    platform = _platform(build.platform)
    number = metadata.build_number
    report = Report(
        provider="eas",
        status=_status(event),
        occurred_at=event.occurred_at,
        actor="eas",
        external_id=build.id,
        platform=platform,
        urls=Urls(
            android=artifact if platform == "android" else None,
            ios=artifact if platform == "ios" else None,
            archive=artifacts.archive or artifacts.build,
            details=build.details,
            # Android's are on the page of the build only.
            logs=artifacts.xcode_logs or build.details,
        ),
        app_version=metadata.version,
        build_number=None if number is None else str(number),
        git_commit=metadata.commit,
        error=build.error.told if build.error else None,
        artifact_expires_at=build.expires_at,
    )
    return Told(report, (build.id,))


def submission_told(event: Event) -> Told:
    """A submission to a store is of its build's deployment, unless it was named itself."""
    submission = callbacks.read(Submission, event.data)
    info = submission.info or _NO_INFO
    report = Report(
        provider="eas",
        status=_status(event),
        occurred_at=event.occurred_at,
        actor="eas",
        external_id=submission.id,
        job="submission",
        platform=_platform(submission.platform),
        urls=Urls(details=submission.details, logs=info.logs),
        error=info.error.told if info.error else None,
    )
    return Told(report, tuple(name for name in (submission.id, submission.build_id) if name))


def _status(event: Event) -> Status:
    return STATUSES[event.type.partition(".")[2]]


def _platform(told: str | None) -> Platform | None:
    match (told or "").lower():
        case "android":
            return "android"
        case "ios":
            return "ios"
        case _:
            return None


EFFECTS: Final[Mapping[str, inbox.Effect]] = {
    f"{kind}.{status}": callbacks.effect("eas", tell)
    for kind, tell in (("build", build_told), ("submission", submission_told))
    for status in STATUSES
}
