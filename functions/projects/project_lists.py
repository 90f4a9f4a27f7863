"""Lists of an organisation's projects, in parts, newest first."""

from datetime import datetime
from uuid import UUID

from project_requests import Kind
from project_rows import COLUMNS, shown
from project_views import Project
from pydantic import BaseModel

from backplane import db


class Wanted(BaseModel):
    """Which projects; None: whatever it is."""

    q: str | None = None  # in the title or the description, whatever the case
    favorite: bool | None = None  # the caller's own
    deleted: bool = False
    kind: Kind | None = None
    tag: str | None = None
    shared: bool = False  # by others, with the caller


def by_creation(
    tx: db.Tx,
    organization_id: UUID,
    user_id: UUID | None,
    wanted: Wanted,
    *,
    before: UUID | None,
    limit: int,
) -> list[Project]:
    """Ids ascend with time, so they are the order and the cursor."""
    rows = tx.execute(
        f"""
        SELECT {COLUMNS}
        FROM projects.projects AS p
        WHERE {_conditions(wanted)}
          AND (%(before)s::uuid IS NULL OR p.id < %(before)s)
        ORDER BY p.id DESC
        LIMIT %(limit)s
        """.encode(),
        _params(organization_id, user_id, wanted) | {"before": before, "limit": limit},
    ).fetchall()
    return [Project.model_validate(shown(row)) for row in rows]


def by_change(
    tx: db.Tx,
    organization_id: UUID,
    user_id: UUID | None,
    wanted: Wanted,
    *,
    before: tuple[datetime, UUID] | None,
    limit: int,
) -> list[Project]:
    """The latest changed first. A project that changes between two parts moves to the first."""
    moment, project_id = before or (None, None)
    rows = tx.execute(
        f"""
        SELECT {COLUMNS}
        FROM projects.projects AS p
        WHERE {_conditions(wanted)}
          AND (%(moment)s::timestamptz IS NULL OR (p.updated_at, p.id) < (%(moment)s, %(before)s))
        ORDER BY p.updated_at DESC, p.id DESC
        LIMIT %(limit)s
        """.encode(),
        _params(organization_id, user_id, wanted) | {"moment": moment, "before": project_id, "limit": limit},
    ).fetchall()
    return [Project.model_validate(shown(row)) for row in rows]


def _conditions(wanted: Wanted) -> str:
    """Row-level security alone would list what others made public, too."""
    deleted = "IS NOT NULL AND p.purged_at IS NULL" if wanted.deleted else "IS NULL"
    whose = (
        "p.id IN (SELECT s.project_id FROM projects.shares AS s WHERE s.user_id = %(user_id)s)"
        " AND p.deleted_at IS NULL"  # what others have deleted is theirs to see
        if wanted.shared
        else "p.organization_id = %(organization_id)s"
    )
    return f"""
        {whose}
          AND p.deleted_at {deleted}
          AND (%(pattern)s::text IS NULL OR p.title ILIKE %(pattern)s OR p.description ILIKE %(pattern)s)
          AND (%(kind)s::projects.kind IS NULL OR p.kind = %(kind)s::projects.kind)
          AND (%(tag)s::text IS NULL OR %(tag)s = ANY(p.tags))
          AND (%(favorite)s::boolean IS NULL OR %(favorite)s = EXISTS (
              SELECT 1
              FROM projects.favorites AS f
              WHERE f.project_id = p.id AND f.user_id = %(user_id)s))
    """


def _params(organization_id: UUID, user_id: UUID | None, wanted: Wanted) -> dict[str, object]:
    return {
        "organization_id": organization_id,
        "user_id": user_id,
        "pattern": None if wanted.q is None else db.containing(wanted.q),
        "kind": wanted.kind,
        "tag": wanted.tag,
        "favorite": wanted.favorite,
    }
