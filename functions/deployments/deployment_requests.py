"""What a caller may send of a deployment."""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from backplane import api
from backplane.deployment_reports import Platform, Provider
from backplane.fields import Config, Url

Kind = Literal["expo", "eas-build", "manual", "web"]
ExternalId = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[!-~]+$")]
Version = Annotated[str, Field(min_length=1, max_length=100, pattern=r"\S")]
Log = Annotated[str, Field(max_length=100_000)]

OF_EXPO: Final = frozenset({"expo", "eas-build"})


class NewDeployment(api.Body):
    type: Kind
    platform: Platform
    external_id: ExternalId | None = None  # what the provider calls it; None: POST …/builds names it later
    provider: Provider | None = None
    app_version: Version | None = None
    environment: Annotated[str, Field(min_length=1, max_length=50, pattern=r"^[\w.-]+$")] = "production"
    config: Config = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.type in OF_EXPO and self.provider not in {None, "eas"}:
            raise ValueError(f"{self.type} is done by the provider eas: leave provider out")
        return self


class Build(api.Body):
    external_id: ExternalId
    platform: Literal["ios", "android", "web"] | None = None


def provider_of(new: NewDeployment) -> Provider | None:
    """As the caller says, or the kind; None: whoever reports of it first."""
    return new.provider or ("eas" if new.type in OF_EXPO else provider_by(new.external_id))


def provider_by(external_id: str | None) -> Provider | None:
    """Where the id shows it: only Vercel's begin so."""
    return "vercel" if (external_id or "").startswith("dpl_") else None


class Builds(api.Body):
    """All of them at once: the deployment is over when the last that is named is."""

    builds: list[Build] = Field(min_length=1, max_length=10)


class Completion(api.Body):
    """How it ended, by hand."""

    status: Literal["successful", "failed"] = "successful"
    web_url: Url | None = None
    android_build_url: Url | None = None
    ios_build_url: Url | None = None
    application_archive_url: Url | None = None
    build_details_url: Url | None = None
    logs_url: Url | None = None
    app_version: Version | None = None
    build_number: Version | None = None
    git_commit: Version | None = None
    build_log: Log | None = None
    error_log: Log | None = None
