"""What is told of a deployment, and whether it moves one: no database here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, get_args

End = Literal["successful", "failed", "aborted"]
Status = Literal["pending", "in_progress", End]
Provider = Literal[
    "eas", "vercel", "github", "netlify", "aws", "docker", "railway", "dokploy", "render", "fly", "custom"
]
Platform = Literal["ios", "android", "web", "all"]
JobKind = Literal["build", "submission"]
Outcome = Literal["applied", "stale", "terminal", "unknown"]
Source = Literal["user", "callback", "poll", "sweeper", "copier"]
EventKind = Literal[
    "started",
    "linked",
    "reported",
    "completed",
    "canceled",
    "went_stale",
    "given_up",
    "deleted",
    "artifact_stored",
    "artifact_failed",
]

TERMINAL: Final[frozenset[Status]] = frozenset(get_args(End))
_RANK: Final[Mapping[Status, int]] = {
    "pending": 0,
    "in_progress": 1,
    "successful": 2,
    "failed": 2,
    "aborted": 2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Urls:
    android: str | None = None
    ios: str | None = None
    web: str | None = None
    archive: str | None = None
    details: str | None = None
    logs: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What somebody tells of one of a deployment's jobs, or of the whole where `external_id` is None."""

    status: Status
    occurred_at: datetime | None = (
        None  # on the provider's clock, for callbacks and polls; None: now, on ours
    )
    source: Source = "callback"
    kind: EventKind = "reported"
    actor: str = "system"
    provider: Provider | None = None
    external_id: str | None = None
    job: JobKind = "build"
    platform: Platform | None = None
    urls: Urls = field(default_factory=Urls)
    app_version: str | None = None
    build_number: str | None = None
    git_commit: str | None = None
    artifact_expires_at: datetime | None = None  # when the provider takes away what `urls` tell of
    build_log: str | None = None
    error: str | None = None


def judge(now: Status, told_at: datetime | None, status: Status, occurred_at: datetime | None) -> Outcome:
    """Whether a report moves what is in state `now`, of which the newest report was at `told_at`.

    Nothing moves an end, and everything else yields to one, whenever it happened: clocks differ, ends do
    not. Before the end a report is newer if its state comes later, or the same state was told of later.
    """
    if now in TERMINAL:
        return "terminal"
    if _RANK[status] < _RANK[now]:
        return "stale"
    if status == now and told_at is not None and occurred_at is not None and occurred_at <= told_at:
        return "stale"
    return "applied"


def combined(builds: Sequence[Status], now: Status) -> Status:
    """A deployment's state from its builds': over when all of them are, and only as good as the worst."""
    if not builds:
        return now
    if not TERMINAL.issuperset(builds):
        return "in_progress"
    return next((status for status in ("failed", "aborted") if status in builds), "successful")
