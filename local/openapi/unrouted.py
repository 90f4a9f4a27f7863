"""Operations of functions without a router: webhooks, whose bodies are the senders', and the operator's."""

from collections.abc import Mapping
from typing import Any, get_args

from backplane import problems
from backplane.inbox import Status
from local.openapi.problem_answers import JSON, Answers

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "format": "int64"}
_MOMENT = {"type": "string", "format": "date-time"}
_MAYBE_MOMENT = {"anyOf": [_MOMENT, {"type": "null"}]}

SCHEMAS: dict[str, Any] = {
    "WebhookAnswer": {
        "type": "object",
        "description": "What became of the event. It is durable: a 200 means that it is on record.",
        "required": ["status", "event_id"],
        "properties": {
            "status": {"enum": [status for status in get_args(Status) if status not in {"failed", "dead"}]},
            "event_id": _TEXT,
        },
    },
    "Health": {
        "type": "object",
        "required": ["status", "timestamp", "checks"],
        "properties": {
            "status": {"enum": ["healthy", "degraded", "unhealthy"]},
            "timestamp": _MOMENT,
            "checks": {
                "type": "object",
                "required": ["database"],
                "properties": {
                    "database": {
                        "type": "object",
                        "properties": {"latency_ms": {"type": "number"}, "error": _TEXT},
                    },
                    "migrations": {
                        "type": "object",
                        "properties": {"current": {"type": ["string", "null"]}, "latest": _TEXT},
                    },
                    "backup": {
                        "type": "object",
                        "properties": {
                            "age_hours": {"type": ["number", "null"]},
                            "verified_at": _MAYBE_MOMENT,
                        },
                    },
                    "inbox": {
                        "type": "object",
                        "properties": {
                            **dict.fromkeys(("parked", "failed", "dead", "quarantined"), _COUNT),
                            "oldest_seconds": {
                                "type": ["integer", "null"],
                                "description": "Since the oldest of those parked or failed came.",
                            },
                            "overdue_seconds": _COUNT
                            | {"description": "Since the first of them was to be tried again."},
                        },
                    },
                },
            },
        },
    },
}
# What each sender signs with, and what else of its headers counts.
_SIGNATURES: Mapping[str, Mapping[str, str]] = {
    "stripe": {"Stripe-Signature": "t=<seconds>,v1=<HMAC-SHA256 of `t.body` with the endpoint's secret>"},
    "clerk": {
        "svix-id": "The message's id.",
        "svix-timestamp": "Seconds since 1970, within five minutes of now.",
        "svix-signature": "v1,<HMAC-SHA256 of `id.timestamp.body` in base64>; several, separated by spaces",
    },
    "eas": {"expo-signature": "sha1=<HMAC-SHA1 of the body with the integration's webhook secret>"},
    "vercel": {
        "x-vercel-signature": "HMAC-SHA1 of the body with the integration's webhook secret, in hexadecimal"
    },
    "github": {
        "X-Hub-Signature-256": "sha256=<HMAC-SHA256 of the body with the integration's webhook secret>",
        "X-GitHub-Event": "What happened.",
        "X-GitHub-Delivery": "The delivery's id.",
    },
}
_NAMES = {
    "stripe": "Stripe",
    "clerk": "Clerk (Svix)",
    "eas": "Expo EAS",
    "vercel": "Vercel",
    "github": "GitHub",
}
_REQUEST_ID = {"x-request-id": {"$ref": "#/components/headers/x-request-id"}}


def operation(method: str, path: str, answers: Answers) -> dict[str, Any] | None:
    """None where the path is a router's."""
    parts = path.strip("/").split("/")
    if parts[0] == "webhooks":
        return _webhook(parts[1], path, answers)
    made = {"GET /health": _health, "GET /openapi.json": _document, "GET /docs": _page}.get(
        f"{method} {path}"
    )
    if path.startswith("/docs/"):
        made = _asset
    return made(answers) if made else None


def _webhook(sender: str, path: str, answers: Answers) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "header", "required": True, "description": told, "schema": _TEXT}
        for name, told in _SIGNATURES[sender].items()
    ]
    kinds = {
        problems.InvalidSignature,
        problems.InvalidPayload,
        problems.TooLarge,
        problems.Internal,
        problems.Unavailable,
    }
    if "{integration_id}" in path:
        identifier = {"type": "string", "format": "uuid"}
        parameters.insert(0, {"name": "integration_id", "in": "path", "required": True, "schema": identifier})
        kinds.add(problems.NotFound)
    return {
        "tags": ["webhooks"],
        "operationId": f"webhooks_{sender}",
        "summary": f"What {_NAMES[sender]} sends",
        "description": "Each event counts once, however often and in whatever order it comes. 500 and 503"
        " mean that nothing was applied: send it again.",
        "security": [],
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "description": "As the sender defines it, byte for byte: the signature is over them.",
            "content": {JSON: {"schema": {"type": "object"}}},
        },
        "responses": {"200": _answer("On record.", JSON, "WebhookAnswer")} | answers.refusals(kinds),
    }


def _health(answers: Answers) -> dict[str, Any]:
    return _public(
        "health",
        "Whether the database, its migrations, the webhook inbox and the backups are well",
        {
            "200": _answer("healthy, or degraded: see checks.", JSON, "Health"),
            "503": _answer("unhealthy.", JSON, "Health"),
        },
        answers,
    )


def _document(answers: Answers) -> dict[str, Any]:
    content = {"schema": {"type": "object"}}
    return _public("openapi", "This document", {"200": _cached("The document.", JSON, content)}, answers)


def _page(answers: Answers) -> dict[str, Any]:
    content = {"schema": _TEXT}
    return _public(
        "docs",
        "This document, to read and to try",
        {"200": _cached("A page.", "text/html", content)},
        answers,
    )


def _asset(answers: Answers) -> dict[str, Any]:
    made = _public(
        "docs_asset",
        "What the page is made of",
        {"200": _cached("A script or a style sheet.", "*/*", {"schema": _TEXT})},
        answers,
        problems.NotFound,
    )
    named = {"name": "asset", "in": "path", "required": True, "schema": _TEXT}
    return made | {"parameters": [named]}


def _public(
    name: str, summary: str, responses: dict[str, Any], answers: Answers, *kinds: type[problems.Problem]
) -> dict[str, Any]:
    return {
        "tags": ["operations"],
        "operationId": name,
        "summary": summary,
        "security": [],
        "responses": responses | answers.refusals(kinds),
    }


def _answer(description: str, content_type: str, schema: str) -> dict[str, Any]:
    content = {content_type: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "headers": _REQUEST_ID, "content": content}


def _cached(description: str, content_type: str, content: dict[str, Any]) -> dict[str, Any]:
    etag = {"etag": {"schema": _TEXT, "description": "Send it as If-None-Match: 304 if nothing has changed."}}
    return {"description": description, "headers": _REQUEST_ID | etag, "content": {content_type: content}}
