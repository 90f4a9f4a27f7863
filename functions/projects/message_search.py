"""Search in the messages of an organisation's live projects."""

from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from psycopg.rows import DictRow
from pydantic import BaseModel, TypeAdapter

from backplane import db, messages


class FoundProject(BaseModel):
    id: UUID
    title: str
    updated_at: datetime


class Found(BaseModel):
    project: FoundProject
    message: messages.Message


_FOUND = TypeAdapter(list[Found])  # all at once: one by one they take longer than they are searched for


class Position(NamedTuple):
    """Where a part of the results ended: the project by its last change, and the message in it."""

    updated_at: datetime
    project_id: UUID
    sequence: int


def search(organization_id: UUID, text: str, *, after: Position | None, limit: int) -> list[Found]:
    """Messages that contain the text, whatever the case, from the project changed last on; within a
    project in their order. One round trip: the function sees to the organisation itself.
    """
    rows = db.answer(
        """
        SELECT *
        FROM projects.search_messages(%(organization_id)s, %(pattern)s, %(limit)s, %(updated_at)s,
                                      %(project_id)s, %(sequence)s)
        """,
        {
            "organization_id": organization_id,
            "pattern": db.containing(text),
            "limit": limit,
            "updated_at": after and after.updated_at,
            "project_id": after and after.project_id,
            "sequence": after and after.sequence,
        },
        repeatable=True,
    )
    return _FOUND.validate_python([_nested(row) for row in rows])


def _nested(row: DictRow) -> dict[str, Any]:
    project = {
        "id": row["project_id"],
        "title": row["project_title"],
        "updated_at": row["project_updated_at"],
    }
    return {"project": project, "message": messages.fields(row)}


def position(last: Found) -> Position:
    return Position(last.project.updated_at, last.project.id, last.message.sequence)
