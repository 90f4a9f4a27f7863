"""A project's conversation: messages numbered 1, 2, 3 …, appended and never changed.

Each function takes a transaction that sees the organisation which owns the project.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from psycopg.types.json import Jsonb
from pydantic import BaseModel, ConfigDict, Field, field_validator

from backplane import access, db
from backplane.requests import stored_bytes

MAX_BYTES = 256 * 1024

Role = Literal["user", "assistant", "system", "tool"]
Part = dict[str, Any]  # {"type": "text", "text": …}, or whatever a model's parts are


class NewMessage(BaseModel):
    """A text, or the parts of a message as models have them."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    role: Role
    content: str | list[Part] = Field(min_length=1)

    @field_validator("content")
    @classmethod
    def _bounded(cls, content: str | list[Part]) -> str | list[Part]:
        if stored_bytes(content) > MAX_BYTES:
            raise ValueError(f"a message has at most {MAX_BYTES} bytes")
        return content

    @property
    def text(self) -> str:
        """What a search finds: of parts, those that are text."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part["text"] for part in self.content if isinstance(part.get("text"), str))


class Message(BaseModel):
    id: UUID
    sequence: int
    role: Role
    content: str | list[Part]
    created_at: datetime


def append(
    tx: db.Tx, project_id: UUID, messages: Sequence[NewMessage], *, created_by: UUID | None
) -> list[Message]:
    """Adds to the end of the conversation, all together. Raises NotFound for a project that is gone.

    Counting on takes the project's row lock, so that whoever appends at the same time comes after.
    """
    if not messages:
        return []
    rows = tx.execute(
        """
        WITH project AS (
            UPDATE projects.projects
            SET message_count = message_count + %(count)s
            WHERE id = %(project_id)s AND deleted_at IS NULL
            RETURNING id, organization_id, message_count
        ), added AS (
            INSERT INTO projects.messages
                (organization_id, project_id, sequence, role, content, parts, created_by)
            SELECT project.organization_id, project.id, project.message_count - %(count)s + new.number,
                   new.role::projects.message_role, new.content, new.parts, %(created_by)s
            FROM project
            CROSS JOIN unnest(%(roles)s::text[], %(contents)s::text[], %(parts)s::jsonb[])
                WITH ORDINALITY AS new (role, content, parts, number)
            RETURNING id, sequence, role, content, parts, created_at
        )
        SELECT * FROM added ORDER BY sequence
        """,
        {
            "project_id": project_id,
            "count": len(messages),
            "roles": [message.role for message in messages],
            "contents": [message.text for message in messages],
            "parts": [
                None if isinstance(message.content, str) else Jsonb(message.content) for message in messages
            ],
            "created_by": created_by,
        },
    ).fetchall()
    if not rows:
        raise access.missing()
    return [Message.model_validate(fields(row)) for row in rows]


def newest(tx: db.Tx, project_id: UUID, *, before: int | None, limit: int) -> list[Message]:
    """The newest messages, at most `limit`, before the sequence `before` where one is given."""
    rows = tx.execute(
        """
        SELECT id, sequence, role, content, parts, created_at
        FROM projects.messages
        WHERE project_id = %(project_id)s
          AND (%(before)s::bigint IS NULL OR sequence < %(before)s)
        ORDER BY sequence DESC
        LIMIT %(limit)s
        """,
        {"project_id": project_id, "before": before, "limit": limit},
    ).fetchall()
    return [Message.model_validate(fields(row)) for row in rows]


def all_of(tx: db.Tx, project_id: UUID) -> list[NewMessage]:
    """The whole conversation, to be appended to another."""
    rows = tx.execute(
        "SELECT role, content, parts FROM projects.messages WHERE project_id = %s ORDER BY sequence",
        [project_id],
    ).fetchall()
    return [
        NewMessage(role=row["role"], content=row["content"] if row["parts"] is None else row["parts"])
        for row in rows
    ]


def fields(row: dict[str, Any]) -> dict[str, Any]:
    """A row of projects.messages as a Message has it: of a message in parts, the parts."""
    return row if row["parts"] is None else {**row, "content": row["parts"]}
