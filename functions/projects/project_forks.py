"""Forks: a project of one's own, made of what one may read of another.

As with a save of files, the object comes before the transaction that makes the project and puts it in force.
A cut between the two leaves an object whose grant expires, and no project.
"""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import project_rows
from project_requests import Changes, NewProject, Title
from project_views import ProjectDetails, PublicProject

from backplane import access, api, buckets, db, file_versions, files, messages, stored_objects
from backplane.auth import Caller
from backplane.file_versions import Version
from backplane.problems import FeatureNotInPlan, Forbidden


class Fork(api.Body):
    title: Title | None = None  # None: the source's
    is_public: bool | None = None  # None: as for a new project, and never of a private one
    include_messages: bool = False


@dataclass(frozen=True, slots=True)
class Copied:
    """The source's files as they were a moment ago."""

    project_id: UUID  # of the project to be
    placed: files.Placed | None  # None: there are none


def fork(
    caller: Caller,
    source_id: UUID,
    wanted: Fork,
    commit: Callable[[Callable[[db.Tx], ProjectDetails]], ProjectDetails],
) -> ProjectDetails:
    """Takes over what the project is, the newest version of its files, and of one's own or a shared one also
    its configuration, and the messages where they are wanted. Its keys, its domains, its people and what its
    files were before stay with the source.

    Raises NotFound, Forbidden (the messages of a public project), FeatureNotInPlan, PlanLimitReached.
    """
    copied = _copy_files(caller, source_id)
    with files.kept_if_committed(copied.placed):
        return commit(lambda tx: _make(tx, caller, source_id, wanted, copied))


def _copy_files(caller: Caller, source_id: UUID) -> Copied:
    def begin(tx: db.Tx) -> tuple[UUID, Version, int]:
        access.look(tx, caller, source_id)
        version = file_versions.newest(tx, source_id)
        row = tx.execute(
            "SELECT platform.new_id() AS id, (SELECT bytes FROM storage.objects WHERE s3_key = %s) AS bytes",
            [version.s3_key],
        ).fetchone()
        return (row or {})["id"], version, (row or {})["bytes"]

    project_id, version, size = db.run(begin, organization_id=caller.organization_id, user_id=caller.user_id)
    if not version.index:
        return Copied(project_id, None)
    owner = stored_objects.Owner(caller.organization_id, project_id, caller.user_id)
    granted, epoch_ms = db.run(
        lambda tx: stored_objects.reserve_files(
            tx, owner, name="version 1", size=size, epoch_ms=0, is_new=True
        ),
        organization_id=caller.organization_id,
    )
    try:
        s3_version = buckets.copy(version.s3_key, version.s3_version, granted.s3_key)
    except BaseException:
        files.give_back(granted)
        raise
    placed = files.Placed(
        granted=granted,
        s3_version=s3_version,
        epoch_ms=epoch_ms,
        sha256=version.sha256,
        total_bytes=version.total_bytes,
        index=version.index,
        created_by=caller.user_id,
    )
    return Copied(project_id, placed)


def _make(tx: db.Tx, caller: Caller, source_id: UUID, wanted: Fork, copied: Copied) -> ProjectDetails:
    source = access.find(tx, caller, source_id)
    original: PublicProject
    if source.standing == "public":
        if wanted.include_messages:
            raise Forbidden("This project is public, its messages are not: fork it without them.")
        original, said = project_rows.read_public(tx, source_id), []
    else:
        original = project_rows.read(tx, source_id, None)
        said = messages.all_of(tx, source_id) if wanted.include_messages else []
    db.enter(tx, caller.organization_id)
    new = NewProject.model_validate(
        {
            "title": wanted.title or original.title,
            "description": original.description,
            "kind": original.kind,
            "template": original.template and original.template.model_dump(),
            "features": original.features,
            "tags": original.tags,
            "is_public": _visibility(tx, caller, wanted, original),
        }
    )
    made = project_rows.create(tx, caller, new, id=copied.project_id, forked_from=source_id)
    if isinstance(original, ProjectDetails):
        taken = {"config": original.config}
        if original.app is not None:
            taken["app"] = original.app.model_dump()
        project_rows.change(tx, caller, made.id, Changes.model_validate(taken))
    messages.append(tx, made.id, said, created_by=caller.user_id)
    if copied.placed is not None:
        files.record(tx, made.id, copied.placed)
    return project_rows.read(tx, made.id, caller.user_id)


def _visibility(tx: db.Tx, caller: Caller, wanted: Fork, original: PublicProject) -> bool | None:
    """What is private must not be shown to everybody only because the plan has no private projects."""
    if wanted.is_public is not None or original.is_public:
        return wanted.is_public
    try:
        return project_rows.visibility(tx, caller.organization_id, wanted=False)
    except FeatureNotInPlan as error:
        raise FeatureNotInPlan(
            f"{error.detail} This project is private, and so is its fork: send is_public true for one that"
            " everybody sees."
        ) from error
