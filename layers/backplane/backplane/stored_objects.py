"""Objects in the bucket, each with a row that was there first and counts against the organisation's storage.

granted → stored → deleted, or granted → expired or rejected. Granted and stored ones count, at their `bytes`;
what counts no longer is purged from the bucket a little later, by storage_upkeep.

Each function takes a transaction that sees the organisation.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel

from backplane import db, limits
from backplane.problems import InvalidState, NotFound, Unavailable

LIMIT = "site.storage_bytes"
FILES_GRANT = timedelta(minutes=15)  # longer than any function runs

Kind = Literal["files", "upload", "bundle", "artifact"]
State = Literal["granted", "stored", "expired", "rejected", "deleted"]


@dataclass(frozen=True, slots=True)
class Granted:
    id: UUID
    organization_id: UUID
    s3_key: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Owner:
    organization_id: UUID
    project_id: UUID
    created_by: UUID | None


def reserve_files(
    tx: db.Tx, owner: Owner, *, name: str, size: int, epoch_ms: int, is_new: bool = False
) -> tuple[Granted, int]:
    """A place for a version of files, and the milliseconds in its key: now, or as given if that is later.
    `is_new` says that the project is still to be made.

    Raises PlanLimitReached.
    """
    make_room(tx, owner.organization_id, size)
    while True:
        row = tx.execute(
            """
            WITH moment AS (
                SELECT greatest((extract(epoch FROM clock_timestamp()) * 1000)::bigint, %(epoch_ms)s) AS ms
            )
            INSERT INTO storage.objects
                (organization_id, project_id, kind, s3_key, name, content_type, bytes, created_by, expires_at)
            SELECT %(organization_id)s, CASE WHEN NOT %(is_new)s THEN %(project_id)s::uuid END, 'files',
                   'projects/' || %(project_id)s::text || '/files-v' || ms || '.json',
                   %(name)s, 'application/json', %(size)s, %(created_by)s, clock_timestamp() + %(lasts)s
            FROM moment
            ON CONFLICT (s3_key) DO NOTHING
            RETURNING id, s3_key, (SELECT ms FROM moment) AS ms
            """,
            {
                "organization_id": owner.organization_id,
                "project_id": owner.project_id,
                "created_by": owner.created_by,
                "name": name,
                "size": size,
                "epoch_ms": epoch_ms,
                "is_new": is_new,
                "lasts": FILES_GRANT,
            },
        ).fetchone()
        if row is not None:
            return Granted(row["id"], owner.organization_id, row["s3_key"], size), row["ms"]
        epoch_ms += 1  # somebody else's save of the same millisecond


def make_room(tx: db.Tx, organization_id: UUID, size: int) -> None:
    """Counts `size` more bytes, after giving back what was granted and never came.

    Raises PlanLimitReached.
    """
    expire(tx, organization_id)
    limits.take(tx, organization_id, LIMIT, size)


def store(tx: db.Tx, granted: Granted, s3_version: str, project_id: UUID) -> None:
    """It is where it was to be. Raises Unavailable where that took too long."""
    changed = tx.execute(
        """
        UPDATE storage.objects
        SET state = 'stored', project_id = %(project_id)s, s3_version = %(version)s,
            stored_at = clock_timestamp()
        WHERE id = %(id)s AND state = 'granted'
        """,
        {"id": granted.id, "version": s3_version, "project_id": project_id},
    )
    if not changed.rowcount:
        raise Unavailable("Storing took longer than it may. Repeat the request.", retry_after=1)


def release(
    tx: db.Tx, object_id: UUID, *, of: State, to: State = "deleted", reason: str | None = None
) -> bool:
    """It counts no longer, and is purged soon. Answers False where it was not in the state it is to leave."""
    row = tx.execute(
        """
        UPDATE storage.objects
        SET state = %(to)s, deleted_at = clock_timestamp(), reason = %(reason)s
        WHERE id = %(id)s AND state = %(of)s
        RETURNING organization_id, bytes
        """,
        {"id": object_id, "of": of, "to": to, "reason": reason},
    ).fetchone()
    if row is None:
        return False
    limits.give_back(tx, row["organization_id"], LIMIT, row["bytes"])
    return True


def expire(tx: db.Tx, organization_id: UUID) -> int:
    """Gives back what was granted to an organisation and did not come in time. Answers how many."""
    rows: list[dict[str, Any]] = tx.execute(
        """
        UPDATE storage.objects
        SET state = 'expired', deleted_at = clock_timestamp()
        WHERE id IN (
            SELECT id
            FROM storage.objects
            WHERE organization_id = %(organization_id)s
              AND state = 'granted'
              AND expires_at <= clock_timestamp()
            FOR UPDATE SKIP LOCKED
        )
        RETURNING bytes
        """,
        {"organization_id": organization_id},
    ).fetchall()
    if rows:
        limits.give_back(tx, organization_id, LIMIT, sum(row["bytes"] for row in rows))
    return len(rows)


# ---- what an organisation has ----


class StoredObject(BaseModel):
    """What is stored and counts. Versions of files are among them."""

    id: UUID
    project_id: UUID
    kind: Kind
    name: str
    content_type: str
    bytes: int
    width: int | None  # pixels, of an image whose header says so
    height: int | None
    created_by: UUID | None  # null: by a key
    created_at: datetime
    stored_at: datetime
    download_url: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an object is."""

    s3_key: str
    s3_version: str


def stored(
    tx: db.Tx, organization_id: UUID, *, before: UUID | None, limit: int
) -> list[tuple[StoredObject, Place]]:
    """Newest first."""
    rows = tx.execute(
        """
        SELECT id, project_id, kind, name, content_type, bytes, width, height, created_by, created_at,
               stored_at, s3_key, s3_version
        FROM storage.objects
        WHERE organization_id = %(organization_id)s
          AND state = 'stored'
          AND (%(before)s::uuid IS NULL OR id < %(before)s)
        ORDER BY id DESC
        LIMIT %(limit)s
        """,
        {"organization_id": organization_id, "before": before, "limit": limit},
    ).fetchall()
    return [(StoredObject.model_validate(row), Place(row["s3_key"], row["s3_version"])) for row in rows]


def delete(tx: db.Tx, organization_id: UUID, object_id: UUID) -> None:
    """Raises NotFound, Conflict for the version of files that is in force."""
    while not release(tx, object_id, of=_deletable(tx, organization_id, object_id)):
        pass  # it landed, or somebody else deleted it, a moment ago


def _deletable(tx: db.Tx, organization_id: UUID, object_id: UUID) -> State:
    """The state that it is in, of those that go on to others and never back."""
    row = tx.execute(
        """
        SELECT o.state, v.version = p.files_version AS in_force
        FROM storage.objects AS o
        LEFT JOIN projects.file_versions AS v ON v.object_id = o.id
        LEFT JOIN projects.projects AS p ON p.id = v.project_id
        WHERE o.id = %(id)s AND o.organization_id = %(organization_id)s AND o.state IN ('granted', 'stored')
        """,
        {"id": object_id, "organization_id": organization_id},
    ).fetchone()
    if row is None:
        raise NotFound("There is no such object. GET /v1/storage lists those there are.")
    if row["in_force"]:
        raise InvalidState(
            "This is the version of its project's files that is in force. Save or restore another one first.",
        )
    state: State = row["state"]
    return state
