"""Requests to an operation of the OpenAPI document: those it takes, and those it must refuse in one way."""

import base64
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from tests.contract import Operation, resolved, validator

HUGE = 10**400
SOME = 0.5  # of what may be left out
DEEP = "[" * 5000 + "]" * 5000
HOSTILE: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, 2**64, HUGE, 1.5, 1e300),
    *("", " ", "x", "x" * 70_000, "\x00", "\ud800", "é" * 300, "2026-02-30T00:00:00Z", "%s", "'; --"),
    *([], [None], [[]], {}, {"": ""}, {"\x00": 1}),
)
TEXTS = (
    *(
        "x",
        "A shop for tea",
        "read",
        "ai_text_chat",
        "src/basket.ts",
        "image/png",
        "eve@example.com",
        "1.4.0",
    ),
    *(
        "https://tea.example.com",
        "com.example.tea",
        "tea.example.com",
        "org_tea",
        "Europe/Berlin",
        "de",
        "12345",
    ),
    *("2030-01-31T12:00:00Z", "app.projects", "shop"),
)
NOT_JSON = (
    "{",
    '{"a": NaN}',
    '{"a": 1e999}',
    '{"a": "\\ud800"}',
    '{"a": 1, "a": 2}',
    "\ufeff{}",
    DEEP,
    "{'a': 1}",
)
NOT_OBJECTS = ("null", "[]", '"x"', "1", "true")
MEDIA_TYPES = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "*/*")
NO_LIMITS = ("", "0", "101", "-1", "1.5", "1e1", "x", "1,2", "9" * 30, " 5 x", "null")
NO_IDS = (
    "x",
    "\x00",
    "é",
    "..",
    "0" * 33,
    "{}",
    "urn:uuid:" + "0" * 32,
    "9" * 40,
    "' OR 1=1",
    "%00",
    "\ud800",
)


