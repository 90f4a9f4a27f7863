"""The event of payload format 2.0, from requests as they are sent."""

import base64
from datetime import UTC, datetime
from typing import Any

import pytest
from local.http_api import HttpApi, Route
from local.http_event import HttpRequest, http_event

API = HttpApi((Route("ANY /items/{id}/{rest+}", "Items", None, "/items/{id}/{rest+}"),))
NOW = datetime(2026, 3, 12, 19, 3, 58, 390_000, tzinfo=UTC)


def event(
    target: str = "/items/1/a", *headers: tuple[str, str], method: str = "GET", body: bytes = b""
) -> dict[str, Any]:
    sent = HttpRequest(method, target, [("Host", "localhost:3000"), *headers], body, "127.0.0.9", 3000)
    match = API.match(method, sent.path)
    assert match is not None
    return http_event(sent, match, request_id="the-id", now=NOW)


def test_a_plain_request_gives_the_members_of_the_guide_and_no_others() -> None:
    given = event("/items/1/a", ("User-Agent", "tester"))
    trace = given["headers"].pop("x-amzn-trace-id")

    assert trace.startswith(f"Root=1-{int(NOW.timestamp()):08x}-")
    assert given == {
        "version": "2.0",
        "routeKey": "ANY /items/{id}/{rest+}",
        "rawPath": "/items/1/a",
        "rawQueryString": "",
        "headers": {
            "content-length": "0",
            "host": "localhost:3000",
            "user-agent": "tester",
            "x-forwarded-for": "127.0.0.9",
            "x-forwarded-port": "3000",
            "x-forwarded-proto": "http",
        },
        "pathParameters": {"id": "1", "rest": "a"},
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "local",
            "domainName": "localhost",
            "domainPrefix": "localhost",
            "http": {
                "method": "GET",
                "path": "/items/1/a",
                "protocol": "HTTP/1.1",
                "sourceIp": "127.0.0.9",
                "userAgent": "tester",
            },
            "requestId": "the-id",
            "routeKey": "ANY /items/{id}/{rest+}",
            "stage": "$default",
            "time": "12/Mar/2026:19:03:58 +0000",
            "timeEpoch": 1773342238390,
        },
        "isBase64Encoded": False,
    }


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        ("a=1&a=2&b=3", {"a": "1,2", "b": "3"}),
        ("a=%C3%A9+b&%26=%3D", {"a": "é b", "&": "="}),
        ("empty=&bare&a=1%2C2", {"empty": "", "bare": "", "a": "1,2"}),
        ("A=1&a=2", {"A": "1", "a": "2"}),
    ],
)
def test_a_query_is_decoded_and_joined_and_stays_as_sent_beside_it(
    query: str, parameters: dict[str, str]
) -> None:
    given = event(f"/items/1/a?{query}")

    assert given["queryStringParameters"] == parameters
    assert given["rawQueryString"] == query


def test_a_question_mark_without_a_query_gives_no_parameters() -> None:
    given = event("/items/1/a?")

    assert given["rawQueryString"] == ""
    assert "queryStringParameters" not in given


def test_the_path_is_decoded_everywhere_and_so_are_its_parameters() -> None:
    given = event("/items/caf%C3%A9%20x/a%40b/c%25")

    assert given["rawPath"] == given["requestContext"]["http"]["path"] == "/items/café x/a@b/c%"
    assert given["pathParameters"] == {"id": "café x", "rest": "a@b/c%"}


@pytest.mark.parametrize("target", ["http://localhost:3000/items/1/a?x=1", "http://localhost:3000/items/1/a"])
def test_a_target_in_absolute_form_is_its_path(target: str) -> None:
    assert event(target)["rawPath"] == "/items/1/a"


def test_header_names_are_lower_case_repeated_ones_joined_and_underscores_kept() -> None:
    headers = event(
        "/items/1/a",
        ("X-One", "a"),
        ("x-one", "b"),
        ("X_One", "c"),
        ("X-Empty", ""),
        ("Accept", "text/html, */*"),
    )["headers"]

    assert headers["x-one"] == "a,b"
    assert headers["x_one"] == "c"
    assert headers["x-empty"] == ""
    assert headers["accept"] == "text/html, */*"


def test_headers_of_the_connection_are_left_out_and_the_length_is_the_bodys() -> None:
    headers = event(
        "/items/1/a",
        ("Connection", "keep-alive"),
        ("Transfer-Encoding", "chunked"),
        ("Expect", "100-continue"),
        ("Content-Type", "text/plain"),
        method="POST",
        body=b"abc",
    )["headers"]

    assert not {"connection", "transfer-encoding", "expect"} & headers.keys()
    assert headers["content-length"] == "3"


def test_who_forwarded_before_comes_first() -> None:
    headers = event("/items/1/a", ("X-Forwarded-For", "10.0.0.1"), ("X-Forwarded-Proto", "https"))["headers"]

    assert headers["x-forwarded-for"] == "10.0.0.1, 127.0.0.9"
    assert headers["x-forwarded-proto"] == "http", "how it came to us"


def test_cookies_are_a_list_as_sent_and_no_header() -> None:
    given = event("/items/1/a", ("Cookie", 'a=1; b="x y"'), ("cookie", "c=%20;d"))

    assert given["cookies"] == ["a=1", 'b="x y"', "c=%20", "d"]
    assert "cookie" not in given["headers"]


@pytest.mark.parametrize(
    ("headers", "is_text"),
    [
        ({"Content-Type": "application/json"}, True),
        ({"Content-Type": "Application/JSON; charset=utf-8"}, True),
        ({"Content-Type": "application/problem+json"}, True),
        ({"Content-Type": "image/svg+xml"}, True),
        ({"Content-Type": "text/csv"}, True),
        ({"Content-Type": "application/x-www-form-urlencoded"}, False),
        ({"Content-Type": "multipart/form-data; boundary=x"}, False),
        ({"Content-Type": "application/octet-stream"}, False),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, False),
        ({}, False),
    ],
)
def test_a_body_is_text_or_base64_by_its_type(headers: dict[str, str], is_text: bool) -> None:
    given = event("/items/1/a", *headers.items(), method="POST", body=b"a=1")

    assert given["isBase64Encoded"] is not is_text
    assert given["body"] == ("a=1" if is_text else base64.b64encode(b"a=1").decode())


def test_text_that_is_no_utf8_is_base64() -> None:
    given = event("/items/1/a", ("Content-Type", "application/json"), method="POST", body=b"\xff\x00")

    assert (given["isBase64Encoded"], base64.b64decode(given["body"])) == (True, b"\xff\x00")


def test_the_size_of_a_request_is_its_line_and_its_headers_values() -> None:
    request = HttpRequest("GET", "/a?b=1", [("Host", "abc"), ("X", "12345")], b"", "127.0.0.1", 80)

    assert request.size == len("GET /a?b=1 HTTP/1.1") + len("abc") + len("12345")
