"""A function's answer as HTTP."""

import json
from typing import Any

import pytest
from local.http_answer import HttpAnswer, InvalidAnswer, http_answer

JSON = (("content-type", "application/json"),)
TEXT = (("content-type", "text/plain;charset=UTF-8"),)


def answer(returned: Any) -> HttpAnswer:
    return http_answer(json.dumps(returned).encode())


@pytest.mark.parametrize(
    ("returned", "body"),
    [
        ({"message": "hello"}, b'{"message": "hello"}'),
        ({"body": "not alone", "headers": {"x": "1"}}, b'{"body": "not alone", "headers": {"x": "1"}}'),
        ([1, 2], b"[1, 2]"),
        (7, b"7"),
        (None, b"null"),
        ("Hello from Lambda!", b"Hello from Lambda!"),
    ],
)
def test_without_a_status_the_whole_is_a_json_body(returned: Any, body: bytes) -> None:
    assert answer(returned) == HttpAnswer(200, JSON, body)


def test_with_a_status_the_default_type_is_text() -> None:
    assert answer({"statusCode": 201, "body": "{}"}) == HttpAnswer(201, TEXT, b"{}")
    assert answer({"statusCode": 204}) == HttpAnswer(204, TEXT, b"")


def test_header_names_are_lower_case_and_values_may_be_numbers() -> None:
    headers = {
        "Content-Type": "text/html",
        "X-Count": 3,
        "X-Flag": True,
        "X-None": None,
        "Connection": "close",
    }

    assert answer({"statusCode": 200, "headers": headers}).headers == (
        ("content-type", "text/html"),
        ("x-count", "3"),
        ("x-flag", "true"),
    )


def test_each_cookie_is_a_header_of_its_own() -> None:
    given = answer({"statusCode": 200, "cookies": ["a=1; Secure", "b=2"], "headers": {"set-cookie": "c=3"}})

    assert [value for name, value in given.headers if name == "set-cookie"] == ["c=3", "a=1; Secure", "b=2"]


def test_multi_value_headers_are_of_format_1_and_count_for_nothing() -> None:
    assert answer({"statusCode": 200, "multiValueHeaders": {"x": ["1", "2"]}}).headers == TEXT


def test_a_base64_body_is_decoded_if_it_says_so() -> None:
    assert answer({"statusCode": 200, "body": "/wA=", "isBase64Encoded": True}).body == b"\xff\x00"
    assert answer({"statusCode": 200, "body": "/wA=", "isBase64Encoded": False}).body == b"/wA="


@pytest.mark.parametrize("status", [200, "200", 299, 404, 599])
def test_a_status_is_a_number_or_a_text_of_one(status: Any) -> None:
    assert answer({"statusCode": status}).status == int(status)


@pytest.mark.parametrize(
    "returned",
    [
        {"statusCode": "many"},
        {"statusCode": None},
        {"statusCode": True},
        {"statusCode": 200.5},
        {"statusCode": 0},
        {"statusCode": 101},
        {"statusCode": 600},
        {"statusCode": 200, "body": {"not": "text"}},
        {"statusCode": 200, "body": "%%%", "isBase64Encoded": True},
        {"statusCode": 200, "body": "a", "isBase64Encoded": "true"},
        {"statusCode": 200, "body": "\ud800"},
        "\ud800",
        {"statusCode": 200, "headers": "none"},
        {"statusCode": 200, "headers": {"x": ["1"]}},
        {"statusCode": 200, "headers": {"x": "a\nb"}},
        {"statusCode": 200, "headers": {"a b": "1"}},
        {"statusCode": 200, "headers": {"x": "…"}},
        {"statusCode": 200, "cookies": "a=1"},
        {"statusCode": 200, "cookies": ["a=1\r\nb: c"]},
    ],
)
def test_what_http_cannot_carry_is_refused(returned: Any) -> None:
    with pytest.raises(InvalidAnswer):
        answer(returned)


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(InvalidAnswer):
        http_answer(b"not json")
