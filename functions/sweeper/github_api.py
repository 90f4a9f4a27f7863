"""Deployments' statuses, asked of GitHub's REST API. docs.github.com/rest/deployments/statuses"""

from typing import Annotated, Final
from urllib.parse import quote

from provider_http import Api, Unheard
from pydantic import BaseModel, BeforeValidator, RootModel

from backplane.callbacks import Address, Error, Moment
from backplane.deployment_reports import Report, Urls
from backplane.github_callbacks import STATUSES
from backplane.integrations import Credentials

API = Api("GitHub", "https://api.github.com")
VERSION: Final = {"x-github-api-version": "2022-11-28"}

# GitHub says "" for addresses that were not given.
GivenAddress = Annotated[Address | None, BeforeValidator(lambda told: told or None)]


class DeploymentStatus(BaseModel):
    state: str
    description: Error | None = None
    environment_url: GivenAddress = None
    log_url: GivenAddress = None
    target_url: GivenAddress = None
    created_at: Moment
    updated_at: Moment | None = None


class Statuses(RootModel[list[DeploymentStatus]]):
    """The newest first."""


def ask(credentials: Credentials, external_id: str) -> Report | None:
    """None where nobody has said anything of it yet. Raises Unheard."""
    token, repository = credentials.secrets.get("access_token"), credentials.config.get("repository")
    if token is None or repository is None:
        raise Unheard("the integration with GitHub has no token to ask with")
    path = f"/repos/{quote(repository)}/deployments/{quote(external_id, safe='')}/statuses?per_page=100"
    told = API.read(Statuses, API.get(path, token, VERSION)).root
    newest = next((each for each in told if each.state in STATUSES), None)
    if newest is None:
        return None
    status = STATUSES[newest.state]
    return Report(
        source="poll",
        actor="github",
        provider="github",
        external_id=external_id,
        status=status,
        occurred_at=newest.updated_at or newest.created_at,
        urls=Urls(
            web=newest.environment_url if status == "successful" else None,
            logs=newest.log_url or newest.target_url,
        ),
        error=newest.description or None if status == "failed" else None,
    )
