"""A project's files, saved, read and restored in versions; uploads, and what an organisation has stored."""

from typing import Annotated, Self
from uuid import UUID

from aws_lambda_powertools.event_handler.openapi.params import Path, Query
from pydantic import BaseModel, Field, model_validator

from backplane import (
    access,
    api,
    buckets,
    file_versions,
    limits,
    paging,
    sent_files,
    stored_objects,
    subscriptions,
    uploads,
)
from backplane import files as stored
from backplane.file_changes import IndexedFile, Operation
from backplane.problems import Conflict, InvalidState, NotFound, PlanLimitReached, TooLarge

MAX_BUNDLE_BYTES = 100 * 1024**2

router = api.Router(with_nul=True)  # files' contents go to S3, which stores any text

Version = Annotated[int, Query(ge=1, lt=2**63)]
VersionInPath = Annotated[int, Path(ge=1, lt=2**63)]
Message = Annotated[str, Field(max_length=2000, pattern=r"^[^\x00]*$")]


class Save(api.Body):
    base_version: sent_files.Base | None = None
    operation: Operation = "upsert"
    files: list[sent_files.File] | None = sent_files.NOT_LOGGED
    bundle_id: sent_files.BundleId | None = None  # instead of files: a bundle of them that was uploaded
    message: Message | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.files is None and self.bundle_id is None:
            raise ValueError("send files, or the bundle_id of an uploaded bundle")
        if self.files == [] and self.operation != "replace":
            raise ValueError("name at least one file; only replace takes none, and deletes all")
        sent_files.check(self.operation, self.files, self.bundle_id)
        return self


class Restore(api.Body):
    base_version: sent_files.Base | None = None
    message: Message | None = None


class NewBundle(api.Body):
    bytes: int = Field(ge=1, le=MAX_BUNDLE_BYTES)


class NewUpload(api.Body):
    name: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f/\\]*$")]
    content_type: Annotated[str, Field(max_length=100)]
    bytes: int = Field(ge=1, lt=2**63)


class Storage(BaseModel):
    used_bytes: int  # stored, and reserved for uploads under way
    limit_bytes: int  # -1: unlimited
    items: list[stored_objects.StoredObject]
    next_cursor: str | None


class Files(BaseModel):
    version: int  # 0: nothing was saved yet
    sha256: str | None
    total_bytes: int
    files: list[IndexedFile]
    download_url: str | None


class Content(BaseModel):
    version: int
    path: str
    bytes: int
    sha256: str
    content: str


@router.post(
    "/v1/projects/<project_id>/files",
    scope="files:write",
    status_code=201,
    raises=(Conflict, InvalidState, PlanLimitReached, stored.VersionConflict),
)
def save(project_id: UUID, body: Save, caller: api.Caller, commit: api.Commit) -> stored.Saved:
    """Saves files as a new version of the project.

    Files of more than 6 MB in all come as a bundle: `POST …/files/bundles`, upload it, then save it here.
    """
    change = stored.Change(
        operation=body.operation,
        files=sent_files.named(caller, project_id, body.files, body.bundle_id, "files:write"),
        base_version=body.base_version,
        message=body.message,
        bundle_id=body.bundle_id,
    )
    saved: stored.Saved = stored.save(caller, project_id, change, commit)
    return saved


@router.post(
    "/v1/projects/<project_id>/files/bundles",
    scope="files:write",
    status_code=201,
    raises=(PlanLimitReached,),
)
def grant_bundle(project_id: UUID, body: NewBundle, caller: api.Caller, tx: api.Tx) -> uploads.Granted:
    """Permits the upload of many files at once, as JSON that reads `{"files": {path: content}}`."""
    found = access.enter(tx, caller, project_id, "files:write")
    owner = stored_objects.Owner(found.organization_id, project_id, caller.user_id)
    return uploads.grant(tx, owner, "bundle", name="bundle", content_type=buckets.JSON, size=body.bytes)


@router.post(
    "/v1/projects/<project_id>/versions/<version>/restore",
    scope="files:write",
    status_code=201,
    raises=(InvalidState, PlanLimitReached, stored.VersionConflict),
)
def restore(
    project_id: UUID, version: VersionInPath, body: Restore, caller: api.Caller, commit: api.Commit
) -> stored.Saved:
    """Makes a new version that holds what an older one held."""
    change = stored.Restoration(version, base_version=body.base_version, message=body.message)
    saved: stored.Saved = stored.save(caller, project_id, change, commit)
    return saved


