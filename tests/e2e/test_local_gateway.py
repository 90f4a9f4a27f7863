"""The gateway, held to what API Gateway does with an HTTP API."""

import base64
import http.client
import json
import socket
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from local import ports
from local.children import started_at
from local.gateway import Gateway
from local.http_api import HttpApi, Route
from local.server import Server
from tests.e2e.local_cloud import Answer, Toys, request, until

JSON = {"content-type": "application/json"}


def event_of(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    event: dict[str, Any] = answer.json()["event"]
    return event


def test_the_event_is_of_payload_format_2(toys: Toys) -> None:
    event = event_of(request(toys.api_url, "GET", "/any/a/b?x=1&x=2", headers={"User-Agent": "tester"}))

    assert event["version"] == "2.0"
    assert event["rawPath"] == "/any/a/b"
    assert event["rawQueryString"] == "x=1&x=2"
    assert event["queryStringParameters"] == {"x": "1,2"}
    assert event["pathParameters"] == {"proxy": "a/b"}
    assert event["requestContext"]["http"]["method"] == "GET"
    assert event["requestContext"]["http"]["path"] == "/any/a/b"
    assert event["requestContext"]["http"]["userAgent"] == "tester"
    assert event["requestContext"]["stage"] == "$default"


@pytest.mark.parametrize(
    ("method", "path", "key"),
    [
        ("POST", "/toy", "POST /toy"),
        ("GET", "/read/ada", "GET /read/{name}"),
        ("GET", "/any/x", "ANY /any/{proxy+}"),
        ("PATCH", "/any/x", "ANY /any/{proxy+}"),
    ],
)
def test_the_route_key_is_the_templates(toys: Toys, method: str, path: str, key: str) -> None:
    event = event_of(request(toys.api_url, method, path))

    assert event["routeKey"] == event["requestContext"]["routeKey"] == key


def test_header_names_are_lower_case_and_repeated_ones_are_joined(toys: Toys) -> None:
    connection = http.client.HTTPConnection(urlsplit(toys.api_url).netloc, timeout=30)
    connection.putrequest("GET", "/any/headers")
    for value in ("one", "two"):
        connection.putheader("X-Repeated-Header", value)
    connection.endheaders()
    headers = json.loads(connection.getresponse().read())["event"]["headers"]
    connection.close()

    assert headers["x-repeated-header"] == "one,two"
    assert all(name == name.lower() for name in headers)


def test_each_request_has_an_id_and_a_time_of_its_own(toys: Toys) -> None:
    before = datetime.now(UTC).timestamp() * 1000
    answers = [request(toys.api_url, "GET", "/any/id") for _ in range(2)]
    contexts = [event_of(answer)["requestContext"] for answer in answers]

    assert contexts[0]["requestId"] != contexts[1]["requestId"]
    assert all(uuid.UUID(context["requestId"]) for context in contexts)
    assert before - 1000 <= contexts[0]["timeEpoch"] <= contexts[1]["timeEpoch"]
    assert contexts[0]["time"].endswith("+0000")
    assert answers[0].headers["apigw-requestid"] == contexts[0]["requestId"]


def test_a_text_body_arrives_as_text(toys: Toys) -> None:
    event = event_of(request(toys.api_url, "POST", "/toy", '{"é": 1}'.encode(), JSON))

    assert event["body"] == '{"é": 1}'
    assert event["isBase64Encoded"] is False


@pytest.mark.parametrize("media_type", ["application/json", "application/octet-stream", "text/plain"])
def test_a_body_that_is_not_utf8_arrives_as_base64(toys: Toys, media_type: str) -> None:
    raw = b"\xff\xfe\x00 not text"
    event = event_of(request(toys.api_url, "POST", "/toy", raw, {"content-type": media_type}))

    assert event["isBase64Encoded"] is True
    assert base64.b64decode(event["body"]) == raw


def test_a_request_without_a_body_has_none(toys: Toys) -> None:
    event = event_of(request(toys.api_url, "GET", "/any/none"))

    assert "body" not in event


def test_a_chunked_body_arrives_whole(toys: Toys) -> None:
    connection = http.client.HTTPConnection(urlsplit(toys.api_url).netloc, timeout=30)
    connection.request("POST", "/toy", iter([b'{"a"', b": 1}"]), JSON, encode_chunked=True)
    event = json.loads(connection.getresponse().read())["event"]
    connection.close()

    assert event["body"] == '{"a": 1}'


def test_an_exception_is_a_500_without_detail(toys: Toys) -> None:
    answer = toys.order(do="raise")

    assert (answer.status, answer.json()) == (500, {"message": "Internal Server Error"})


def test_a_runtime_that_ends_is_a_500(toys: Toys) -> None:
    answer = toys.order(do="exit")

    assert (answer.status, answer.json()) == (500, {"message": "Internal Server Error"})
    assert toys.order().status == 200, "the next request has a runtime again"


def test_a_function_past_its_timeout_is_ended_and_is_a_503(toys: Toys) -> None:
    pid = toys.order().json()["pid"]
    began = started_at(pid)
    answer = toys.order(do="sleep", seconds=30)

    assert (answer.status, answer.json()) == (503, {"message": "Service Unavailable"})
    assert began
    assert started_at(pid) is None
    assert toys.order().status == 200, "the next request has a runtime again"


@pytest.mark.parametrize(
    "answer",
    [
        {"statusCode": "many"},
        {"statusCode": 200, "headers": {"x": "a\nb"}},
        {"statusCode": 200, "headers": "none"},
    ],
)
def test_an_answer_that_http_cannot_carry_is_a_500(toys: Toys, answer: dict[str, Any]) -> None:
    given = toys.order(do="answer", answer=answer)

    assert (given.status, given.json()) == (500, {"message": "Internal Server Error"})


def test_an_answer_that_looks_like_an_error_is_still_an_answer(toys: Toys) -> None:
    body = {"errorMessage": "mine", "errorType": "mine"}
    answer = toys.order(do="answer", answer=body)

    assert (answer.status, answer.json()) == (200, body)


def test_status_headers_cookies_and_binary_bodies_pass(toys: Toys) -> None:
    answer = toys.order(
        do="answer",
        answer={
            "statusCode": 201,
            "headers": {"content-type": "image/png", "x-request-id": "abc"},
            "cookies": ["a=1"],
            "body": base64.b64encode(b"\x89PNG").decode(),
            "isBase64Encoded": True,
        },
    )

    assert (answer.status, answer.body) == (201, b"\x89PNG")
    assert answer.headers["x-request-id"] == "abc"
    assert answer.headers["set-cookie"] == "a=1"
    assert answer.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nothing"),
        ("GET", "/toy"),
        ("POST", "/read/ada"),
        ("HEAD", "/read/ada"),
        ("POST", "//toy"),
        ("POST", "/toy/"),
        ("GET", "/any/"),
    ],
)
def test_what_the_template_has_no_route_for_is_a_404(toys: Toys, method: str, path: str) -> None:
    answer = request(toys.api_url, method, path)

    assert answer.status == 404
    assert method == "HEAD" or answer.json() == {"message": "Not Found"}


