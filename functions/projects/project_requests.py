"""What a caller may send of a project."""

import base64
import binascii
import json
import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from backplane import api
from backplane.fields import Config, Url

Kind = Literal["mobile", "web", "site"]
Category = Literal["saas", "ecommerce", "blog", "api", "custom"]

Title = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S")]
Text = Annotated[str, Field(max_length=10_000)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"\S")]
Slug = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
BundleId = Annotated[str, Field(max_length=155, pattern=r"^[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+$")]
Domain = Annotated[
    str, Field(max_length=253, pattern=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}$")
]
Labels = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=50, pattern=r"\S")]], Field(max_length=50)
]


class Template(api.Body):
    """What a project starts from."""

    name: Name
    version: Name
    category: Category | None = None


class Supabase(api.Body):
    """A project's own Supabase, as its clients reach it."""

    project_ref: Annotated[str, Field(pattern=r"^[a-z0-9]{1,40}$")] | None = None
    url: Url | None = None
    anon_key: Annotated[str, Field(min_length=1, max_length=2000)] | None = None

    @field_validator("anon_key")
    @classmethod
    def _public(cls, key: str | None) -> str | None:
        if key is not None and is_secret_key(key):
            raise ValueError("this key opens the whole database: send the anonymous (publishable) one")
        return key


class AppSettings(api.Body):
    """Of kind mobile and web: how the app calls itself in the stores."""

    app_icon_url: Url | None = None
    android_app_icon_url: Url | None = None
    android_package_name: BundleId | None = None
    ios_app_icon_url: Url | None = None
    ios_bundle_id: BundleId | None = None
    ios_app_id: Annotated[str, Field(pattern=r"^[0-9]{1,20}$")] | None = None


class SiteSettings(api.Body):
    """Of kind site: where it is found, and what search engines are told."""

    subdomain: Slug | None = None
    custom_domain: Domain | None = None
    meta_title: Annotated[str, Field(max_length=200)] | None = None
    meta_description: Annotated[str, Field(max_length=500)] | None = None
    favicon_url: Url | None = None
    ai_prompt: Text | None = None
    business_type: Name | None = None


class NewProject(api.Body):
    title: Title
    description: Text | None = None
    kind: Kind = "mobile"
    template: Template | None = None
    is_public: bool | None = None  # None: private where the plan has private projects
    features: Labels = Field(default_factory=list)
    tags: Labels = Field(default_factory=list)


class Changes(api.Body):
    """What a PATCH names is changed, the rest stays; null empties what may be empty."""

    title: Title = ""
    description: Text | None = None
    slug: Slug = ""
    status: Literal["draft", "archived"] = "draft"
    template: Template | None = None
    features: Labels = Field(default_factory=list)
    tags: Labels = Field(default_factory=list)
    is_public: bool = False
    is_favorite: bool = False
    config: Config = Field(default_factory=dict)
    last_entry_id: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    generated_path: Annotated[str, Field(max_length=1024)] | None = None
    repository_url: Url | None = None
    supabase: Supabase | None = None
    app: AppSettings = Field(default_factory=AppSettings)
    site: SiteSettings = Field(default_factory=SiteSettings)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("name at least one field to change")
        return self


def is_secret_key(key: str) -> bool:
    """Whether a Supabase key is one that must not leave a server.

    The newer ones say so in their prefix, the older are JWTs whose role says it.
    """
    if key.startswith(("sb_secret_", "sbp_")):
        return True
    parts = key.split(".")
    if len(parts) != 3:  # noqa: PLR2004  header, payload, signature
        return False
    try:
        payload = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return False
    return isinstance(payload, dict) and re.fullmatch("anon|authenticated", str(payload.get("role"))) is None
