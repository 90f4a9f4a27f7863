"""A project's files: immutable versions 1, 2, 3 …, each an object in the bucket and a row that says what is
in it.

A save has two halves, so that no transaction is open while S3 is asked. `prepare` reads the version that it
begins from, reserves the bytes and puts the new object; `commit`, in a transaction of the caller's, moves the
project's pointer from that version to the next, if it still stands there. Between the two nothing is seen of
it, and what a cut there leaves is given back and purged when its grant expires. `save` is both, again and
again until it fits.
"""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from psycopg.types.json import Jsonb
from pydantic import BaseModel

from backplane import access, buckets, db, file_changes, outbox, stored_objects
from backplane.auth import Caller
from backplane.file_changes import Contents, Counts, IndexedFile, NewFile, Operation, Tree
from backplane.problems import Conflict, NotFound, Unavailable
from backplane.stored_objects import Granted

T = TypeVar("T")

LEAST_TIME = 3.0  # seconds; with less left a save is not begun again

# Runs work in a transaction and answers what it did: db.run, or api.Commit, which remembers the answer too.
Commit = Callable[[Callable[[db.Tx], T]], T]


@dataclass(frozen=True, slots=True)
class Change:
    operation: Operation
    files: list[NewFile]
    base_version: int | None = None  # None: the newest, whichever that is
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Restoration:
    version: int
    base_version: int | None = None
    message: str | None = None


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


@dataclass(frozen=True, slots=True)
class Prepared:
    """A version to be, whose object is in the bucket; or that nothing is to change."""

    access: access.Access
    created_by: UUID | None
    base: Version
    counts: Counts
    message: str | None
    restored_from: int | None = None
    tree: Tree | None = None  # None: nothing changes
    granted: Granted | None = None
    epoch_ms: int = 0
    s3_version: str = ""


class Saved(BaseModel):
    version: int
    s3_key: str
    sha256: str
    counts: Counts
    total_bytes: int


class VersionConflict(Conflict):
    """A save began from a version that is no longer the newest; `newest_version` says which is."""

    code = "version_conflict"

    def __init__(self, newest: int) -> None:
        super().__init__(
            f"The project's newest version is {newest}. Read it, put your changes on top, and save with"
            f" base_version {newest}."
        )
        self.newest = newest

    def body(self, request_id: str) -> dict[str, Any]:
        return super().body(request_id) | {"newest_version": self.newest}


class Moved(Exception):  # noqa: N818  what happened, not an error of anybody's
    """Somebody else saved meanwhile."""


def save(caller: Caller, project_id: UUID, change: Change | Restoration, commit_with: Commit[Saved]) -> Saved:
    """Raises VersionConflict where the base was named and is not the newest, NotFound, Forbidden,
    PlanLimitReached and what file_changes.apply raises.
    """
    while True:
        prepared = prepare(caller, project_id, change)
        try:
            return commit_with(lambda tx: commit(tx, prepared))  # noqa: B023  it is called at once
        except db.CommitUnknown:  # it may stand: its object must stay until that is known
            raise
        except Moved:
            discard(prepared)
        except BaseException:
            with suppress(Unavailable):
                discard(prepared)
            raise
        if db.remaining() < LEAST_TIME:
            raise Unavailable("Others save to this project all the time. Repeat the request.", retry_after=1)
        time.sleep(random.uniform(0, 0.1))  # noqa: S311  jitter, not a secret


def prepare(
    caller: Caller, project_id: UUID, change: Change | Restoration, *, scope: str = "files:write"
) -> Prepared:
    """The first half, in transactions of its own. Raises as `save` does."""
    found, base, source = _run(caller, lambda tx: _begin(tx, caller, project_id, change, scope))
    if change.base_version is not None and change.base_version != base.number:
        raise VersionConflict(base.number)
    if isinstance(change, Restoration):
        made = file_changes.tree_of(source.contents(), list(source.index), list(base.index))
    else:
        made = file_changes.apply(change.operation, change.files, list(base.index), base.contents)
    prepared = Prepared(
        access=found,
        created_by=caller.user_id,
        base=base,
        counts=made if isinstance(made, Counts) else made.counts,
        message=change.message,
        restored_from=change.version if isinstance(change, Restoration) else None,
    )
    return prepared if isinstance(made, Counts) else _put(prepared, made)


def _begin(
    tx: db.Tx, caller: Caller, project_id: UUID, change: Change | Restoration, scope: str
) -> tuple[access.Access, Version, Version]:
    """Where the project is, its newest version, and the one to restore, if so."""
    found = access.enter(tx, caller, project_id, scope)
    base = newest(tx, project_id)
    return found, base, read(tx, project_id, change.version) if isinstance(change, Restoration) else base