def test_a_query_that_is_not_utf8_is_no_defect(toys: Toys) -> None:
    assert request(toys.api_url, "GET", "/any/q?x=%FF").status == 200


def test_a_body_over_the_limit_is_a_413(toys: Toys) -> None:
    answer = request(toys.api_url, "POST", "/toy", b" " * (7 * 1024 * 1024), JSON)
    assert (answer.status, answer.json()) == (413, {"message": "Request Entity Too Large"})

    connection = http.client.HTTPConnection(urlsplit(toys.api_url).netloc, timeout=30)
    connection.putrequest("POST", "/toy")
    connection.putheader("content-length", str(11 * 1024 * 1024))
    connection.endheaders()
    assert connection.getresponse().status == 413, "refused by its length, before it is sent"
    connection.close()


@pytest.mark.parametrize("length", ["-1", "many"])
def test_a_length_that_is_none_is_a_400(toys: Toys, length: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(toys.api_url).netloc, timeout=30)
    connection.putrequest("POST", "/toy")
    connection.putheader("content-length", length)
    connection.endheaders()
    assert connection.getresponse().status == 400
    connection.close()


def test_a_body_over_the_gateways_limit_that_is_sent_all_the_same_is_a_413(toys: Toys) -> None:
    answer = request(toys.api_url, "POST", "/toy", b" " * (20 * 1024 * 1024), JSON)

    assert (answer.status, answer.json()) == (413, {"message": "Request Entity Too Large"})


def test_the_limit_counts_bytes_as_they_are_sent(toys: Toys) -> None:
    order = {"do": "answer", "answer": {"statusCode": 202}, "filler": "é" * (2 * 1024 * 1024)}
    body = json.dumps(order, ensure_ascii=False).encode()

    assert request(toys.api_url, "POST", "/toy", body, JSON).status == 202


def test_an_answer_over_lambdas_limit_is_a_500(toys: Toys) -> None:
    answer = toys.order(do="repeat", text="x" * 1000, times=7000)

    assert (answer.status, answer.json()) == (500, {"message": "Internal Server Error"})


@pytest.mark.parametrize(("length", "status"), [(9_000, 200), (10_300, 431), (70_000, 431)])
def test_headers_over_the_limit_are_a_431(toys: Toys, length: int, status: int) -> None:
    answer = request(toys.api_url, "GET", "/any/x", headers={"x-long": "x" * length})

    assert answer.status == status
    assert status == 200 or answer.json() == {"message": "Request Header Fields Too Large"}


