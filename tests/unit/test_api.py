"""The HTTP edge, with routes of its own: what gets in, what comes out, and nothing but problems else."""

import base64
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from tests.senders import Answer, http_event
from tests.senders import call as invoke

from backplane import api, auth, config, paging
from backplane.problems import (
    FeatureNotInPlan,
    InsufficientCredits,
    Problem,
    Unauthorized,
    Unavailable,
    Unprocessable,
)

MEMBERS = {"type", "title", "status", "detail", "code", "request_id"}
CALLER = auth.Caller(
    kind="user",
    organization_id=UUID(int=1),
    user_id=UUID(int=2),
    key_id=None,
    role="viewer",
    scopes=frozenset({"read"}),
    is_platform_admin=False,
)

router = api.Router()
reached: list[dict[str, Any]] = []  # what routes were called with
raising: list[BaseException] = []  # what the next call of /v1/failing raises


class Thing(api.Body):
    count: int = Field(ge=1, le=100)
    name: str | None = None
    details: dict[str, Any] | None = None


class Made(BaseModel):
    count: int
    at: datetime


@router.post("/v1/things", scope="read", status_code=201)
def make(body: Thing, caller: api.Caller, key: api.IdempotencyKey) -> api.Response[Made]:
    reached.append({"body": body, "caller": caller, "key": key})
    return api.answer(Made(count=body.count, at=datetime(2026, 1, 1, tzinfo=UTC)), status_code=201)


@router.get("/v1/things", scope="read")
def things(caller: api.Caller, limit: paging.Limit = 20, cursor: paging.Cursor = None) -> paging.Page[int]:
    position = paging.decode_cursor(cursor, int)
    reached.append({"limit": limit, "caller": caller})
    return paging.Page(items=[position or 0], next_cursor=paging.encode_cursor(limit))


@router.get("/v1/replayed", scope="read")
def replayed(caller: api.Caller) -> api.Response[Made]:
    return api.answer(
        Made(count=caller.organization_id.int, at=datetime(2026, 1, 1, tzinfo=UTC)), replayed=True
    )


@router.delete("/v1/forbidden", scope="keys:manage")
def forbidden(caller: api.Caller) -> None:
    reached.append({"caller": caller})


@router.get("/v1/failing", scope="read")
def failing() -> Made:
    raise raising.pop()


@router.get("/v1/untrue", scope="read")
def untrue() -> Made:
    return {"count": "a secret of ours"}  # type: ignore[return-value]


handler = api.lambda_handler(router)


