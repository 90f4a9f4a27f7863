"""Files as a request sends them: named in its body or, where that is too small for them, as a bundle that was
uploaded to S3 before.
"""

from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field

from backplane import access, api, buckets, db, requests, uploads
from backplane.auth import Caller
from backplane.file_changes import NewFile, Operation
from backplane.problems import InvalidPayload, InvalidState, Unprocessable

Base = Annotated[int, Field(ge=0, lt=2**63)]
BundleId = Annotated[UUID, Field(strict=False)]

# Powertools makes the text of what a route is called with, for a debug log that nobody reads.
NOT_LOGGED: Any = Field(default=None, repr=False)


class File(api.Body):
    path: str
    content: str | None = None  # not of a file that is to be deleted


def check(operation: Operation, files: Sequence[File] | None, bundle_id: UUID | None) -> None:
    """For a body's validator. Raises ValueError where they don't fit together."""
    if files is not None and bundle_id is not None:
        raise ValueError("send either files or the bundle_id of an uploaded bundle")
    if bundle_id is not None and operation == "delete":
        raise ValueError("name the files to delete; a bundle brings contents")
    if operation != "delete" and any(file.content is None for file in files or ()):
        raise ValueError(f"each file needs its content to {operation} it")


def named(
    caller: Caller, project_id: UUID, files: Sequence[File] | None, bundle_id: UUID | None, scope: str
) -> list[NewFile]:
    """The files of the body, or else of the bundle. Raises as `read_bundle` does."""
    if bundle_id is None:
        return [NewFile(file.path, file.content) for file in files or ()]
    return read_bundle(caller, project_id, bundle_id, scope)


def read_bundle(caller: Caller, project_id: UUID, bundle_id: UUID, scope: str) -> list[NewFile]:
    """The files of a bundle {"files": {path: content}}. Raises NotFound, InvalidState (nothing was uploaded
    yet), Unprocessable.
    """

    def find(tx: db.Tx) -> tuple[str, int]:
        access.enter(tx, caller, project_id, scope)
        return uploads.bundle(tx, project_id, bundle_id)

    key, size = db.run(find, organization_id=caller.organization_id, user_id=caller.user_id)
    data = buckets.read_bounded(key, size + 1)
    if data is None:
        raise InvalidState("The bundle was granted and not uploaded yet.")
    if len(data) > size:
        raise _unfit(f"The bundle has more than the {size} bytes that were granted.")
    try:
        body = requests.parse_json(requests.text(data), with_nul=True)
    except InvalidPayload as error:
        raise _unfit(error.detail.replace("The body", "The bundle", 1)) from error
    files = body.get("files") if isinstance(body, dict) else None
    if not isinstance(files, dict) or not all(isinstance(content, str) for content in files.values()):
        raise _unfit('The bundle must be {"files": {path: content}}, each content a text.')
    return [NewFile(path, content) for path, content in files.items()]


def _unfit(detail: str) -> Unprocessable:
    errors = [{"loc": ["body", "bundle_id"], "msg": detail, "type": "invalid_bundle"}]
    return Unprocessable(detail, errors=errors)
