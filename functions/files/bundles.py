"""Bundles of files: what is too large for a request's body, uploaded to S3 and read from there."""

from uuid import UUID

from backplane import access, buckets, db, requests, uploads
from backplane.auth import Caller
from backplane.file_changes import NewFile
from backplane.problems import InvalidState, Unprocessable


def read_bundle(caller: Caller, project_id: UUID, bundle_id: UUID) -> list[NewFile]:
    """The files of a bundle {"files": {path: content}}. Raises NotFound, Conflict (nothing was uploaded yet),
    Unprocessable, InvalidPayload.
    """

    def find(tx: db.Tx) -> tuple[str, int]:
        access.enter(tx, caller, project_id, "files:write")
        return uploads.bundle(tx, project_id, bundle_id)

    key, size = db.run(find, organization_id=caller.organization_id, user_id=caller.user_id)
    data = buckets.read_bounded(key, size + 1)
    if data is None:
        raise InvalidState("The bundle was granted and not uploaded yet.")
    if len(data) > size:
        raise _unfit(f"The bundle has more than the {size} bytes that were granted.")
    body = requests.parse_json(requests.text(data), with_nul=True)
    files = body.get("files") if isinstance(body, dict) else None
    if not isinstance(files, dict) or not all(isinstance(content, str) for content in files.values()):
        raise _unfit('The bundle must be {"files": {path: content}}, each content a text.')
    return [NewFile(path, content) for path, content in files.items()]


def _unfit(detail: str) -> Unprocessable:
    errors = [{"loc": ["body", "bundle_id"], "msg": detail, "type": "invalid_bundle"}]
    return Unprocessable(detail, errors=errors)
