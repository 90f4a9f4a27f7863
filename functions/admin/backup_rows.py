"""The backups as platform admins see them."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel

from backplane import db


class Backup(BaseModel):
    id: UUID
    name: str
    kind: Literal["dump", "cluster_snapshot"]
    key: str
    manifest_key: str
    bytes: int
    row_count: int
    sha256: str | None
    started_at: datetime
    finished_at: datetime
    deleted_at: datetime | None
    drilled_at: datetime | None
    differences: list[str] | None  # what the last drill found; none: it is proven
    verified_at: datetime | None


def newest(tx: db.Tx, *, before: UUID | None, limit: int) -> list[Backup]:
    rows = tx.execute(
        """
        SELECT id, name, kind, key, manifest_key, bytes, row_count, sha256, started_at, finished_at,
               deleted_at, drilled_at, differences, verified_at
        FROM platform.backups
        WHERE %(before)s::uuid IS NULL OR id < %(before)s
        ORDER BY id DESC
        LIMIT %(limit)s
        """,
        {"before": before, "limit": limit},
    ).fetchall()
    return [Backup.model_validate(row) for row in rows]
