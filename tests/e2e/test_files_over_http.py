"""Files and uploads against the whole stack: S3, EventBridge and the queue between them included."""

import json
from typing import Any

from tests.e2e.local_cloud import Answer, Cloud, until
from tests.e2e.test_slice_over_http import get, sign_up
from tests.posts import post

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"


def test_files_are_saved_and_an_upload_lands(stack: Cloud) -> None:
    _, token = sign_up(stack)

    def send(path: str, **body: Any) -> Answer:
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        return stack.request("POST", path, json.dumps(body).encode(), headers)

    project = f"/v1/projects/{send('/v1/projects', title='Fitness').json()['id']}"
    saved = send(f"{project}/files", files=[{"path": "src/App.tsx", "content": "é"}])
    assert (saved.status, saved.json()["version"]) == (201, 1)
    found = get(stack, f"{project}/files/content?path=src/App.tsx", token)
    assert (found.status, found.json()["content"]) == (200, "é")
    size = get(stack, "/v1/storage", token).json()["used_bytes"]

    grant = send(f"{project}/uploads", name="logo.png", content_type="image/png", bytes=1000).json()
    assert post(grant, PNG) in {200, 204}

    def landed() -> Any:
        storage = get(stack, "/v1/storage", token).json()
        return storage if [item for item in storage["items"] if item["id"] == grant["object_id"]] else None

    storage = until(landed, "the upload should have been stored")
    assert storage["used_bytes"] == size + len(PNG)
    assert [item["kind"] for item in storage["items"]] == ["upload", "files"]
