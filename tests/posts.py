"""Uploads as a browser makes them: a form with a grant's fields and a file."""

import urllib.error
import urllib.request
from typing import Any

BOUNDARY = "----backplane"


def post(grant: dict[str, Any], data: bytes, **fields: str) -> int:
    """S3's status."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in (grant["fields"] | fields).items()
    ]
    file = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n\r\n'.encode()
    body = b"".join([*parts, file, data, f"\r\n--{BOUNDARY}--\r\n".encode()])
    request = urllib.request.Request(  # noqa: S310  moto's address, on this machine
        grant["url"], body, {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            status: int = response.status
    except urllib.error.HTTPError as error:
        return error.code
    return status
