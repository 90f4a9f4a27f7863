"""Organisations as they are shown and changed. Clerk keeps its own; a personal one is its user's for good."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

import psycopg
from psycopg import sql
from pydantic import BaseModel, Field, model_validator

from backplane import api, audit_log, auth, db, limits, outbox, subscriptions
from backplane.auth import Caller
from backplane.problems import Conflict, InvalidState, NotFound, PlanLimitReached
from backplane.scopes import Role
from backplane.subscriptions import CurrentPlan

MOST_OWNED = 10  # each has a free plan of its own: without a bound, nobody would need another

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S")]
Slug = Annotated[str, Field(min_length=2, max_length=63, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Text = Annotated[str, Field(max_length=2000)]
Url = Annotated[str, Field(max_length=2000, pattern=r"^https?://[^\s/]\S*$")]
Timezone = Annotated[str, Field(min_length=1, max_length=100)]

CLERKS = ("name", "slug", "logo_url")  # of its organisations; the rest is ours


class NewOrganization(api.Body):
    name: Name
    slug: Slug | None = None
    description: Text | None = None
    logo_url: Url | None = None


class Changes(api.Body):
    name: Name = ""
    slug: Slug = ""
    description: Text | None = None
    logo_url: Url | None = None
    timezone: Timezone = ""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("name what is to change: name, slug, description, logo_url or timezone")
        return self


class Organization(BaseModel):
    id: UUID
    name: str
    slug: str | None
    description: str | None
    logo_url: str | None
    timezone: str
    is_personal: bool
    managed_by: Literal["backplane", "clerk"]
    role: Role | None  # the caller's; null for keys and visiting platform admins
    created_at: datetime


class OrganizationDetails(Organization):
    members: int
    plan: CurrentPlan


def of_caller(tx: db.Tx, caller: Caller, *, before: UUID | None, limit: int) -> list[Organization]:
    if caller.user_id is None:
        return [] if before is not None else [Organization.model_validate(_row(tx, caller))]
    rows = tx.execute(
        """
        SELECT id, name, slug, description, logo_url, timezone, created_at, role,
               personal_user_id IS NOT NULL AS is_personal,
               CASE WHEN clerk_id IS NULL THEN 'backplane' ELSE 'clerk' END AS managed_by
        FROM tenancy.organizations_of(%(user_id)s, %(before)s, %(limit)s)
        """,
        {"user_id": caller.user_id, "before": before, "limit": limit},
    ).fetchall()
    return [Organization.model_validate(row) for row in rows]


def create(tx: db.Tx, caller: Caller, new: NewOrganization) -> OrganizationDetails:
    """Raises PlanLimitReached (he owns as many as he may), Conflict (the slug is taken)."""
    try:
        row = tx.execute(
            "SELECT tenancy.create_organization(%(name)s, %(slug)s, %(user_id)s, %(most)s) AS id",
            {"name": new.name, "slug": new.slug, "user_id": caller.user_id, "most": MOST_OWNED},
        ).fetchone()
    except psycopg.errors.UniqueViolation as error:
        raise _taken(new.slug) from error
    if row is None or row["id"] is None:
        raise PlanLimitReached(
            f"You own {MOST_OWNED} organisations, and nobody may own more. Delete one, or transfer it."
        )
    outbox.written()
    there = auth.member(caller, row["id"], "owner")
    db.enter(tx, there.organization_id)
    if new.description is not None or new.logo_url is not None:
        _write(tx, there, {"description": new.description, "logo_url": new.logo_url})
    _note(tx, there, "organization.created", {"name": new.name})
    return read(tx, there)


def read(tx: db.Tx, caller: Caller) -> OrganizationDetails:
    return OrganizationDetails.model_validate(
        _row(tx, caller) | {"plan": subscriptions.entitlement(tx, caller.organization_id).current}
    )


def change(tx: db.Tx, caller: Caller, changes: Changes) -> OrganizationDetails:
    """Raises InvalidState (Clerk keeps it), Conflict (a slug is taken), Unprocessable (no such timezone)."""
    wanted = changes.model_dump(include=changes.model_fields_set)
    held = hold(tx, caller)
    if held["clerk_id"] is not None and (kept := [name for name in CLERKS if name in wanted]):
        raise InvalidState(f"Clerk keeps the {' and '.join(kept)} of this organisation: change it there.")
    timezone = wanted.pop("timezone", None)
    if timezone is not None:
        limits.change_timezone(tx, caller.organization_id, timezone)
    if wanted:
        _write(tx, caller, wanted)
    _note(tx, caller, "organization.updated", {"fields": sorted(changes.model_fields_set)})
    _tell(tx, caller, "organization.updated")
    return read(tx, caller)


def delete(tx: db.Tx, caller: Caller) -> None:
    """Raises InvalidState where a subscription goes on, or where it is not the caller's to end."""
    require_ours(hold(tx, caller), "Its user deletes his account at Clerk, and it goes with him.")
    if subscriptions.goes_on(tx, caller.organization_id):
        raise InvalidState(
            "The organisation's subscription is not over, and would go on costing. Cancel it in the billing"
            " portal (POST /v1/billing/portal), and delete the organisation when it has ended."
        )
    _note(tx, caller, "organization.deleted")
    tx.execute("SELECT tenancy.close_organization(%s)", [caller.organization_id])
    outbox.written()