def test_what_is_sent_on_the_wire_is_what_the_event_has(toys: Toys) -> None:
    lines = [
        "GET /any/caf%C3%A9%20x/%40?b=2&a=%C3%A9&b=3 HTTP/1.1",
        "Host: localhost:3000",
        "X_Under_Score: kept",
        "X-Under-Score: another",
        "Cookie: a=1; b=2",
        "cookie: c=3",
        "Connection: close",
    ]
    url = urlsplit(toys.api_url)
    with socket.create_connection((url.hostname, url.port), 30) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        with connection.makefile("rb") as stream:
            head, _, body = stream.read().partition(b"\r\n\r\n")
    event = json.loads(body)["event"]

    assert head.startswith(b"HTTP/1.1 200 OK")
    assert event["rawPath"] == "/any/café x/@"
    assert event["pathParameters"] == {"proxy": "café x/@"}
    assert event["rawQueryString"] == "b=2&a=%C3%A9&b=3"
    assert event["queryStringParameters"] == {"b": "2,3", "a": "é"}
    assert (event["headers"]["x_under_score"], event["headers"]["x-under-score"]) == ("kept", "another")
    assert event["cookies"] == ["a=1", "b=2", "c=3"]
    assert "cookie" not in event["headers"]
    assert event["requestContext"]["domainName"] == "localhost"


def test_a_handler_that_outlasts_the_integration_goes_on_alone(
    toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = HttpApi((Route("POST /toy", "Toy", "POST", "/toy", timeout=0.3),))
    gateway = Server(ports.listen(0), Gateway(impatient, toys.runtime))
    gateway.start()
    file = tmp_path / "pid"
    order = {"do": "pid", "seconds": 1, "file": str(file)}
    try:
        answer = request(gateway.url, "POST", "/toy", json.dumps(order).encode(), JSON)
    finally:
        gateway.stop()

    assert (answer.status, answer.json()) == (503, {"message": "Service Unavailable"})
    pid = int(file.read_text())
    assert toys.runtime.busy >= 1, "it still runs"
    until(lambda: not toys.runtime.busy, "it ends by itself")
    assert started_at(pid), "and its environment is kept"


def test_an_allowed_origin_may_read_answers_and_failures(toys: Toys) -> None:
    headers = {"origin": "https://b.example", "content-type": "application/json"}
    for body in (b"{}", b'{"do": "raise"}'):
        answer = request(toys.api_url, "POST", "/toy", body, headers)
        assert answer.headers["access-control-allow-origin"] == "https://b.example"
        assert answer.headers["access-control-expose-headers"] == "x-request-id"


def test_another_origin_may_not(toys: Toys) -> None:
    answer = request(toys.api_url, "GET", "/any/cors", headers={"origin": "https://evil.example"})

    assert "access-control-allow-origin" not in answer.headers


def test_a_preflight_is_answered_by_the_gateway(toys: Toys) -> None:
    headers = {"origin": "https://a.example", "access-control-request-method": "POST"}
    for path in ("/toy", "/any/x", "/nothing"):
        answer = request(toys.api_url, "OPTIONS", path, headers=headers)

        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert answer.headers["access-control-allow-methods"] == "GET,POST"
        assert answer.headers["access-control-allow-headers"] == "content-type"


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example", "access-control-request-method": "POST"},
        {"origin": "https://a.example"},
        {"access-control-request-method": "POST"},
        {},
    ],
)
def test_what_is_no_preflight_of_an_allowed_origin_is_told_nothing(
    toys: Toys, headers: dict[str, str]
) -> None:
    answer = request(toys.api_url, "OPTIONS", "/any/x", headers=headers)

    assert (answer.status, answer.body) == (204, b"")
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_a_functions_own_cors_headers_count_for_nothing(toys: Toys) -> None:
    headers = {"Access-Control-Allow-Origin": "*", "access-control-allow-credentials": "true"}
    answer = toys.order(do="answer", answer={"statusCode": 200, "headers": headers})

    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_an_answer_without_a_type_is_text(toys: Toys) -> None:
    answer = toys.order(do="answer", answer={"statusCode": 200, "body": "{}"})

    assert answer.headers["content-type"] == "text/plain;charset=UTF-8"


def test_head_is_answered_without_a_body_where_there_is_a_route_for_it(toys: Toys) -> None:
    answer = request(toys.api_url, "HEAD", "/any/x")

    assert (answer.status, answer.body) == (200, b"")


def test_a_connection_carries_many_requests(toys: Toys) -> None:
    connection = http.client.HTTPConnection(urlsplit(toys.api_url).netloc, timeout=30)
    ports = set()
    for number in range(3):
        connection.request("POST", "/toy", json.dumps({"number": number}), JSON)
        ports.add(connection.sock.getsockname())
        event = json.loads(connection.getresponse().read())["event"]
        assert json.loads(event["body"]) == {"number": number}
    connection.close()

    assert len(ports) == 1


def test_hundreds_of_connections_at_once_are_all_answered(toys: Toys) -> None:
    statuses: list[int] = []
    start = threading.Barrier(200)

    def ask() -> None:
        start.wait()
        statuses.append(toys.order().status)

    threads = [threading.Thread(target=ask) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert statuses == [200] * 200
