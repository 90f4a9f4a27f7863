"""What docs/openapi.json promises, held against what functions answer."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

from jsonschema import Draft202012Validator, FormatChecker
from tests.senders import Answer

FILE = Path(__file__).resolve().parents[1] / "docs" / "openapi.json"
DOCUMENT: dict[str, Any] = json.loads(FILE.read_text())
ADVICE = "Say in the route what it may answer (raises=…, its return type), then `make openapi`."

_formats = FormatChecker(())


@dataclass(frozen=True)
class Operation:
    method: str
    path: str  # with {names}
    told: Mapping[str, Any]

    def __hash__(self) -> int:
        return hash((self.method, self.path))

    @property
    def route(self) -> str:
        """As routers write it."""
        return f"{self.method} {self.path}".replace("{", "<").replace("}", ">")

    @property
    def scope(self) -> str | None:
        return self.told.get("x-scope")

    @property
    def parameters(self) -> list[dict[str, Any]]:
        return [resolved(each) for each in self.told.get("parameters", ())]

    @property
    def body_schema(self) -> dict[str, Any] | None:
        body = self.told.get("requestBody")
        return body and body["content"]["application/json"]["schema"]

    def answer(self, status: int) -> dict[str, Any] | None:
        found = self.told["responses"].get(str(status))
        return found and resolved(found)


OPERATIONS = [
    Operation(method.upper(), path, told)
    for path, item in DOCUMENT["paths"].items()
    for method, told in item.items()
]


def resolved(value: dict[str, Any]) -> dict[str, Any]:
    """What a $ref leads to."""
    while "$ref" in value:
        found: Any = DOCUMENT
        for name in value["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        value = found
    return value


def operation_of(method: str, path: str) -> Operation | None:
    """The one that a request goes to: the path with the fewest names, as routers choose."""
    found = [each for each in OPERATIONS if each.method == method and _pattern(each.path).fullmatch(path)]
    return min(found, key=lambda each: each.path.count("{"), default=None)


def check(method: str, path: str, answer: Answer) -> None:
    """Asserts that the document tells of such an answer. What no route takes is not its subject."""
    operation = operation_of(method, path)
    if operation is not None:
        wrong = faults(operation, answer)
        assert not wrong, f"{operation.route} answered {answer.status}: {'; '.join(wrong)}. {ADVICE}"


def faults(operation: Operation, answer: Answer) -> list[str]:
    told = operation.answer(answer.status)
    if told is None:
        return [f"the document has no such status ({answer.body})"]
    found = [f"no header {name}" for name in ("x-request-id",) if name not in answer.headers]
    if "content" not in told:
        return found if answer.body is None else [*found, f"a body: {answer.body}"]
    content_type = answer.headers.get("content-type", "").partition(";")[0]
    if content_type not in told["content"]:
        return [*found, f"the content type {content_type}"]
    errors = _validator(operation, answer.status, content_type).iter_errors(answer.body)
    return found + [f"{error.json_path}: {error.message[:300]}" for error in errors]


def validator(schema: Mapping[str, Any]) -> Draft202012Validator:
    """Of a schema that may refer to the document's components."""
    whole = {**schema, "components": DOCUMENT["components"]}
    return Draft202012Validator(whole, format_checker=_formats)


@cache
def _validator(operation: Operation, status: int, content_type: str) -> Draft202012Validator:
    told = operation.answer(status)
    assert told is not None
    return validator(told["content"][content_type]["schema"])


@cache
def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path)))


def _is_moment(value: object) -> bool:
    """RFC 3339 in UTC."""
    return not isinstance(value, str) or (
        "T" in value and datetime.fromisoformat(value).utcoffset() == timedelta(0)
    )


def _is_uuid(value: object) -> bool:
    return not isinstance(value, str) or str(UUID(value)) == value


def _is_int64(value: object) -> bool:
    return not isinstance(value, int) or -(2**63) <= value < 2**63


for _name, _check in {"date-time": _is_moment, "uuid": _is_uuid, "int64": _is_int64}.items():
    _formats.checks(_name, raises=ValueError)(_check)
