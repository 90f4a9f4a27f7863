"""What callers see of a project: its own people, and others where it is public."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from project_requests import Category, Kind
from pydantic import BaseModel

Status = Literal["draft", "generating", "ready", "deploying", "deployed", "error", "published", "archived"]


class Template(BaseModel):
    name: str
    version: str
    category: Category | None


class Supabase(BaseModel):
    project_ref: str | None
    url: str | None
    anon_key: str | None


class App(BaseModel):
    app_icon_url: str | None
    android_app_icon_url: str | None
    android_package_name: str | None
    ios_app_icon_url: str | None
    ios_bundle_id: str | None
    ios_app_id: str | None


class Site(BaseModel):
    subdomain: str | None
    custom_domain: str | None
    meta_title: str | None
    meta_description: str | None
    favicon_url: str | None
    ai_prompt: str | None
    business_type: str | None
    published_at: datetime | None
    published_version: int | None


class PublicProject(BaseModel):
    """What anybody sees of a public project: none of its messages, configuration and keys."""

    id: UUID
    kind: Kind
    title: str
    description: str | None
    slug: str
    status: Status
    template: Template | None
    features: list[str]
    tags: list[str]
    is_public: bool
    deployment_url: str | None
    created_at: datetime
    updated_at: datetime


class Project(PublicProject):
    is_favorite: bool  # the caller's; never a key's
    update_in_progress: bool  # a generation has its lock
    message_count: int
    forked_from: UUID | None
    deployed_at: datetime | None
    deleted_at: datetime | None


class Creator(BaseModel):
    id: UUID
    email: str | None
    name: str | None


class ProjectDetails(Project):
    created_by: Creator | None  # null where a key made it
    config: dict[str, Any]
    last_entry_id: str | None
    generated_path: str | None
    repository_url: str | None
    supabase: Supabase | None
    app: App | None  # of kind mobile and web
    site: Site | None  # of kind site
