"""What the function `openapi` answers to whoever asks: the document, and the page that shows it."""

import base64
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.senders import http_event, invoke

import openapi

ROOT = Path(__file__).resolve().parents[2]
PATHS = sorted(openapi.ASSETS)


def get(path: str, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return invoke(openapi.handler, http_event("GET", path, headers=named))


def test_the_document_is_answered_as_it_is_committed() -> None:
    answer = get("/openapi.json")
    assert (answer["statusCode"], answer["headers"]["content-type"]) == (200, "application/json")
    assert answer["body"] == (ROOT / "docs" / "openapi.json").read_text()
    assert json.loads(answer["body"])["openapi"] == "3.1.0"


@pytest.mark.parametrize("path", PATHS)
def test_everything_is_cached_until_it_changes(path: str) -> None:
    first = get(path)
    etag = first["headers"]["etag"]
    for match in (etag, etag.removeprefix("W/"), f'"another", {etag}', "*"):
        again = get(path, if_none_match=match)
        assert (again["statusCode"], again["body"], again["headers"]["etag"]) == (304, "", etag)
    assert get(path, if_none_match='"another"')["statusCode"] == 200
    assert "public" in first["headers"]["cache-control"]
    assert len({get(each)["headers"]["etag"] for each in PATHS}) == len(PATHS)


@pytest.mark.parametrize("path", PATHS)
def test_who_takes_gzip_gets_it_and_who_does_not_gets_the_same_without(path: str) -> None:
    plain = get(path)["body"].encode()
    for taken in ("gzip", "br, gzip;q=0.5", "*"):
        answer = get(path, accept_encoding=taken)
        assert answer["headers"]["content-encoding"] == "gzip"
        assert gzip.decompress(base64.b64decode(answer["body"])) == plain
    for refused in ("br", "gzip;q=0", "identity, gzip; q=0.0"):
        assert "content-encoding" not in get(path, accept_encoding=refused)["headers"]


def test_the_page_takes_nothing_from_elsewhere() -> None:
    page = get("/docs")
    policy = page["headers"]["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "://" not in page["body"] + get("/docs/start.js")["body"]
    assert "<script>" not in page["body"]  # which the policy would not run
    named = re.findall(r'(?:src|href)="([^"]+)"', page["body"])
    assert named
    assert {f"/{name}" for name in named} <= set(PATHS)


@pytest.mark.parametrize("path", ["/docs/secrets.json", "/docs/../openapi.py", "/docs/", "/openapi.json/"])
def test_no_other_file_is_given_away(path: str) -> None:
    answer = get(path)
    assert (answer["statusCode"], json.loads(answer["body"])["code"]) == (404, "not_found")


def test_it_starts_without_the_router_and_without_the_other_functions() -> None:
    code = "import json, sys, openapi; print(json.dumps(sorted(sys.modules)))"
    path = [str(ROOT / "layers" / "backplane"), str(ROOT / "functions" / "openapi"), *sys.path]
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path}; {code}"],
        check=True,
        capture_output=True,
        text=True,
    )
    loaded = set(json.loads(ran.stdout))
    assert not loaded & {
        "backplane.api",
        "backplane.db",
        "aws_lambda_powertools.event_handler",
        "boto3",
        "credits",
    }
