"""From the gateway's event to bytes and JSON: what is refused, and what is let through but flagged."""

import base64
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backplane import requests
from backplane.config import settings
from backplane.problems import InvalidPayload, TooLarge


def test_a_body_comes_as_the_bytes_that_were_sent_whichever_way_the_gateway_carries_it() -> None:
    sent = '{"name": "Zoë"}'.encode()
    assert requests.raw_body({"body": sent.decode(), "isBase64Encoded": False}) == sent
    assert requests.raw_body({"body": base64.b64encode(sent).decode(), "isBase64Encoded": True}) == sent


@pytest.mark.parametrize("event", [{}, {"body": None}, {"body": ""}, {"body": "", "isBase64Encoded": True}])
def test_no_body_is_no_bytes(event: dict[str, Any]) -> None:
    assert requests.raw_body(event) == b""


@pytest.mark.parametrize("body", ["a", "a===", "Zm9v\n!", "é", "\ud800"])
def test_what_is_announced_as_base64_and_is_not_is_refused(body: str) -> None:
    with pytest.raises(InvalidPayload, match="base64"):
        requests.raw_body({"body": body, "isBase64Encoded": True})


@pytest.mark.parametrize("encoded", [False, True])
def test_the_limit_counts_bytes_after_decoding(encoded: bool) -> None:
    def event(body: bytes) -> dict[str, Any]:
        text = base64.b64encode(body).decode() if encoded else body.decode()
        return {"body": text, "isBase64Encoded": encoded}

    limit = settings().max_body_bytes
    at_the_limit = "é".encode() * (limit // 2)
    assert len(requests.raw_body(event(at_the_limit))) == limit
    with pytest.raises(TooLarge):
        requests.raw_body(event(at_the_limit + b"."))


@pytest.mark.parametrize("data", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80"])
def test_bytes_that_are_not_utf8_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidPayload, match="UTF-8"):
        requests.parse_event(b'{"a": "' + data + b'"}')


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"[]",
        b"null",
        b"1",
        b'"text"',
        b"{",
        b"{'a': 1}",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": 1} {"b": 2}',
        b'{"a": "\x00"}',
        b"\xef\xbb\xbf{}",
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_not_one_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidPayload):
        requests.parse_event(body)


@pytest.mark.parametrize(
    ("body", "defect"),
    [
        (b'{"a": "plain"}', None),
        (b'{"a": "\\u00e9 \\ud83d\\ude00"}', None),
        (b'{"a": [{"b": "\\u0000"}]}', "holds a NUL"),
        (b'{"\\u0000": 1}', "holds a NUL"),
        (b'{"a": "\\ud800"}', "holds a lone surrogate"),
        (b'{"a": "\\ude00\\ud83d"}', "holds a lone surrogate"),
    ],
)
def test_an_event_says_why_it_cannot_be_stored(body: bytes, defect: str | None) -> None:
    value, found = requests.parse_event(body)
    assert (value, found) == (json.loads(body), defect)


def test_json_for_storage_is_refused_where_an_event_is_only_flagged() -> None:
    for body in ('{"a": "\\u0000"}', '"\\ud800"', "[" * 80 + "]" * 80):
        with pytest.raises(InvalidPayload):
            requests.parse_json(body)
    assert requests.parse_json('[1, "é", null]') == [1, "é", None]


@given(st.binary(max_size=200))
@example(b'{"a": "\\udfff"}')
def test_any_bytes_are_an_object_or_refused(data: bytes) -> None:
    try:
        value, _ = requests.parse_event(data)
    except InvalidPayload:
        return
    assert isinstance(value, dict)


@pytest.mark.parametrize("value", [None, "", 1, True, [], {}, "x" * 256, "nul\x00", "\ud800"])
def test_an_event_without_its_envelope_is_refused(value: object) -> None:
    with pytest.raises(InvalidPayload, match="type"):
        requests.envelope_text({"type": value}, "type")


def test_an_envelopes_text_is_taken_as_it_is() -> None:
    assert requests.envelope_text({"type": " é" * 127}, "type") == " é" * 127


@pytest.mark.parametrize("name", ["stripe-signature", "Stripe-Signature", "STRIPE-SIGNATURE"])
def test_a_header_is_found_in_whatever_case_it_comes(name: str) -> None:
    assert requests.header({"headers": {"a": "b", name: "t=1"}}, "stripe-signature") == "t=1"


@pytest.mark.parametrize("event", [{}, {"headers": None}, {"headers": {"other": "x"}}])
def test_a_header_may_be_missing(event: dict[str, Any]) -> None:
    assert requests.header(event, "stripe-signature") is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": ["é", 1, 1.5, None]}, '{"a": ["é", 1, 1.5, null]}'),
        ([1e308, -2.5e21], f"[1{'0' * 308}, -25{'0' * 20}]"),
        ({"1e308": 1e-7}, '{"1e308": 0.0000001}'),
        (10**300, f"1{'0' * 300}"),
    ],
)
def test_a_value_counts_as_jsonb_writes_it(value: Any, text: str) -> None:
    assert requests.stored_bytes(value) == len(text.encode())
