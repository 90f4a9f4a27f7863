"""Deployments, asked of Vercel's REST API. vercel.com/docs/rest-api/deployments"""

from collections.abc import Mapping
from typing import Annotated, Any, Final
from urllib.parse import quote, urlencode

from provider_http import Api
from pydantic import BaseModel, Field, StringConstraints

from backplane.callbacks import MAX_TEXT, Address, Error, Moment
from backplane.deployment_reports import Report, Status, Urls
from backplane.integrations import Credentials

API = Api("Vercel", "https://api.vercel.com")

STATUSES: Final[Mapping[str, Status]] = {
    "QUEUED": "in_progress",
    "INITIALIZING": "in_progress",
    "ANALYZING": "in_progress",
    "BUILDING": "in_progress",
    "DEPLOYING": "in_progress",
    "READY": "successful",
    "ERROR": "failed",
    "CANCELED": "aborted",
}
CHECKING: Final = frozenset({"registered", "running"})  # it is built, and not let through yet
COMMITS: Final = ("githubCommitSha", "gitlabCommitSha", "bitbucketCommitSha")


class Deployment(BaseModel):
    state: str = Field(alias="readyState")
    checks: str | None = Field(None, alias="checksState")
    host: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.-]{1,253}$")] | None = Field(
        None, alias="url"
    )
    page: Address | None = Field(None, alias="inspectorUrl")
    error: Error | None = Field(None, alias="errorMessage")
    meta: dict[str, Any] | None = None
    created_at: Moment = Field(alias="createdAt")
    building_at: Moment | None = Field(None, alias="buildingAt")
    ready_at: Moment | None = Field(None, alias="ready")
    canceled_at: Moment | None = Field(None, alias="canceledAt")


def ask(credentials: Credentials, external_id: str) -> Report:
    """Raises Unheard."""
    team = credentials.config.get("team_id")
    query = f"?{urlencode({'teamId': team})}" if team else ""
    path = f"/v13/deployments/{quote(external_id, safe='')}{query}"
    deployment = API.read(Deployment, API.get(path, credentials.secrets["access_token"]))
    if deployment.state not in STATUSES:
        raise API.strange("a state that is not known here")
    status = STATUSES[deployment.state]
    if status == "successful" and deployment.checks in CHECKING:
        status = "in_progress"
    commit = next((told for name in COMMITS if (told := (deployment.meta or {}).get(name))), None)
    times = (deployment.canceled_at, deployment.ready_at, deployment.building_at, deployment.created_at)
    return Report(
        source="poll",
        actor="vercel",
        provider="vercel",
        external_id=external_id,
        status=status,
        occurred_at=next(at for at in times if at is not None),
        platform="web",
        urls=Urls(
            web=f"https://{deployment.host}" if deployment.host and status == "successful" else None,
            details=deployment.page,
        ),
        git_commit=commit[:MAX_TEXT] if isinstance(commit, str) else None,
        error=deployment.error,
    )
