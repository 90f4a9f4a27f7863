"""The API's description over HTTP: fetched, shown, and kept to, preflights included."""

import gzip
import re

from tests import contract
from tests.contract import OPERATIONS
from tests.e2e.local_cloud import Cloud
from tests.senders import Answer

ORIGIN = "http://localhost:5173"


def test_the_page_and_all_that_it_is_made_of_are_served_to_anyone(stack: Cloud) -> None:
    page = stack.request("GET", "/docs")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in re.findall(r'(?:src|href)="([^"]+)"', page.body.decode()):
        answer = stack.request("GET", f"/{name}", headers={"accept-encoding": "gzip"})
        assert (answer.status, answer.headers["content-encoding"]) == (200, "gzip"), name
        assert len(gzip.decompress(answer.body)) > 100
        cached = stack.request("GET", f"/{name}", headers={"if-none-match": answer.headers["etag"]})
        assert (cached.status, cached.body) == (304, b"")
    assert stack.request("GET", "/openapi.json").json() == contract.DOCUMENT


def test_every_path_of_the_document_answers_a_browsers_preflight(stack: Cloud) -> None:
    cors = contract.DOCUMENT["x-cors"]
    for path in {operation.path for operation in OPERATIONS if operation.path.startswith("/v1/")}:
        asked = {"origin": ORIGIN, "access-control-request-method": "POST"}
        answer = stack.request("OPTIONS", re.sub(r"{\w+}", "x", path), headers=asked)
        assert answer.status == 204, path
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert set(answer.headers["access-control-allow-methods"].split(",")) == set(cors["allow_methods"])
        assert set(answer.headers["access-control-allow-headers"].split(",")) == set(cors["allow_headers"])


def test_what_is_answered_over_http_is_what_the_document_tells(stack: Cloud) -> None:
    token = stack.token("user_reader_of_docs")
    for path, credential, status in (
        ("/v1/plans", None, 200),
        ("/v1/me", token, 200),
        ("/v1/projects", token, 200),
        ("/v1/credits/entries", token, 200),
        ("/v1/credits", "nonsense", 401),
        ("/v1/admin/users", token, 403),
        ("/health", None, 200),
    ):
        headers = {"authorization": f"Bearer {credential}"} if credential else {}
        over_http = stack.request("GET", path, headers=headers)
        answer = Answer(over_http.status, over_http.headers, over_http.json())
        assert answer.status == status, (path, answer.body)
        contract.check("GET", path, answer)
