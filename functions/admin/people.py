"""Users, and the record of who was erased, newest first."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel

from backplane import db


class User(BaseModel):
    id: UUID
    clerk_id: str
    email: str | None
    name: str | None
    role: str  # platform role
    is_active: bool
    organization_id: UUID | None  # the personal one
    created_at: datetime
    deleted_at: datetime | None


class ErasureReport(BaseModel):
    id: UUID
    user_id: UUID | None  # null: a deleted organisation was erased
    organization_id: UUID | None  # that one; a user's personal one
    actor: str
    erased: dict[str, int]  # rows by table
    created_at: datetime


# By an index of its own, whose order is the bytes', and before anything else: a plan for whatever address
# takes the newest users one by one instead.
_BEGINS = """
    SELECT id
    FROM identity.users
    WHERE lower(email) ~>=~ lower(%(email)s)
      AND lower(email) ~<~ (lower(%(email)s) || chr(1114111)) -- the last character there is
      AND email IS NOT NULL
"""


def newest_users(tx: db.Tx, *, email: str | None, before: UUID | None, limit: int) -> list[User]:
    """Those whose address begins with `email`, in whatever case."""
    begins = "u.id IN (SELECT id FROM begins)" if email is not None else "true"
    rows = tx.execute(
        f"""
        WITH begins AS MATERIALIZED ({_BEGINS})
        SELECT u.id, u.clerk_id, u.email, u.role, u.is_active, u.created_at, u.deleted_at,
               nullif(trim(concat_ws(' ', u.first_name, u.last_name)), '') AS name, o.id AS organization_id
        FROM identity.users AS u
        LEFT JOIN tenancy.organizations AS o ON o.personal_user_id = u.id
        WHERE {begins}
          AND (%(before)s::uuid IS NULL OR u.id < %(before)s)
        ORDER BY u.id DESC
        LIMIT %(limit)s
        """.encode(),
        {"email": email, "before": before, "limit": limit},
    ).fetchall()
    return [User.model_validate(row) for row in rows]


def newest_erasures(tx: db.Tx, *, before: UUID | None, limit: int) -> list[ErasureReport]:
    rows = tx.execute(
        """
        SELECT id, user_id, organization_id, actor, erased, created_at
        FROM platform.erasures
        WHERE %(before)s::uuid IS NULL OR id < %(before)s
        ORDER BY id DESC
        LIMIT %(limit)s
        """,
        {"before": before, "limit": limit},
    ).fetchall()
    return [ErasureReport.model_validate(row) for row in rows]
