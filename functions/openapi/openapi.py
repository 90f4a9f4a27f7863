"""The API's own description: the OpenAPI document, and Swagger UI to read it and to try it with.

Both are files. The document is made from all functions' code by `make openapi` and none of that code is
read here; Swagger UI comes with Powertools, in the layer.
"""

import base64
import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from backplane import requests
from backplane.problems import NotFound

HERE: Final = Path(__file__).parent
JSON: Final = "application/json"
SCRIPT: Final = "text/javascript; charset=utf-8"
# Nothing but this origin's own files runs, and nobody shows the page in a frame of his. Swagger UI sets
# styles in elements' attributes and has its icons in its style sheet.
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Asked for again after five minutes, and then answered 304 unless a deployment has changed it.
CACHE_CONTROL: Final = "public, max-age=300"

logger = Logger()


@dataclass(frozen=True, slots=True)
class Asset:
    content_type: str
    file: Path


def _assets() -> Mapping[str, Asset]:
    package = find_spec("aws_lambda_powertools")
    if package is None or package.origin is None:
        raise RuntimeError("Powertools is in the layer")
    swagger_ui = Path(package.origin).parent / "event_handler" / "openapi" / "swagger_ui"
    return {
        "/openapi.json": Asset(JSON, HERE / "openapi.json"),
        "/docs": Asset("text/html; charset=utf-8", HERE / "docs.html"),
        "/docs/start.js": Asset(SCRIPT, HERE / "start.js"),
        "/docs/swagger-ui-bundle.min.js": Asset(SCRIPT, swagger_ui / "swagger-ui-bundle.min.js"),
        "/docs/swagger-ui.min.css": Asset("text/css; charset=utf-8", swagger_ui / "swagger-ui.min.css"),
    }


ASSETS: Final = _assets()


@logger.inject_lambda_context(correlation_id_path="requestContext.requestId", clear_state=True)
def handler(event: dict[str, Any], _: LambdaContext) -> dict[str, Any]:
    """Answers API Gateway's payload 2.0 without asking who calls."""
    request_id = requests.request_id(event)
    path = event["rawPath"]
    if path not in ASSETS:
        return NotFound("There is nothing at this path. The page is /docs.").response(request_id)
    compressed, etag = _compressed(path)
    headers = {
        "cache-control": CACHE_CONTROL,
        "content-security-policy": CONTENT_SECURITY_POLICY,
        "etag": etag,
        "referrer-policy": "no-referrer",
        "vary": "accept-encoding",
        "x-content-type-options": "nosniff",
        "x-request-id": request_id,
    }
    if {etag, "*"} & _etags(requests.header(event, "if-none-match")):
        return {"statusCode": 304, "headers": headers, "body": "", "isBase64Encoded": False}
    headers["content-type"] = ASSETS[path].content_type
    if _takes_gzip(requests.header(event, "accept-encoding")):
        headers["content-encoding"] = "gzip"
        body = base64.b64encode(compressed).decode()
        return {"statusCode": 200, "headers": headers, "body": body, "isBase64Encoded": True}
    body = ASSETS[path].file.read_text(encoding="utf-8")
    return {"statusCode": 200, "headers": headers, "body": body, "isBase64Encoded": False}


@cache
def _compressed(path: str) -> tuple[bytes, str]:
    """An asset's bytes, and its entity tag: weak, because it stands for them with and without gzip."""
    data = ASSETS[path].file.read_bytes()
    return gzip.compress(data, mtime=0), f'W/"{hashlib.sha256(data).hexdigest()[:32]}"'


def _etags(header: str | None) -> set[str]:
    """Of If-None-Match, which compares weakly (RFC 9110, 13.1.2)."""
    tags = (tag.strip() for tag in (header or "").split(","))
    return {tag if tag == "*" else f"W/{tag.removeprefix('W/')}" for tag in tags}


def _takes_gzip(header: str | None) -> bool:
    """Whether Accept-Encoding names gzip, and not to refuse it."""
    for coding in (header or "").split(","):
        name, _, weight = coding.strip().partition(";")
        if name.strip().lower() in {"gzip", "*"}:
            return weight.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False