def hold(tx: db.Tx, caller: Caller) -> dict[str, Any]:
    """The organisation's row, locked: its members change one after the other. Raises NotFound."""
    row = tx.execute(
        """
        SELECT clerk_id, personal_user_id
        FROM tenancy.organizations
        WHERE id = %s AND deleted_at IS NULL
        FOR UPDATE
        """,
        [caller.organization_id],
    ).fetchone()
    if row is None:
        raise NotFound("This organisation does not exist any more.")
    return row


def require_ours(held: dict[str, Any], instead: str) -> None:
    """Raises InvalidState, saying what to do, where an organisation's members and end are not ours."""
    if held["clerk_id"] is not None:
        raise InvalidState(
            "Clerk manages this organisation and its members: do it in Clerk, and it follows here."
        )
    if held["personal_user_id"] is not None:
        raise InvalidState(f"This is a user's personal organisation, which is his alone. {instead}")


def _row(tx: db.Tx, caller: Caller) -> dict[str, Any]:
    row = tx.execute(
        """
        SELECT o.id, o.name, o.slug, o.description, o.logo_url, o.timezone, o.created_at,
               o.personal_user_id IS NOT NULL AS is_personal,
               CASE WHEN o.clerk_id IS NULL THEN 'backplane' ELSE 'clerk' END AS managed_by,
               (SELECT count(*)
                FROM tenancy.organization_members AS m
                WHERE m.organization_id = o.id) AS members
        FROM tenancy.organizations AS o
        WHERE o.id = %s AND o.deleted_at IS NULL
        """,
        [caller.organization_id],
    ).fetchone()
    if row is None:
        raise NotFound("This organisation does not exist any more.")
    return row | {"role": caller.role}


def _write(tx: db.Tx, caller: Caller, columns: dict[str, Any]) -> None:
    assignments = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in columns
    )
    try:
        tx.execute(
            sql.SQL("UPDATE tenancy.organizations SET {} WHERE id = %(id)s").format(assignments),
            columns | {"id": caller.organization_id},
        )
    except psycopg.errors.UniqueViolation as error:
        raise _taken(columns["slug"]) from error


def _taken(slug: str | None) -> Conflict:
    return Conflict(f"The slug {slug} is taken. Choose another.")


def _note(tx: db.Tx, caller: Caller, action: str, details: dict[str, Any] | None = None) -> None:
    audit_log.write(
        tx,
        action,
        actor=caller.actor,
        target=f"organization:{caller.organization_id}",
        organization_id=caller.organization_id,
        details=details,
    )


def _tell(tx: db.Tx, caller: Caller, event_type: str) -> None:
    outbox.append(
        tx,
        event_type,
        organization_id=caller.organization_id,
        payload={"organization_id": str(caller.organization_id)},
    )
