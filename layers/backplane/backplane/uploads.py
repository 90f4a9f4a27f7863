"""Uploads: granted as presigned POSTs, and stored when S3 tells that they landed.

Between the two they are reserved: their bytes count. What lands is looked at again, since the sender may be
anybody who got hold of the grant.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from backplane import access, buckets, content_types, db, image_sizes, limits, outbox, stored_objects
from backplane.config import settings
from backplane.problems import NotFound, TooLarge, Unprocessable
from backplane.stored_objects import Kind, Owner, State

# An upload that began in time may take longer, and S3 may tell of it later.
GRANT = timedelta(seconds=buckets.GRANT_SECONDS) + timedelta(hours=1)


class Granted(BaseModel):
    """Where to POST the object as multipart/form-data: `fields` first, then the field `file`."""

    object_id: UUID
    url: str
    fields: dict[str, str]
    expires_at: datetime  # an upload may begin until then


def grant(tx: db.Tx, owner: Owner, kind: Kind, *, name: str, content_type: str, size: int) -> Granted:
    """Raises PlanLimitReached, Unprocessable (the type), TooLarge, NotFound (the project)."""
    if content_type not in content_types.TYPES:
        raise Unprocessable(
            f"Uploads may be of these types: {', '.join(content_types.TYPES)}.",
            errors=[{"loc": ["body", "content_type"], "msg": "Unknown type", "type": "content_type"}],
        )
    if size > settings().max_upload_bytes:
        raise TooLarge(f"An upload has at most {settings().max_upload_bytes} bytes.")
    stored_objects.make_room(tx, owner.organization_id, size)
    row = tx.execute(
        """
        INSERT INTO storage.objects
            (organization_id, project_id, kind, s3_key, name, content_type, bytes, created_by, expires_at, id)
        SELECT p.organization_id, p.id, %(kind)s, 'uploads/' || p.id || '/' || new.id, %(name)s,
               %(content_type)s, %(size)s, %(created_by)s, clock_timestamp() + %(lasts)s, new.id
        FROM projects.projects AS p
        CROSS JOIN (SELECT platform.new_id() AS id) AS new
        WHERE p.id = %(project_id)s AND p.deleted_at IS NULL
        RETURNING id, s3_key, expires_at
        """,
        {
            "project_id": owner.project_id,
            "created_by": owner.created_by,
            "kind": kind,
            "name": name,
            "content_type": content_type,
            "size": size,
            "lasts": GRANT,
        },
    ).fetchone()
    if row is None:
        raise access.missing()
    post = buckets.presigned_post(row["s3_key"], content_type, size)
    ends = row["expires_at"] - GRANT + timedelta(seconds=buckets.GRANT_SECONDS)
    return Granted(object_id=row["id"], url=post.url, fields=post.fields, expires_at=ends)


def bundle(tx: db.Tx, project_id: UUID, object_id: UUID) -> tuple[str, int]:
    """The key of a bundle of files that was not saved yet, and its bytes at most. Raises NotFound."""
    row = tx.execute(
        """
        SELECT s3_key, bytes
        FROM storage.objects
        WHERE id = %(id)s
          AND project_id = %(project_id)s
          AND kind = 'bundle'
          AND state IN ('granted', 'stored')
        """,
        {"id": object_id, "project_id": project_id},
    ).fetchone()
    if row is None:
        raise NotFound("The project has no such bundle, or it was saved, rejected or given back.")
    return row["s3_key"], row["bytes"]


def use(tx: db.Tx, object_id: UUID) -> None:
    """A bundle is saved: it counts no longer."""
    for state in ("granted", "stored"):
        stored_objects.release(tx, object_id, of=state)


# ---- landing ----


@dataclass(frozen=True, slots=True)
class Row:
    """What landing needs to know of a grant."""

    id: UUID
    organization_id: UUID
    project_id: UUID
    kind: Kind
    state: State
    s3_version: str | None
    name: str
    content_type: str
    bytes: int


def of_key(tx: db.Tx, key: str) -> Row | None:
    row = tx.execute(
        """
        SELECT id, organization_id, project_id, kind, state, s3_version, name, content_type, bytes
        FROM storage.objects
        WHERE s3_key = %s
        """,
        [key],
    ).fetchone()
    return None if row is None else Row(**row)


def fault(granted: Row, landed: buckets.Landed) -> str | None:
    """Why what landed is not what was granted; None: it is."""
    if landed.size > granted.bytes:
        return f"it has {landed.size} bytes, and {granted.bytes} were granted"
    if landed.content_type != granted.content_type:
        return f"it says that it is {landed.content_type}, and {granted.content_type} was granted"
    if not content_types.is_of(granted.content_type, landed.head):
        return f"its first bytes are not of {granted.content_type}"
    return None


def store(tx: db.Tx, granted: Row, landed: buckets.Landed) -> bool:
    """It is there: counts what it has. Answers False where it is granted no more."""
    image = image_sizes.size_of(granted.content_type, landed.head)
    changed = tx.execute(
        """
        UPDATE storage.objects
        SET state = 'stored', s3_version = %(version)s, bytes = %(size)s, width = %(width)s,
            height = %(height)s, stored_at = clock_timestamp()
        WHERE id = %(id)s AND state = 'granted'
        """,
        {
            "id": granted.id,
            "version": landed.version,
            "size": landed.size,
            "width": image and image.width,
            "height": image and image.height,
        },
    )
    if not changed.rowcount:
        return False
    limits.correct(tx, granted.organization_id, stored_objects.LIMIT, landed.size - granted.bytes)
    _tell(tx, "file.stored", granted, bytes=landed.size)
    return True


def reject(tx: db.Tx, granted: Row, reason: str) -> bool:
    """It counts no longer. Answers False where it is granted no more."""
    if not stored_objects.release(tx, granted.id, of="granted", to="rejected", reason=reason):
        return False
    _tell(tx, "file.rejected", granted, reason=reason)
    return True


def record_unknown(tx: db.Tx, key: str, version: str, size: int) -> None:
    tx.execute(
        """
        INSERT INTO storage.unknown_objects (s3_key, s3_version, bytes)
        VALUES (%(key)s, %(version)s, %(size)s)
        ON CONFLICT (s3_key, s3_version) DO NOTHING
        """,
        {"key": key, "version": version, "size": size},
    )


def _tell(tx: db.Tx, event_type: str, granted: Row, **more: Any) -> None:
    if granted.kind == "bundle":  # nobody's but the save's that follows
        return
    payload = {
        "project_id": str(granted.project_id),
        "object_id": str(granted.id),
        "name": granted.name,
        "content_type": granted.content_type,
    }
    outbox.append(tx, event_type, organization_id=granted.organization_id, payload=payload | more)