def _cursor(position: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


NO_CURSORS = (
    *("", "!", "x", "AA", "é", "\x00", "x" * 201),
    *map(_cursor, (None, {}, [], -1, 2**63, 1e300, True, "\x00", "\ud800", ["x", "x"], [1] * 9)),
)


@dataclass(frozen=True)
class Request:
    about: str
    changed: Mapping[str, Any] = field(default_factory=dict)  # of what callers.send takes
    names: Mapping[str, str] = field(default_factory=dict)  # in the path, instead of the world's
    refused: frozenset[int] = frozenset()  # the statuses it must have; none: any below 500


def broken(operation: Operation, body: dict[str, Any] | None, dice: random.Random) -> Iterator[Request]:
    """Every way that we know to ask wrongly."""
    yield from _wrong_names(operation, dice)
    yield from _wrong_queries(operation)
    yield from _wrong_headers(operation)
    if operation.method != "GET":
        yield from _wrong_texts(operation)
    if body is not None:
        yield from _wrong_fields(operation, body)


def _wrong_names(operation: Operation, dice: random.Random) -> Iterator[Request]:
    for each in operation.parameters:
        if each["in"] == "path":
            for value in dice.sample(NO_IDS, 4):
                yield Request(
                    f"{each['name']} {value!r}", names={each["name"]: value}, refused=frozenset({404, 422})
                )
            if each["schema"].get("format") == "uuid":
                unknown = str(uuid4())
                yield Request("an unknown id", names={each["name"]: unknown}, refused=frozenset({404}))


def _wrong_queries(operation: Operation) -> Iterator[Request]:
    unprocessable = frozenset({422})
    base = {name: "x" for name in ("q", "path") if any(each["name"] == name for each in operation.parameters)}
    yield Request("an unknown query parameter", {"query": base | {"unknown": "1"}}, refused=unprocessable)
    for each in operation.parameters:
        if each["in"] != "query":
            continue
        name = each["name"]
        values = {"limit": NO_LIMITS, "cursor": NO_CURSORS}.get(
            name, (*NO_LIMITS, "\x00", "\ud800", "x" * 3000)
        )
        for value in values:
            told = (
                unprocessable
                if name in {"limit", "cursor"} or not _may_be(each["schema"], value)
                else frozenset()
            )
            yield Request(f"{name}={value[:40]!r}", {"query": base | {name: value}}, refused=told)


def _may_be(schema: Mapping[str, Any], value: str) -> bool:
    """Whether a text of a URL can be what the schema says."""
    if schema.get("type") == "boolean":
        return value in {"0", "1"}  # as good as false and true
    if schema.get("type") == "integer":
        return value.isascii() and value.isdigit() and validator(schema).is_valid(int(value))
    return "\x00" not in value and "\ud800" not in value and validator(schema).is_valid(value)


def _wrong_headers(operation: Operation) -> Iterator[Request]:
    # A path that names an organisation counts before the header, which is not read then.
    if operation.scope is not None and not operation.path.startswith("/v1/organizations/{"):
        for value in ("", "x", "\x00", "org_1", "0" * 32, "é"):
            yield Request(
                f"X-Organization-Id: {value!r}", {"organization": value}, refused=frozenset({400, 404})
            )
    if operation.method == "POST" and operation.scope is not None:
        for value in ("", "k" * 256, "é", "a\x00b", "a\nb"):
            yield Request(f"Idempotency-Key: {value[:40]!r}", {"key": value}, refused=frozenset({422}))


def _wrong_texts(operation: Operation) -> Iterator[Request]:
    for text in NOT_JSON:
        yield Request(f"the body {text[:40]!r}", {"body": text}, refused=frozenset({400}))
    yield Request("a body that is no UTF-8", {"body": b'{"a": "\xff"}'}, refused=frozenset({400}))
    yield Request("a body of 2 MB", {"body": " " * (2 * 1024 * 1024)}, refused=frozenset({413}))
    free = resolved(operation.body_schema or {}).get("additionalProperties", True)
    named = () if operation.body_schema and free else ('{"unknown": 1}',)
    for text in (*NOT_OBJECTS, *named):
        yield Request(f"the body {text!r}", {"body": text}, refused=frozenset({422}))
    if operation.body_schema is not None:
        for media_type in MEDIA_TYPES:
            yield Request(media_type, {"headers": {"content-type": media_type}}, refused=frozenset({415}))


def _wrong_fields(operation: Operation, body: dict[str, Any]) -> Iterator[Request]:
    schema = resolved(operation.body_schema or {})
    for name in schema.get("required", ()):
        less = {key: value for key, value in body.items() if key != name}
        yield Request(f"no {name}", {"body": less}, refused=frozenset({422}))
    of_any_name: dict[str, Any] = next(iter(schema.get("patternProperties", {}).values()), {})
    free = dict.fromkeys(body, of_any_name)
    for name, told in schema.get("properties", free).items():
        for value in HOSTILE:
            changed = body | {name: value}
            refused = frozenset() if validator(told).is_valid(value) else frozenset({400, 422})
            yield Request(f"{name}: {repr(value)[:40]}", {"body": json.dumps(changed)}, refused=refused)


# ---- what it takes ----


def taken(operation: Operation, body: dict[str, Any] | None, dice: random.Random) -> Iterator[Request]:
    """Requests of the form that the document gives, without end."""
    while True:
        query = {
            each["name"]: str(value).lower() if isinstance(value, bool) else str(value)
            for each in operation.parameters
            if each["in"] == "query" and each["name"] != "cursor"
            if each["required"] or dice.random() < SOME
            if (value := sample(each["schema"], dice)) is not None
        }
        changed: dict[str, Any] = {"query": query or None}
        if body is not None:
            drawn = sample(operation.body_schema or {}, dice, body)
            changed["body"] = json.dumps(drawn)
        yield Request("as the document says", changed)


def sample(schema: Mapping[str, Any], dice: random.Random, example: Any = None) -> Any:
    """A value that the schema takes, or the example where we cannot make one up."""
    schema = resolved(dict(schema))
    kinds = schema.get("anyOf") or schema.get("oneOf")
    if kinds:
        return sample(dice.choice(kinds), dice, example)
    if "const" in schema or "enum" in schema:
        return dice.choice(schema.get("enum") or [schema["const"]])
    draw = _DRAWN.get(schema.get("type", "null"))
    return None if draw is None else draw(schema, dice, example)


def _object(schema: Mapping[str, Any], dice: random.Random, example: Any) -> Any:
    known: Mapping[str, Any] = example if isinstance(example, dict) else {}
    if "properties" not in schema:
        return known or {"note": dice.choice(TEXTS), "n": dice.randrange(-5, 5)}
    made = {}
    for name, told in schema["properties"].items():
        if name in schema.get("required", ()) or dice.random() < SOME:
            value = sample(told, dice, known.get(name))
            if value is not None or "null" in json.dumps(told):
                made[name] = value
    return made


def _array(schema: Mapping[str, Any], dice: random.Random, example: Any) -> Any:
    least = schema.get("minItems", 0)
    known = example[0] if isinstance(example, list) and example else None
    drawn = [sample(schema.get("items", {}), dice, known) for _ in range(dice.randint(least, least + 2))]
    return [item for item in drawn if item is not None]


def _string(schema: Mapping[str, Any], dice: random.Random, example: Any) -> Any:
    if schema.get("format") == "uuid":
        return str(uuid4())
    fitting = [text for text in TEXTS if validator(schema).is_valid(text)]
    if "pattern" not in schema:
        longest = schema.get("maxLength", 300)
        fitting += ["é" * min(longest, 300), "x" * min(longest, 20_000), "\U0001f375"]
    fitting = [
        text for text in fitting if schema.get("minLength", 0) <= len(text) <= schema.get("maxLength", 10**6)
    ]
    return dice.choice([*fitting, *([example] if isinstance(example, str) else [])] or [None])


def _integer(schema: Mapping[str, Any], dice: random.Random, _: Any) -> int:
    least: int = schema.get("minimum", schema.get("exclusiveMinimum", -(2**31)) + 1)
    most: int = schema.get("maximum", schema.get("exclusiveMaximum", 2**63) - 1)
    return dice.choice([least, least + 1, min(max(7, least), most), most])


def _boolean(_schema: Mapping[str, Any], dice: random.Random, _: Any) -> bool:
    return dice.random() < SOME


_DRAWN: Mapping[str, Callable[[Mapping[str, Any], random.Random, Any], Any]] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "integer": _integer,
    "number": _integer,
    "boolean": _boolean,
}
