"""What is refused, and how: one component for each status with the codes it may carry."""

import inspect
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from backplane.problems import CONTENT_TYPE, Problem, QuotaExhausted

JSON = "application/json"
_REQUEST_ID = {"x-request-id": {"$ref": "#/components/headers/x-request-id"}}
_RETRY_AFTER = {"retry-after": {"$ref": "#/components/headers/retry-after"}}

SCHEMAS: dict[str, Any] = {
    "Problem": {
        "type": "object",
        "description": "RFC 9457. Some codes have members of their own beside these.",
        "required": ["type", "title", "status", "detail", "code", "request_id"],
        "properties": {
            "type": {"type": "string", "description": "urn:backplane:problem: and the code"},
            "title": {"type": "string", "description": "The status in words."},
            "status": {"type": "integer", "format": "int64"},
            "detail": {"type": "string", "description": "What is wrong, and what to do."},
            "code": {"type": "string", "description": "What to branch on."},
            "request_id": {"type": "string", "description": "Quote it to support."},
            "errors": {
                "type": "array",
                "description": "Where the request is wrong.",
                "items": {
                    "type": "object",
                    "required": ["loc", "msg", "type"],
                    "properties": {
                        "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
                        "msg": {"type": "string"},
                        "type": {"type": "string"},
                    },
                },
            },
        },
    },
    "GatewayMessage": {
        "type": "object",
        "description": "The gateway's own refusal, which no code of ours has seen.",
        "required": ["message"],
        "properties": {"message": {"type": "string"}},
    },
}


class Answers:
    """Collects the components that operations refer to."""

    def __init__(self) -> None:
        self.components: dict[str, Any] = {}

    def refusals(self, kinds: Iterable[type[Problem]]) -> dict[str, Any]:
        """An operation's answers for these problems, by status."""
        by_status: dict[int, set[type[Problem]]] = {429: set()}  # the gateway's throttle, before any route
        for kind in kinds:
            by_status.setdefault(kind.status, set()).add(kind)
        return {str(status): self._refer(status, kinds) for status, kinds in sorted(by_status.items())}

    def _refer(self, status: int, kinds: set[type[Problem]]) -> dict[str, str]:
        ordered = sorted(kinds, key=lambda kind: kind.code)
        name = "-".join([str(status), *(kind.code for kind in ordered)])
        self.components[name] = _answer(status, ordered)
        return {"$ref": f"#/components/responses/{name}"}


def _answer(status: int, kinds: list[type[Problem]]) -> dict[str, Any]:
    told = [f"`{kind.code}`: {_about(kind)}" for kind in kinds]
    content: dict[str, Any] = {}
    if kinds:
        content[CONTENT_TYPE] = {"schema": _schema(status, [kind.code for kind in kinds])}
    if status == QuotaExhausted.status:
        told.append(
            'The gateway\'s, as `{"message": …}`: all callers together are too many. Wait and repeat.'
        )
        content[JSON] = {"schema": {"$ref": "#/components/schemas/GatewayMessage"}}
    waits = status in {409, QuotaExhausted.status, 503}
    headers: dict[str, Any] = _REQUEST_ID | (_RETRY_AFTER if waits else {})
    if status == HTTPStatus.UNAUTHORIZED:
        headers |= {"www-authenticate": {"schema": {"const": "Bearer"}}}
    return {"description": "\n\n".join(told), "headers": headers, "content": content}


def _schema(status: int, codes: list[str]) -> dict[str, Any]:
    return {
        "allOf": [
            {"$ref": "#/components/schemas/Problem"},
            {"properties": {"status": {"const": status}, "code": {"enum": codes}}},
        ]
    }


def _about(kind: type[Problem]) -> str:
    """Its docstring. An inherited one would be another code's."""
    return inspect.cleandoc(kind.__dict__["__doc__"]).replace("\n", " ")