@router.get("/v1/projects/<project_id>/files", scope="read")
def files(project_id: UUID, caller: api.Caller, tx: api.Tx, version: Version | None = None) -> Files:
    """The files of a version, the newest if none is named, and where to download them all."""
    found = _version(tx, access.look(tx, caller, project_id), version)
    return Files(
        version=found.number,
        sha256=found.sha256 or None,
        total_bytes=found.total_bytes,
        files=list(found.index),
        download_url=buckets.download_url(found.s3_key, found.s3_version, f"version-{found.number}.json")
        if found.number
        else None,
    )


@router.get("/v1/projects/<project_id>/files/content", scope="read", raises=(TooLarge,))
def content(
    project_id: UUID,
    path: Annotated[str, Query(min_length=1, max_length=1024)],
    caller: api.Caller,
    commit: api.Commit,
    version: Version | None = None,
) -> Content:
    """One file of a version."""
    found = commit(lambda tx: _version(tx, access.look(tx, caller, project_id), version))
    file = next((each for each in found.index if each.path == path), None)
    if file is None:
        raise NotFound(f"Version {found.number} has no file of this path. GET its /files lists those it has.")
    text = found.contents()[path]
    if paging.bytes_sent(text) > paging.MAX_SENT:
        raise TooLarge("This file is too large to be sent by itself. Fetch the version by its download_url.")
    return Content(version=found.number, content=text, **file.model_dump())


@router.get("/v1/projects/<project_id>/versions", scope="read")
def versions(
    project_id: UUID, caller: api.Caller, tx: api.Tx, limit: paging.Limit = 20, cursor: paging.Cursor = None
) -> paging.Page[file_versions.VersionEntry]:
    """A project's versions, newest first."""
    access.enter(tx, caller, project_id, "read")
    before = paging.decode_cursor(cursor, int)
    found = file_versions.versions(tx, project_id, before=before, limit=limit + 1)
    return paging.page(found, limit, lambda last: last.version)


# ---- uploads and storage ----


@router.post(
    "/v1/projects/<project_id>/uploads", scope="files:write", status_code=201, raises=(PlanLimitReached,)
)
def upload(project_id: UUID, body: NewUpload, caller: api.Caller, tx: api.Tx) -> uploads.Granted:
    """Permits an upload: send the file with `fields` to `url` as multipart/form-data, the file last."""
    found = access.enter(tx, caller, project_id, "files:write")
    owner = stored_objects.Owner(found.organization_id, project_id, caller.user_id)
    return uploads.grant(tx, owner, "upload", name=body.name, content_type=body.content_type, size=body.bytes)


@router.get("/v1/storage", scope="read")
def storage(
    caller: api.Caller, tx: api.Tx, limit: paging.Limit = 20, cursor: paging.Cursor = None
) -> Storage:
    """What the organisation has stored, newest first, and how much it may store."""
    organization_id = caller.organization_id
    stored_objects.expire(tx, organization_id)
    plan = subscriptions.entitlement(tx, organization_id)
    usage = limits.usage(tx, organization_id, plan.plan_id)[stored_objects.LIMIT]
    before = paging.decode_cursor(cursor, UUID)
    found = stored_objects.stored(tx, organization_id, before=before, limit=limit + 1)
    items = [
        item.model_copy(
            update={"download_url": buckets.download_url(place.s3_key, place.s3_version, item.name)}
        )
        for item, place in found
    ]
    page = paging.page(items, limit, lambda last: last.id)
    return Storage(
        used_bytes=usage.used, limit_bytes=usage.limit, items=page.items, next_cursor=page.next_cursor
    )


@router.delete("/v1/storage/<object_id>", scope="files:write", raises=(InvalidState,))
def delete(object_id: UUID, caller: api.Caller, tx: api.Tx) -> None:
    """Deletes a stored object, and gives its bytes back to the plan."""
    stored_objects.delete(tx, caller.organization_id, object_id)


def _version(tx: api.Tx, found: access.Access, number: int | None) -> file_versions.Version:
    """Of a public project others read the newest only: what it held before is its people's."""
    newest = file_versions.newest(tx, found.project_id)
    if number in {None, newest.number}:
        return newest
    if found.standing == "public":
        raise NotFound(f"The project has no version {number}. GET its /versions lists them.")
    return file_versions.read(tx, found.project_id, number or 0)


handler = api.lambda_handler(router)
