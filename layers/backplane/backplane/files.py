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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from psycopg.types.json import Jsonb
from pydantic import BaseModel

from backplane import access, buckets, db, file_changes, file_versions, outbox, stored_objects, uploads
from backplane.auth import Caller
from backplane.file_changes import Counts, IndexedFile, NewFile, Operation, Tree
from backplane.file_versions import Version
from backplane.problems import Conflict, Unavailable
from backplane.stored_objects import Granted

T = TypeVar("T")

LEAST_TIME = 3.0  # seconds; with less left a save is not begun again


@dataclass(frozen=True, slots=True)
class Change:
    operation: Operation
    files: list[NewFile]
    base_version: int | None = None  # None: the newest, whichever that is
    message: str | None = None
    bundle_id: UUID | None = None  # the uploaded bundle that the files are from: saved, it counts no longer


@dataclass(frozen=True, slots=True)
class Restoration:
    version: int
    base_version: int | None = None
    message: str | None = None
    bundle_id: None = None


@dataclass(frozen=True, slots=True)
class Author:
    """Who makes a version, and with which scope if the project is shared with him."""

    user_id: UUID | None  # None: a key
    scope: str = "files:write"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A version to be, whose object is in the bucket."""

    granted: Granted
    s3_version: str
    epoch_ms: int  # in its key
    sha256: str
    total_bytes: int
    index: Sequence[IndexedFile]
    created_by: UUID | None
    base_version: int = 0
    restored_from: int | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    access: access.Access
    base: Version
    counts: Counts
    placed: Placed | None  # None: nothing is to change
    bundle_id: UUID | None


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


def save(
    caller: Caller,
    project_id: UUID,
    change: Change | Restoration,
    commit_with: Callable[[Callable[[db.Tx], Saved]], T],
    *,
    author: Author | None = None,
) -> T:
    """What `commit_with` answers, which runs what it is given in a transaction: db.run, or api.Commit, which
    remembers the answer too. Without `author` the version is the caller's.

    Raises VersionConflict where the base was named and is not the newest, NotFound, Forbidden,
    PlanLimitReached and what file_changes.apply raises.
    """
    while True:
        prepared = prepare(caller, project_id, change, author or Author(caller.user_id))
        try:
            with kept_if_committed(prepared.placed):
                return commit_with(lambda tx: commit(tx, prepared))  # noqa: B023  it is called at once
        except Moved:
            pass
        if db.remaining() < LEAST_TIME:
            raise Unavailable("Others save to this project all the time. Repeat the request.", retry_after=1)
        time.sleep(random.uniform(0, 0.1))  # noqa: S311  jitter, not a secret


def prepare(caller: Caller, project_id: UUID, change: Change | Restoration, author: Author) -> Prepared:
    """The first half, in transactions of its own. Raises as `save` does."""

    def begin(tx: db.Tx) -> tuple[access.Access, Version, Version]:
        found = access.enter(tx, caller, project_id, author.scope)
        base = file_versions.newest(tx, project_id)
        if isinstance(change, Restoration):
            return found, base, file_versions.read(tx, project_id, change.version)
        return found, base, base

    found, base, source = db.run(begin, organization_id=caller.organization_id, user_id=caller.user_id)
    if change.base_version is not None and change.base_version != base.number:
        raise VersionConflict(base.number)
    if isinstance(change, Restoration):
        made = file_changes.tree_of(source.contents(), list(source.index), list(base.index))
    else:
        made = file_changes.apply(change.operation, change.files, list(base.index), base.contents)
    if isinstance(made, Counts):
        return Prepared(found, base, made, None, change.bundle_id)
    return Prepared(found, base, made.counts, _put(found, base, made, change, author), change.bundle_id)


def _put(
    found: access.Access, base: Version, tree: Tree, change: Change | Restoration, author: Author
) -> Placed:
    owner = stored_objects.Owner(found.organization_id, found.project_id, author.user_id)
    granted, epoch_ms = db.run(
        lambda tx: stored_objects.reserve_files(
            tx, owner, name=f"version {base.number + 1}", size=len(tree.body), epoch_ms=base.epoch_ms + 1
        ),
        organization_id=found.organization_id,
    )
    try:
        s3_version = buckets.put_once(granted.s3_key, tree.body, tree.sha256)
    except BaseException:
        give_back(granted)
        raise
    return Placed(
        granted=granted,
        s3_version=s3_version,
        epoch_ms=epoch_ms,
        sha256=tree.sha256,
        total_bytes=tree.total_bytes,
        index=tree.index,
        created_by=author.user_id,
        base_version=base.number,
        restored_from=change.version if isinstance(change, Restoration) else None,
        message=change.message,
    )


def commit(tx: db.Tx, prepared: Prepared) -> Saved:
    """The second half, in a transaction of the caller's organisation; it enters a shared project's.

    Raises Moved: give back and prepare anew; NotFound where the project was deleted meanwhile, Unavailable
    where it took too long.
    """
    project_id, base, placed = prepared.access.project_id, prepared.base, prepared.placed
    if prepared.access.standing != "member":
        db.enter(tx, prepared.access.organization_id)
    if prepared.bundle_id is not None:
        uploads.use(tx, prepared.bundle_id)
    if placed is None:
        _expect(tx, project_id, base.number)
        return Saved(
            version=base.number,
            s3_key=base.s3_key,
            sha256=base.sha256,
            counts=prepared.counts,
            total_bytes=base.total_bytes,
        )
    record(tx, project_id, placed)
    return Saved(
        version=base.number + 1,
        s3_key=placed.granted.s3_key,
        sha256=placed.sha256,
        counts=prepared.counts,
        total_bytes=placed.total_bytes,
    )


@contextmanager
def kept_if_committed(placed: Placed | None) -> Iterator[None]:
    """Gives back what was reserved for a version whose commit, in here, raises."""
    try:
        yield
    except db.CommitUnknown:  # it may stand: its object must stay until that is known
        raise
    except BaseException:
        if placed is not None:
            give_back(placed.granted)
        raise


def give_back(granted: Granted) -> None:
    """The bytes that were reserved for what is not to be. Its object is purged a little later."""
    with suppress(Unavailable):  # then its grant expires
        db.run(
            lambda tx: stored_objects.release(tx, granted.id, of="granted"),
            organization_id=granted.organization_id,
        )


def record(tx: db.Tx, project_id: UUID, placed: Placed) -> None:
    """Puts a version in force: its object is stored, the project's pointer moves to it, the version's row is
    there, and an event tells of it. Raises Moved, NotFound, Unavailable.
    """
    stored_objects.store(tx, placed.granted, placed.s3_version, project_id)
    moved = tx.execute(
        """
        UPDATE projects.projects
        SET files_version = files_version + 1
        WHERE id = %(id)s AND files_version = %(base)s AND deleted_at IS NULL
        """,
        {"id": project_id, "base": placed.base_version},
    )
    if not moved.rowcount:
        _expect(tx, project_id, None)
    _insert(tx, project_id, placed)
    payload = {
        "project_id": str(project_id),
        "version": placed.base_version + 1,
        "total_bytes": placed.total_bytes,
    }
    outbox.append(tx, "files.saved", organization_id=placed.granted.organization_id, payload=payload)


def _expect(tx: db.Tx, project_id: UUID, version: int | None) -> None:
    """Raises Moved where another version is in force, NotFound where the project is gone."""
    row = tx.execute(
        "SELECT files_version FROM projects.projects WHERE id = %s AND deleted_at IS NULL", [project_id]
    ).fetchone()
    if row is None:
        raise access.missing()
    if row["files_version"] != version:
        raise Moved


def _insert(tx: db.Tx, project_id: UUID, placed: Placed) -> None:
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
            "project_id": project_id,
            "organization_id": placed.granted.organization_id,
            "object_id": placed.granted.id,
            "s3_key": placed.granted.s3_key,
            "s3_version": placed.s3_version,
            "epoch_ms": placed.epoch_ms,
            "sha256": placed.sha256,
            "total_bytes": placed.total_bytes,
            "files": Jsonb([file.model_dump() for file in placed.index]),
            "base_version": placed.base_version,
            "restored_from": placed.restored_from,
            "message": placed.message,
            "created_by": placed.created_by,
        },
    )
