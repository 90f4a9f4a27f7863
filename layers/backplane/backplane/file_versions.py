"""The versions of a project's files as they are stored, listed and read; what makes them is in files.py.

Each function takes a transaction that sees the organisation which owns the project.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from backplane import access, buckets, db, file_changes
from backplane.file_changes import Contents, IndexedFile
from backplane.problems import NotFound


@dataclass(frozen=True, slots=True)
class Version:
    """Of a project that has no files yet: number 0."""

    number: int
    s3_key: str = ""
    s3_version: str = ""
    epoch_ms: int = 0
    sha256: str = ""
    total_bytes: int = 0
    index: tuple[IndexedFile, ...] = ()

    def contents(self) -> Contents:
        """Raises BrokenObjectError, Unavailable."""
        return (
            file_changes.parse(buckets.read(self.s3_key, self.s3_version, self.sha256)) if self.number else {}
        )


_COLUMNS = "v.version, v.s3_key, v.s3_version, v.epoch_ms, v.sha256, v.total_bytes, v.files"


class VersionEntry(BaseModel):
    """A version in the list of them."""

    version: int
    s3_key: str
    sha256: str
    total_bytes: int
    files: int  # how many
    base_version: int
    restored_from: int | None
    message: str | None
    created_by: UUID | None  # null: by a key
    created_at: datetime


def newest(tx: db.Tx, project_id: UUID) -> Version:
    """The version in force. Raises NotFound for a project that is gone."""
    row = tx.execute(
        f"""
        SELECT {_COLUMNS}
        FROM projects.projects AS p
        LEFT JOIN projects.file_versions AS v ON v.project_id = p.id AND v.version = p.files_version
        WHERE p.id = %s AND p.deleted_at IS NULL
        """.encode(),
        [project_id],
    ).fetchone()
    if row is None:
        raise access.missing()
    return Version(0) if row["version"] is None else _version(row)


def read(tx: db.Tx, project_id: UUID, version: int) -> Version:
    """Raises NotFound, also where its object was deleted."""
    row = tx.execute(
        f"""
        SELECT {_COLUMNS}, o.state
        FROM projects.file_versions AS v
        JOIN projects.projects AS p ON p.id = v.project_id AND p.deleted_at IS NULL
        JOIN storage.objects AS o ON o.id = v.object_id
        WHERE v.project_id = %(project_id)s AND v.version = %(version)s
        """.encode(),
        {"project_id": project_id, "version": version},
    ).fetchone()
    if row is None or row["state"] != "stored":
        raise NotFound(f"The project has no version {version}{' any more' if row else ''}.")
    return _version(row)


def versions(tx: db.Tx, project_id: UUID, *, before: int | None, limit: int) -> list[VersionEntry]:
    """Newest first; those whose objects were deleted are left out."""
    rows = tx.execute(
        """
        SELECT v.version, v.s3_key, v.sha256, v.total_bytes, jsonb_array_length(v.files) AS files,
               v.base_version, v.restored_from, v.message, v.created_by, v.created_at
        FROM projects.file_versions AS v
        JOIN projects.projects AS p ON p.id = v.project_id AND p.deleted_at IS NULL
        CROSS JOIN LATERAL (
            SELECT 1
            FROM storage.objects
            WHERE id = v.object_id AND state = 'stored'
            LIMIT 1 -- one by one, rather than all that the organisation has stored
        ) AS o
        WHERE v.project_id = %(project_id)s
          AND (%(before)s::bigint IS NULL OR v.version < %(before)s)
        ORDER BY v.version DESC
        LIMIT %(limit)s
        """,
        {"project_id": project_id, "before": before, "limit": limit},
    ).fetchall()
    return [VersionEntry.model_validate(row) for row in rows]


def _version(row: dict[str, Any]) -> Version:
    return Version(
        number=row["version"],
        s3_key=row["s3_key"],
        s3_version=row["s3_version"],
        epoch_ms=row["epoch_ms"],
        sha256=row["sha256"],
        total_bytes=row["total_bytes"],
        index=tuple(IndexedFile.model_validate(file) for file in row["files"]),
    )
