"""What a caller sees of an error."""

import inspect
import json
from http import HTTPStatus

import pytest

from backplane import problems
from backplane.problems import (
    Conflict,
    IdempotencyConflict,
    Internal,
    InvalidState,
    NotFound,
    Problem,
    Unauthorized,
    Unavailable,
    Unprocessable,
)

MEMBERS = {"type", "title", "status", "detail", "code", "request_id"}
KINDS = [kind for _, kind in inspect.getmembers(problems, inspect.isclass) if issubclass(kind, Problem)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_problem_has_the_same_members_and_a_status_of_http(kind: type[Problem]) -> None:
    problem = kind() if kind is Internal else kind("Do this.")
    answer = problem.response("req-1")
    body = json.loads(answer["body"])
    assert set(body) == MEMBERS
    assert body["status"] == answer["statusCode"]
    assert body["title"] == HTTPStatus(answer["statusCode"]).phrase
    assert body["type"] == f"urn:backplane:problem:{body['code']}"
    assert body["request_id"] == answer["headers"]["x-request-id"] == "req-1"
    assert answer["headers"]["content-type"] == "application/problem+json"
    assert answer["headers"]["cache-control"] == "no-store"
    assert answer["isBase64Encoded"] is False


def test_errors_are_told_only_where_there_are_any() -> None:
    errors = [{"loc": ["body", "n"], "msg": "Wrong", "type": "wrong"}]
    assert Unprocessable("Do this.", errors=errors).body("req-1")["errors"] == errors
    assert "errors" not in Unprocessable("Do this.").body("req-1")


def test_what_is_narrower_has_a_code_of_its_own_and_is_caught_as_what_it_is() -> None:
    body = InvalidState("Do this.").body("req-1")
    assert (body["code"], body["type"]) == ("invalid_state", "urn:backplane:problem:invalid_state")
    assert isinstance(InvalidState("Do this."), Conflict)


def test_a_conflict_of_keys_is_a_conflict() -> None:
    assert IdempotencyConflict("Do this.").body("req-1")["code"] == "idempotency_conflict"
    assert IdempotencyConflict.status == 409


def test_what_passes_says_when_to_come_back() -> None:
    assert Unavailable("Repeat it.").headers()["retry-after"] == "5"
    assert Unavailable("Repeat it.", retry_after=1).headers()["retry-after"] == "1"
    assert "retry-after" not in NotFound("Do this.").headers()


def test_who_is_not_known_is_told_how_to_say_it() -> None:
    assert Unauthorized("Send a token.").headers()["www-authenticate"] == "Bearer"


def test_a_defect_has_no_detail_of_its_cause() -> None:
    assert Internal().body("req-1")["detail"].endswith("Quote the request_id to support.")


def test_a_body_is_json_whatever_the_detail_holds() -> None:
    answer = Unprocessable('quotes " and \ud800 and é').response("req-1")
    assert json.loads(answer["body"].encode())["detail"] == 'quotes " and \ud800 and é'
