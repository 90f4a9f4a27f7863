"""A user's own settings: how the product looks to him, and where he left off."""

from typing import Annotated, Any, Literal, Self
from uuid import UUID

import language_tags
from psycopg import sql
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from backplane import api, db, limits
from backplane.auth import Caller
from backplane.problems import Forbidden, Unprocessable

Theme = Literal["light", "dark", "system"]
Language = Annotated[
    str, Field(min_length=2, max_length=language_tags.MAX_LENGTH), AfterValidator(language_tags.usual)
]
Timezone = Annotated[str, Field(min_length=1, max_length=100)]
Template = Annotated[str, Field(min_length=1, max_length=100, pattern=r"\S")]


def _text(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    raise ValueError("send an id as text, such as GET /v1/organizations answers")


class Changes(api.Body):
    """What a PATCH names is changed, the rest stays; null empties what may be empty."""

    theme: Theme = "light"
    language: Language = "en"
    timezone: Timezone = "UTC"
    email_notifications: bool = True
    default_project_template: Template | None = None
    last_workspace_id: Annotated[UUID | None, Field(strict=False), BeforeValidator(_text)] = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("name at least one setting to change")
        return self


class Settings(BaseModel):
    theme: Theme
    language: str  # BCP 47
    timezone: str  # IANA
    email_notifications: bool
    default_project_template: str | None
    last_workspace_id: UUID | None  # an organisation; null once he is no member of it any more


def read(tx: db.Tx, user_id: UUID) -> Settings:
    row = tx.execute(
        """
        SELECT theme, language, timezone, email_notifications, default_project_template,
               CASE WHEN EXISTS (SELECT 1 FROM tenancy.find_membership(user_id, last_workspace_id))
                    THEN last_workspace_id END AS last_workspace_id
        FROM identity.settings
        WHERE user_id = %s
        """,
        [user_id],
    ).fetchone()
    if row is None:
        raise RuntimeError("every user has settings, from the beginning")
    return Settings.model_validate(row)


def change(tx: db.Tx, user_id: UUID, changes: Changes) -> Settings:
    """His timezone is his personal organisation's, too. Raises Unprocessable."""
    wanted = changes.model_dump(include=changes.model_fields_set)
    workspace_id = wanted.get("last_workspace_id")
    if workspace_id is not None:
        _require_member(tx, user_id, workspace_id)
    if "timezone" in wanted:
        _move(tx, user_id, wanted["timezone"])
    assignments = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in wanted
    )
    tx.execute(
        sql.SQL("UPDATE identity.settings SET {} WHERE user_id = %(user_id)s").format(assignments),
        wanted | {"user_id": user_id},
    )
    return read(tx, user_id)


def person(caller: Caller) -> UUID:
    """Raises Forbidden for a key, which has no settings."""
    if caller.user_id is None:
        raise Forbidden("Settings are a person's: send a session token.")
    return caller.user_id


def _require_member(tx: db.Tx, user_id: UUID, organization_id: UUID) -> None:
    found = tx.execute("SELECT * FROM tenancy.find_membership(%s, %s)", [user_id, organization_id]).fetchone()
    if found is None:
        raise Unprocessable(
            "You are not a member of this workspace. GET /v1/organizations lists those you may enter.",
            errors=[
                {
                    "loc": ["body", "last_workspace_id"],
                    "msg": "Not a workspace of yours",
                    "type": "not_a_member",
                }
            ],
        )


def _move(tx: db.Tx, user_id: UUID, timezone: str) -> None:
    """By the ledger's rules (docs/decisions/quotas.md), in the organisation that is his alone."""
    row = tx.execute("SELECT tenancy.personal_organization(%s) AS id", [user_id]).fetchone()
    if row is None or row["id"] is None:
        raise RuntimeError("a user who calls has a personal organisation")
    db.enter(tx, row["id"])
    limits.change_timezone(tx, row["id"], timezone)
