"""The OpenAPI document: fresh, valid, whole, and of one mind with the template and the table of scopes."""

import re
from pathlib import Path
from typing import Any

import openapi_spec_validator
import pytest
from local.openapi import document, template
from local.openapi.examples import EXAMPLES
from tests.contract import DOCUMENT, FILE, OPERATIONS, Operation, validator

from backplane import scopes
from backplane.routes import KEY_HEADER, PUBLIC_ROUTES

ROOT = Path(__file__).resolve().parents[2]
SAFE = {"content-type", "etag"}  # headers that browsers show to pages or that pages need not see
every_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.route)


def test_the_committed_document_is_what_the_code_says() -> None:
    assert FILE.resolve() == document.FILE
    assert FILE.read_text() == document.text(), "the document is stale: `make openapi`"


def test_the_document_is_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    openapi_spec_validator.validate(DOCUMENT)


def test_the_document_has_every_route_of_the_template_and_no_other() -> None:
    told = {(each.method, each.path) for each in OPERATIONS}
    pairs = {(given, route) for given in template.routes() for route in told if given.leads(*route)}
    assert {route for _, route in pairs} == told
    assert {given for given, _ in pairs} == set(template.routes()), "unrouted.py tells of what has no router"


def test_operations_have_names_of_their_own() -> None:
    names = [each.told["operationId"] for each in OPERATIONS]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z][a-z0-9_]+", name) for name in names)


@every_operation
def test_an_operation_says_what_it_is_for_and_who_may_call_it(operation: Operation) -> None:
    told = operation.told
    assert 10 < len(told["summary"]) < 120
    assert {tag["name"] for tag in DOCUMENT["tags"]} >= set(told["tags"])
    assert {"500", "503"} <= set(told["responses"]) or "operations" in told["tags"]
    if operation.route in PUBLIC_ROUTES or not operation.path.startswith("/v1/"):
        assert (told["security"], operation.scope) == ([], None)
        return
    assert {"401", "403", "404"} <= set(told["responses"])
    assert {"session": []} in told["security"]
    with_it = [role for role, given in scopes.SCOPES_OF_ROLE.items() if operation.scope in given]
    assert told["x-least-role"] == (with_it[0] if with_it else "platform_admin")
    assert with_it == list(scopes.SCOPES_OF_ROLE)[len(scopes.SCOPES_OF_ROLE) - len(with_it) :]
    for kind in ("organization", "service"):
        allowed = operation.scope in scopes.SCOPES_OF_KEY[kind]
        assert ({f"{kind}_key": [operation.scope]} in told["security"]) == allowed


@pytest.mark.parametrize("route", EXAMPLES, ids=str)
def test_an_example_is_a_request_that_its_operation_takes(route: tuple[str, str]) -> None:
    operation = next(
        (each for each in OPERATIONS if each.route == " ".join(route) and each.body_schema), None
    )
    assert operation, "no operation of this route takes a body"
    assert operation.told["requestBody"]["content"]["application/json"]["example"] == EXAMPLES[route]
    assert operation.body_schema is not None
    assert [error.message for error in validator(operation.body_schema).iter_errors(EXAMPLES[route])] == []


def test_lists_are_told_as_lists() -> None:
    for operation in OPERATIONS:
        names = {each["name"] for each in operation.parameters}
        assert ("cursor" in names) == ("limit" in names), operation.route
        if "limit" in names:
            limit = next(each["schema"] for each in operation.parameters if each["name"] == "limit")
            assert (limit["minimum"], limit["maximum"]) == (1, 100)


def test_a_post_says_what_an_idempotency_key_does() -> None:
    for operation in OPERATIONS:
        keys = [each for each in operation.parameters if each["name"] == KEY_HEADER]
        assert len(keys) == (operation.method == "POST" and operation.path.startswith("/v1/")), (
            operation.route
        )
        if keys:
            assert "409" in operation.told["responses"]
            moves_credits = "/credits/" in operation.path
            assert keys[0]["required"] == moves_credits, operation.route


def test_a_browser_may_send_and_read_what_the_document_names() -> None:
    cors = DOCUMENT["x-cors"]
    assert {each.method for each in OPERATIONS if each.path.startswith("/v1/")} <= set(cors["allow_methods"])
    sent = {
        each["name"].lower()
        for operation in OPERATIONS
        for each in operation.parameters
        if each["in"] == "header" and "webhooks" not in operation.told["tags"]
    }
    assert sent | {"authorization", "content-type"} == set(cors["allow_headers"])
    read = {
        name
        for operation in OPERATIONS
        for status in operation.told["responses"]
        for name in headers(operation, status)
    }
    assert read - SAFE - {"www-authenticate"} == set(cors["expose_headers"])


def headers(operation: Operation, status: str) -> set[str]:
    told = operation.answer(int(status))
    assert told is not None
    return set(told.get("headers", ()))


def test_numbers_have_their_width_and_no_seam_of_python_shows() -> None:
    def walk(schema: Any) -> None:
        if isinstance(schema, list):
            for item in schema:
                walk(item)
        if isinstance(schema, dict):
            if schema.get("type") == "integer":
                assert schema["format"] == "int64"
                assert all(isinstance(schema.get(name, 0), int) for name in ("minimum", "maximum"))
            for item in schema.values():
                walk(item)

    walk(DOCUMENT["components"]["schemas"])
    assert all(re.fullmatch(r"[A-Z][A-Za-z0-9]+", name) for name in DOCUMENT["components"]["schemas"])
