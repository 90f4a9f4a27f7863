"""Builds, asked of Expo's GraphQL API. docs.expo.dev/accounts/programmatic-access"""

from typing import Final

from provider_http import Api, Unheard
from pydantic import BaseModel, Field

from backplane.callbacks import Moment, Text
from backplane.deployment_reports import Report, Urls
from backplane.eas_callbacks import STATUSES, Artifacts, Failure
from backplane.integrations import Credentials

API = Api("Expo", "https://api.expo.dev")

QUERY: Final = """
    query Build($id: ID!) {
      builds {
        byId(buildId: $id) {
          id status platform updatedAt expirationDate appVersion appBuildVersion gitCommitHash
          artifacts { buildUrl applicationArchiveUrl xcodeBuildLogsUrl }
          error { errorCode message }
        }
      }
    }
"""


class Build(BaseModel):
    status: str
    platform: str
    updated_at: Moment = Field(alias="updatedAt")
    expires_at: Moment | None = Field(None, alias="expirationDate")
    version: Text | None = Field(None, alias="appVersion")
    build_number: Text | None = Field(None, alias="appBuildVersion")
    commit: Text | None = Field(None, alias="gitCommitHash")
    artifacts: Artifacts | None = None
    error: Failure | None = None


class Builds(BaseModel):
    found: Build | None = Field(None, alias="byId")


class Data(BaseModel):
    builds: Builds | None = None


class Extensions(BaseModel):
    transient: bool = Field(False, alias="isTransient")


class Refusal(BaseModel):
    extensions: Extensions | None = None


class Answer(BaseModel):
    errors: list[Refusal] | None = None
    data: Data | None = None


def ask(credentials: Credentials, external_id: str) -> Report:
    """Raises Unheard."""
    token = credentials.secrets["access_token"]
    told = API.post("/graphql", token, {"query": QUERY, "variables": {"id": external_id}})
    build = _found(API.read(Answer, told))
    status = STATUSES.get(build.status.lower().replace("_", "-"))
    if status is None:
        raise API.strange("a state that is not known here")
    artifacts = build.artifacts or Artifacts.model_validate({})
    artifact = artifacts.build or artifacts.archive
    return Report(
        source="poll",
        actor="eas",
        provider="eas",
        external_id=external_id,
        status=status,
        occurred_at=build.updated_at,
        platform="ios" if build.platform == "IOS" else "android",
        urls=Urls(
            android=artifact if build.platform == "ANDROID" else None,
            ios=artifact if build.platform == "IOS" else None,
            archive=artifacts.archive or artifacts.build,
            logs=artifacts.xcode_logs,
        ),
        app_version=build.version,
        build_number=build.build_number,
        git_commit=build.commit,
        artifact_expires_at=build.expires_at,
        error=build.error.told if build.error else None,
    )


def _found(answer: Answer) -> Build:
    """The build in an answer of status 200, which may be a refusal all the same."""
    if answer.errors:
        if any(error.extensions and error.extensions.transient for error in answer.errors):
            raise Unheard("Expo is in trouble at the moment", passing=True)
        raise Unheard("Expo shows no such build to the token (it refuses the query)")
    builds = answer.data and answer.data.builds
    if not builds or builds.found is None:
        raise Unheard("Expo shows no such build to the token")
    return builds.found