@pytest.fixture(autouse=True)
def signed_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`Bearer good` is somebody, everybody else is nobody."""

    def authenticate(headers: dict[str, str], *, path_organization: str | None) -> auth.Caller:
        assert path_organization is None
        if headers.get("authorization") != "Bearer good":
            raise Unauthorized("Send `Authorization: Bearer …`.")
        return CALLER

    monkeypatch.setattr(auth, "authenticate", authenticate)
    config.settings.cache_clear()
    reached.clear()
    raising.clear()
    yield
    config.settings.cache_clear()


def send(
    method: str,
    path: str,
    *,
    body: bytes | str | None = None,
    headers: dict[str, str] | None = None,
    **event: Any,
) -> Answer:
    return invoke(
        handler,
        http_event(
            method, path, body=body, headers={"authorization": "Bearer good"} | (headers or {}), **event
        ),
    )


def post(body: bytes | str | None, *, base64_encoded: bool = False, **headers: str) -> Answer:
    sent = {"idempotency-key": "key-1", "content-type": "application/json"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    return send("POST", "/v1/things", body=body, headers=sent, base64_encoded=base64_encoded)


def assert_problem(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.body["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.body) - {"errors"} == MEMBERS
    assert answer.body["status"] == status
    assert answer.body["request_id"] == answer.headers["x-request-id"]
    for error in answer.body.get("errors", []):
        assert set(error) == {"loc", "msg", "type"}
    if status != 500:
        assert answer.body["detail"]
        assert reached == []


# ---- what comes out ----


def test_an_answer_carries_its_request_id_and_is_kept_by_nobody() -> None:
    answer = post('{"count": 7}')
    assert (answer.status, answer.body) == (201, {"count": 7, "at": "2026-01-01T00:00:00Z"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req-")
    assert answer.headers["cache-control"] == "no-store"
    assert "idempotent-replayed" not in answer.headers
    assert reached[0]["caller"] == CALLER


def test_a_replay_says_so() -> None:
    assert send("GET", "/v1/replayed").headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize(
    ("problem", "headers"),
    [
        (InsufficientCredits("Buy some."), {}),
        (Unavailable("Later.", retry_after=3), {"retry-after": "3"}),
        (FeatureNotInPlan("No."), {}),
    ],
)
def test_a_problem_raised_in_a_route_is_the_answer(problem: Problem, headers: dict[str, str]) -> None:
    raising.append(problem)
    answer = send("GET", "/v1/failing")
    assert_problem(answer, problem.status, problem.code)
    assert answer.body["detail"] == problem.detail
    assert headers.items() <= answer.headers.items()


def test_an_unexpected_error_is_told_to_the_log_once_and_to_nobody_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    raising.append(ZeroDivisionError("a secret of ours"))
    answer = send("GET", "/v1/failing")
    assert_problem(answer, 500, "internal_error")
    assert "secret" not in json.dumps(answer.body)
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert errors[0].exc_info is not None
    assert isinstance(errors[0].exc_info[1], ZeroDivisionError)


def test_an_answer_of_the_wrong_form_is_our_fault_and_not_the_callers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer = send("GET", "/v1/untrue")
    assert_problem(answer, 500, "internal_error")
    assert "secret" not in json.dumps(answer.body)
    assert [record.levelname for record in caplog.records if record.exc_info] == ["ERROR"]


def test_one_failure_leaves_nothing_behind_for_the_next_request() -> None:
    raising.append(RuntimeError("once"))
    send("GET", "/v1/failing")
    assert_problem(invoke(handler, http_event("GET", "/v1/failing")), 401, "unauthorized")
    assert post('{"count": 1}').status == 201


# ---- who asks ----


@pytest.mark.parametrize(
    "event",
    [
        http_event("GET", "/v1/things", query={"limit": "x", "nonsense": "1"}),
        http_event("POST", "/v1/things", body="{", headers={"content-type": "text/plain"}),
        http_event("POST", "/v1/things", body="x" * (1024 * 1024 + 1)),
        http_event("DELETE", "/v1/forbidden"),
    ],
    ids=["a bad query", "a bad body", "a large body", "a missing scope"],
)
def test_who_is_not_known_learns_nothing_about_his_request(event: dict[str, Any]) -> None:
    answer = invoke(handler, event)
    assert_problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "errors" not in answer.body


def test_a_missing_scope_is_named_before_the_request_is_read() -> None:
    answer = send("DELETE", "/v1/forbidden", query={"nonsense": "1"})
    assert_problem(answer, 403, "forbidden")
    assert "`keys:manage`" in answer.body["detail"]


def test_a_header_is_found_whatever_its_case() -> None:
    event = http_event("GET", "/v1/things")
    event["headers"] = {"AuThOrIzAtIoN": "Bearer good"}
    assert invoke(handler, event).status == 200


def test_a_route_names_a_scope_or_is_public_and_never_both() -> None:
    with pytest.raises(ValueError, match="must name a scope"):
        api.Router().get("/v1/open")
    with pytest.raises(ValueError, match="must name a scope"):
        api.Router().get("/v1/plans", scope="read")
    api.Router().get("/v1/plans")


# ---- where ----


@pytest.mark.parametrize(
    "path", ["/v1/nothing", "/", "/v1/things/", "/v1/things/7", "/V1/things", "//v1/things"]
)
def test_an_unknown_path_is_not_found(path: str) -> None:
    assert_problem(send("GET", path), 404, "not_found")


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "NONSENSE"])
def test_a_method_that_a_path_does_not_take_is_told_those_it_takes(method: str) -> None:
    answer = send(method, "/v1/things")
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"


# ---- bodies ----


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/json ;x=y",
        " application/json",
    ],
)
def test_json_is_taken_under_every_spelling_of_its_type(content_type: str) -> None:
    assert post('{"count": 1}', content_type=content_type).status == 201


def test_a_body_without_a_type_is_taken_for_json() -> None:
    assert send("POST", "/v1/things", body='{"count": 1}', headers={"idempotency-key": "key-1"}).status == 201


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "application/problem+json",
        ";",
        "é",
    ],
)
def test_another_type_is_refused(content_type: str) -> None:
    answer = post('{"count": 1}', content_type=content_type)
    assert_problem(answer, 415, "unsupported_media_type")
    assert "application/json" in answer.body["detail"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{", "line 1, column 2"),
        ('{"count": 1}x', "Extra data"),
        ('{"count": 1,}', "not JSON"),
        ("{'count': 1}", "not JSON"),
        ("\ufeff{}", "not JSON"),
        ('{"count": NaN}', "NaN"),
        ('{"count": Infinity}', "Infinity"),
        ('{"count": -Infinity}', "-Infinity"),
        ('{"count": 1e999}', "too large a number"),
        ('{"count": -1e999}', "too large a number"),
        ('{"count": ' + "9" * 5000 + "}", "too long"),
        ('{"count": 1, "count": 2}', "'count' twice"),
        ('{"count": 1, "details": {"a": [{"b": 1, "b": 1}]}}', "'b' twice"),
        ('{"count": 1, "name": "\\u0000"}', "NUL"),
        ('{"count": 1, "details": {"\\u0000": 1}}', "NUL"),
        ('{"count": 1, "name": "\\ud800"}', "lone surrogate"),
        ('{"count": 1, "name": "\\udc00\\ud800"}', "lone surrogate"),
        ("[" * 66 + "]" * 66, "64 levels deep"),
        ("[" * 100_000, "too deeply"),
        ('{"a":' * 100_000, "too deeply"),
    ],
)
def test_what_cannot_be_read_or_stored_is_refused(body: str, says: str) -> None:
    answer = post(body)
    assert_problem(answer, 400, "invalid_payload")
    assert says in answer.body["detail"]


@pytest.mark.parametrize(
    "body", [b"\xff\xfe", b'{"name": "\xc3"}', b'{"name": "\xed\xa0\x80"}', "é".encode("latin-1")]
)
def test_a_body_that_is_not_utf_8_is_refused(body: bytes) -> None:
    answer = post(body, base64_encoded=True)
    assert_problem(answer, 400, "invalid_payload")
    assert "UTF-8" in answer.body["detail"]


def test_base64_that_is_none_is_refused() -> None:
    event = http_event(
        "POST", "/v1/things", body="@@@", headers={"authorization": "Bearer good", "idempotency-key": "1"}
    )
    assert_problem(invoke(handler, event | {"isBase64Encoded": True}), 400, "invalid_payload")


def test_a_body_in_base64_is_the_same_body() -> None:
    assert post('{"count": 3, "name": "é"}'.encode(), base64_encoded=True).status == 201
    assert reached[0]["body"] == Thing(count=3, name="é")


@pytest.mark.parametrize("base64_encoded", [False, True])
def test_a_mebibyte_is_taken_and_a_byte_more_is_not(base64_encoded: bool) -> None:
    largest = b'{"count": 1, "name": "' + b"x" * (1024 * 1024 - 24) + b'"}'
    assert len(largest) == 1024 * 1024
    assert post(largest, base64_encoded=base64_encoded).status == 201
    reached.clear()
    answer = post(largest + b" ", base64_encoded=base64_encoded)
    assert_problem(answer, 413, "too_large")
    assert "1048576" in answer.body["detail"]


def test_the_size_is_counted_in_bytes() -> None:
    assert_problem(post('{"name": "' + "é" * (512 * 1024) + '"}'), 413, "too_large")


@pytest.mark.parametrize(
    ("body", "loc", "kind"),
    [
        (None, ["body", "count"], "missing"),
        ("", ["body", "count"], "missing"),
        ("null", ["body"], "missing"),
        ("[]", ["body"], "model_attributes_type"),
        ('"text"', ["body"], "model_attributes_type"),
        ("7", ["body"], "model_attributes_type"),
        ("{}", ["body", "count"], "missing"),
        ('{"count": "5"}', ["body", "count"], "int_type"),
        ('{"count": true}', ["body", "count"], "int_type"),
        ('{"count": 1.0}', ["body", "count"], "int_type"),
        ('{"count": 1.5}', ["body", "count"], "int_type"),
        ('{"count": null}', ["body", "count"], "int_type"),
        ('{"count": []}', ["body", "count"], "int_type"),
        ('{"count": 0}', ["body", "count"], "greater_than_equal"),
        ('{"count": 101}', ["body", "count"], "less_than_equal"),
        ('{"count": ' + "9" * 400 + "}", ["body", "count"], "less_than_equal"),
        ('{"count": 1, "name": 5}', ["body", "name"], "string_type"),
        ('{"count": 1, "details": []}', ["body", "details"], "dict_type"),
        ('{"count": 1, "Count": 1}', ["body", "Count"], "extra_forbidden"),
        ('{"count": 1, "__proto__": {}}', ["body", "__proto__"], "extra_forbidden"),
    ],
)
def test_a_body_of_the_wrong_form_is_refused_with_its_place(
    body: str | None, loc: list[str], kind: str
) -> None:
    answer = post(body)
    assert_problem(answer, 422, "invalid_request")
    assert [(error["loc"], error["type"]) for error in answer.body["errors"]] == [(loc, kind)]
    assert ".".join(loc) in answer.body["detail"]


def test_the_callers_values_are_not_repeated_to_him() -> None:
    answer = post('{"count": "my password"}')
    assert_problem(answer, 422, "invalid_request")
    assert "my password" not in json.dumps(answer.body)


# ---- headers and queries ----


@pytest.mark.parametrize("key", ["k", "k" * 255, "order 1, line 2", "~!@#$%^&*()", "a,b"])
def test_a_printable_key_arrives_whole(key: str) -> None:
    assert post('{"count": 1}', idempotency_key=key).status == 201
    assert reached[0]["key"] == key


@pytest.mark.parametrize("key", ["", "k" * 256, "é", "a\tb", "a\n", "\x00", "\x7f", "\u0661", "\U0001f600"])
def test_a_key_that_is_not_printable_or_too_long_is_refused(key: str) -> None:
    answer = post('{"count": 1}', idempotency_key=key)
    assert_problem(answer, 422, "invalid_request")
    assert answer.body["errors"][0]["loc"] == ["header", "idempotency-key"]


def test_a_missing_key_is_asked_for() -> None:
    answer = send("POST", "/v1/things", body='{"count": 1}')
    assert_problem(answer, 422, "invalid_request")
    assert answer.body["errors"] == [
        {"loc": ["header", "idempotency-key"], "msg": "Field required", "type": "missing"}
    ]


def test_all_that_is_wrong_is_told_at_once() -> None:
    answer = send("POST", "/v1/things", body='{"count": 0, "x": 1}')
    assert {tuple(error["loc"]) for error in answer.body["errors"]} == {
        ("header", "idempotency-key"),
        ("body", "count"),
        ("body", "x"),
    }


def test_an_unknown_query_parameter_is_refused_by_name() -> None:
    answer = send("GET", "/v1/things", query={"limit": "5", "order": "asc", "page": "2"})
    assert_problem(answer, 422, "invalid_request")
    assert [error["loc"] for error in answer.body["errors"]] == [["query", "order"], ["query", "page"]]
    assert_problem(send("GET", "/v1/failing", query={"limit": "5"}), 422, "invalid_request")


@pytest.mark.parametrize(
    "limit", ["0", "101", "-1", "x", "", "1.5", "1,2", "9" * 400, "NaN", "\u0665", "\x00"]
)
def test_a_bad_limit_is_refused(limit: str) -> None:
    answer = send("GET", "/v1/things", query={"limit": limit})
    assert_problem(answer, 422, "invalid_request")
    assert answer.body["errors"][0]["loc"] == ["query", "limit"]


@pytest.mark.parametrize("limit", ["1", "100"])
def test_a_limit_within_its_bounds_is_taken(limit: str) -> None:
    assert send("GET", "/v1/things", query={"limit": limit}).status == 200
    assert reached[0]["limit"] == int(limit)


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "=",
        "é",
        "a" * 201,
        *(
            base64.urlsafe_b64encode(text.encode()).decode()
            for text in (
                "true",
                "null",
                "-1",
                "1.0",
                '"7"',
                "[7]",
                "{}",
                str(2**63),
                "9" * 100,
                "NaN",
                "\x00",
                "7 8",
            )
        ),
    ],
)
def test_a_cursor_that_is_not_ours_is_refused(cursor: str) -> None:
    answer = send("GET", "/v1/things", query={"cursor": cursor})
    assert_problem(answer, 422, "invalid_request")
    assert answer.body["errors"][0]["loc"] == ["query", "cursor"]


@pytest.mark.parametrize("position", [0, 1, 20, 2**63 - 1])
def test_a_cursor_comes_back_as_it_went(position: int) -> None:
    answer = send("GET", "/v1/things", query={"cursor": paging.encode_cursor(position)})
    assert answer.body["items"] == [position]
    assert paging.decode_cursor(paging.encode_cursor("2026-01-01"), str) == "2026-01-01"
    assert paging.decode_cursor(None, str) is None


@pytest.mark.parametrize("position", ["a\x00", "\ud800", ["2026-01-01", "\x00"]])
def test_a_cursor_that_no_row_can_stand_at_is_refused(position: object) -> None:
    cursor = base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")
    with pytest.raises(Unprocessable):
        paging.decode_cursor(cursor, type(position))


# ---- whatever comes ----

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["count", "name", "details"]) | st.text(), inner)
    ),
    max_leaves=20,
)
bodies = (
    st.none()
    | anything.map(json.dumps)
    | st.text()
    | st.dictionaries(st.sampled_from(["count", "name", "details"]), anything).map(json.dumps)
)
text = st.text(max_size=300)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies, key=st.none() | text, content_type=st.none() | text | st.just("application/json"))
def test_whatever_is_posted_is_taken_or_refused_with_a_reason(
    body: str | None, key: str | None, content_type: str | None
) -> None:
    reached.clear()
    headers = {"idempotency-key": key, "content-type": content_type}
    answer = send(
        "POST",
        "/v1/things",
        body=body,
        headers={name: value for name, value in headers.items() if value is not None},
    )
    if answer.status == 201:
        assert len(reached) == 1
    else:
        assert 400 <= answer.status < 500
        assert_problem(answer, answer.status, answer.body["code"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200))
def test_whatever_bytes_are_posted_are_taken_or_refused_with_a_reason(body: bytes) -> None:
    reached.clear()
    answer = post(body, base64_encoded=True)
    assert 400 <= answer.status < 500
    assert_problem(answer, answer.status, answer.body["code"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.dictionaries(st.sampled_from(["limit", "cursor"]) | text, text | st.integers().map(str)))
def test_whatever_is_asked_is_answered_or_refused_with_a_reason(query: dict[str, str]) -> None:
    reached.clear()
    answer = send("GET", "/v1/things", query=query)
    if answer.status == 200:
        assert set(query) <= {"limit"}
    else:
        assert_problem(answer, 422, "invalid_request")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=st.sampled_from(["GET", "POST", "PUT", "DELETE"]) | text, path=text | st.just("/v1/things"))
def test_whatever_address_is_called_answers(method: str, path: str) -> None:
    answer = invoke(handler, http_event(method, path))
    assert answer.status in {401, 404, 405}
    assert set(answer.body) == MEMBERS