def _put(prepared: Prepared, tree: Tree) -> Prepared:
    found, base = prepared.access, prepared.base
    owner = stored_objects.Owner(found.organization_id, found.project_id, prepared.created_by)
    granted, epoch_ms = db.run(
        lambda tx: stored_objects.reserve_files(
            tx, owner, name=f"version {base.number + 1}", size=len(tree.body), epoch_ms=base.epoch_ms + 1
        ),
        organization_id=found.organization_id,
    )
    reserved = replace(prepared, tree=tree, granted=granted, epoch_ms=epoch_ms)
    try:
        return replace(reserved, s3_version=buckets.put_once(granted.s3_key, tree.body, tree.sha256))
    except BaseException:
        with suppress(Unavailable):
            discard(reserved)
        raise


def commit(tx: db.Tx, prepared: Prepared) -> Saved:
    """The second half. Enters the project's organisation. Raises Moved: `discard` it and prepare anew;
    NotFound where the project was deleted meanwhile, Unavailable where it took too long.
    """
    project_id, base = prepared.access.project_id, prepared.base
    db.enter(tx, prepared.access.organization_id)
    if prepared.tree is None or prepared.granted is None:
        _expect(tx, project_id, base.number)
        return Saved(
            version=base.number,
            s3_key=base.s3_key,
            sha256=base.sha256,
            counts=prepared.counts,
            total_bytes=base.total_bytes,
        )
    stored_objects.store(tx, prepared.granted, prepared.s3_version)
    moved = tx.execute(
        """
        UPDATE projects.projects
        SET files_version = files_version + 1
        WHERE id = %(id)s AND files_version = %(base)s AND deleted_at IS NULL
        """,
        {"id": project_id, "base": base.number},
    )
    if not moved.rowcount:
        _expect(tx, project_id, None)
    _insert(tx, prepared, prepared.tree, prepared.granted)
    saved = Saved(
        version=base.number + 1,
        s3_key=prepared.granted.s3_key,
        sha256=prepared.tree.sha256,
        counts=prepared.counts,
        total_bytes=prepared.tree.total_bytes,
    )
    outbox.append(
        tx,
        "files.saved",
        organization_id=prepared.access.organization_id,
        payload={
            "project_id": str(project_id),
            "version": saved.version,
            "total_bytes": saved.total_bytes,
        },
    )
    return saved


def discard(prepared: Prepared) -> None:
    """Gives back what a save reserved that is not to be committed. Its object is purged a little later."""
    granted = prepared.granted
    if granted is not None:
        db.run(
            lambda tx: stored_objects.release(tx, granted.id, of="granted"),
            organization_id=granted.organization_id,
        )


def _expect(tx: db.Tx, project_id: UUID, version: int | None) -> None:
    """Raises Moved where another version is in force, NotFound where the project is gone."""
    row = tx.execute(
        "SELECT files_version FROM projects.projects WHERE id = %s AND deleted_at IS NULL", [project_id]
    ).fetchone()
    if row is None:
        raise access.missing()
    if row["files_version"] != version:
        raise Moved


def _insert(tx: db.Tx, prepared: Prepared, tree: Tree, granted: Granted) -> None:
    tx.execute(
        """
        INSERT INTO projects.file_versions
            (project_id, organization_id, version, object_id, s3_key, s3_version, epoch_ms, sha256,
             total_bytes, files, base_version, restored_from, message, created_by)
        VALUES
            (%(project_id)s, %(organization_id)s, %(base_version)s + 1, %(object_id)s, %(s3_key)s,
             %(s3_version)s, %(epoch_ms)s, %(sha256)s, %(total_bytes)s, %(files)s, %(base_version)s,
             %(restored_from)s, %(message)s, %(created_by)s)
        """,
        {
            "project_id": prepared.access.project_id,
            "organization_id": granted.organization_id,
            "object_id": granted.id,
            "s3_key": granted.s3_key,
            "s3_version": prepared.s3_version,
            "epoch_ms": prepared.epoch_ms,
            "sha256": tree.sha256,
            "total_bytes": tree.total_bytes,
            "files": Jsonb([file.model_dump() for file in tree.index]),
            "base_version": prepared.base.number,
            "restored_from": prepared.restored_from,
            "message": prepared.message,
            "created_by": prepared.created_by,
        },
    )


def _run(caller: Caller, work: Callable[[db.Tx], T]) -> T:
    return db.run(work, organization_id=caller.organization_id, user_id=caller.user_id)


# ---- reading ----

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
        JOIN storage.objects AS o ON o.id = v.object_id
        WHERE v.project_id = %(project_id)s
          AND o.state = 'stored'
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
