"""Search in the messages of an organisation's live projects."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from pydantic import BaseModel

from backplane import db, messages


class FoundProject(BaseModel):
    id: UUID
    title: str
    updated_at: datetime


class Found(BaseModel):
    project: FoundProject
    message: messages.Message


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
    return [
        Found(
            project=FoundProject(
                id=row["project_id"], title=row["project_title"], updated_at=row["project_updated_at"]
            ),
            message=messages.from_row(row),
        )
        for row in rows
    ]


def position(last: Found) -> Position:
    return Position(last.project.updated_at, last.project.id, last.message.sequence)
