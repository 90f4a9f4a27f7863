"""One route of a router as an operation: who may call it, what it takes, all it may answer."""

import inspect
import re
from dataclasses import dataclass
from typing import Any

from backplane import problems, routes, scopes
from backplane.scopes import SCOPES_OF_KEY
from local.openapi.examples import EXAMPLES
from local.openapi.problem_answers import JSON, Answers
from local.openapi.schemas import PREFIX

PARAMETERS: dict[str, Any] = {
    "organization": {
        "name": "X-Organization-Id",
        "in": "header",
        "required": False,
        "description": "The organisation to act in: one of Backplane's making that the user is a member of,"
        " any for a platform admin. A service key must name one, an organisation's key may not. A path that"
        " names an organisation counts before it.",
        "schema": {"type": "string", "format": "uuid"},
    },
    "repeat_key": {
        "name": routes.KEY_HEADER,
        "in": "header",
        "required": False,
        "description": "Makes a repetition safe for a day: the same key and request answer the first result.",
        "schema": {
            "type": "string",
            "minLength": 1,
            "maxLength": routes.MAX_KEY,
            "pattern": routes.KEY_PATTERN,
        },
    },
}
HEADERS: dict[str, Any] = {
    "x-request-id": {"schema": {"type": "string"}, "description": "What the logs call this request."},
    "retry-after": {
        "schema": {"type": "integer"},
        "description": "Seconds after which to repeat the request.",
    },
    "idempotent-replayed": {
        "schema": {"const": "true"},
        "description": "This is the answer of an earlier request with the same Idempotency-Key.",
    },
}
SECURITY_SCHEMES: dict[str, Any] = {
    "session": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A user's session token, from Clerk. His role in the organisation has the scopes.",
    },
    "organization_key": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "bp_<prefix>_<secret>",
        "description": "An organisation's API key, with the scopes it was given.",
    },
    "service_key": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "bp_<prefix>_<secret>",
        "description": "A key of the SaaS's own servers, with the scopes it was given and X-Organization-Id.",
    },
}
_KEYS = {"organization_key": SCOPES_OF_KEY["organization"], "service_key": SCOPES_OF_KEY["service"]}
_NO_CONTENT = 204


@dataclass(frozen=True, slots=True)
class Drafted:
    """A route, and the operation that Powertools makes of it."""

    function: str
    route: routes.Declared
    made: dict[str, Any]
    components: dict[str, Any]


def path_of(route: routes.Declared) -> str:
    return re.sub(r"<(\w+)>", r"{\1}", route.path)


def operation(drafted: Drafted, answers: Answers) -> dict[str, Any]:
    """Raises ValueError where something is left unsaid."""
    route = drafted.route
    summary, _, description = _about(route).partition("\n\n")
    told = {
        "tags": ["admin" if route.path.startswith("/v1/admin/") else drafted.function],
        "operationId": f"{drafted.function}_{route.function.__name__}",
        "summary": summary.replace("\n", " ").removesuffix("."),
        "description": description,
        **_callers(route),
        "parameters": _parameters(drafted),
        "requestBody": _body(drafted),
        "responses": {str(route.status_code): _success(drafted)} | answers.refusals(_refusals(drafted)),
    }
    return {name: value for name, value in told.items() if value or name == "security"}


def least_role(scope: str) -> str:
    """Of an organisation's roles, or platform_admin."""
    return scopes.least_role(scope) or "platform_admin"


def _about(route: routes.Declared) -> str:
    told = inspect.getdoc(route.function)
    if not told:
        raise ValueError(
            f"{route.method} {route.path} needs a docstring: its first line is what readers see."
        )
    return told


def _callers(route: routes.Declared) -> dict[str, Any]:
    scope = route.scope
    if scope is None:
        return {"security": []}
    keys = [{scheme: [scope]} for scheme, scopes in _KEYS.items() if scope in scopes]
    return {"x-scope": scope, "x-least-role": least_role(scope), "security": [{"session": []}, *keys]}


def _parameters(drafted: Drafted) -> list[dict[str, Any]]:
    order = ("path", "query", "header")
    parameters = sorted(drafted.made.get("parameters", ()), key=lambda each: order.index(each["in"]))
    for each in parameters:
        if _is_key(each):
            each["name"] = routes.KEY_HEADER
    if drafted.route.scope is None:
        return parameters
    shared = ["organization"]
    if drafted.route.method == "POST" and not any(_is_key(each) for each in parameters):
        shared.append("repeat_key")
    return [*parameters, *({"$ref": f"#/components/parameters/{name}"} for name in shared)]


def _is_key(parameter: dict[str, Any]) -> bool:
    return bool(parameter["name"].lower() == routes.KEY_HEADER.lower())


def _body(drafted: Drafted) -> dict[str, Any] | None:
    """Raises ValueError where there is no example of it."""
    body: dict[str, Any] | None = drafted.made.get("requestBody")
    if body is not None:
        place = drafted.route.method, drafted.route.path
        if place not in EXAMPLES:
            raise ValueError(
                f"EXAMPLES in local/openapi/examples.py must have a request to {' '.join(place)}."
            )
        body["content"][JSON]["example"] = EXAMPLES[place]
    return body


def _success(drafted: Drafted) -> dict[str, Any]:
    route = drafted.route
    headers = {"x-request-id": {"$ref": "#/components/headers/x-request-id"}}
    if route.method == "POST":
        headers["idempotent-replayed"] = {"$ref": "#/components/headers/idempotent-replayed"}
    description = "Done."
    if route.shown_once:
        names = ", ".join(f"`{name}`" for name in route.shown_once)
        description = f"Done. {names} is shown this once: an answer that is repeated leaves it out."
    answer: dict[str, Any] = {"description": description, "headers": headers}
    if route.status_code != _NO_CONTENT:
        answer["content"] = drafted.made["responses"][str(route.status_code)]["content"]
        _repeated(drafted, answer["content"][JSON]["schema"])
    return answer


def _repeated(drafted: Drafted, schema: dict[str, Any]) -> None:
    """A repetition leaves out what is shown once, so the schema may not require it."""
    if drafted.route.shown_once:
        found = drafted.components[schema["$ref"].removeprefix(PREFIX)]
        found["required"] = [name for name in found["required"] if name not in drafted.route.shown_once]


def _refusals(drafted: Drafted) -> set[type[problems.Problem]]:
    """The route's own, and those that the edge answers for every route of its kind (api.py)."""
    route = drafted.route
    kinds = {problems.Unprocessable, problems.Internal, problems.Unavailable, *route.raises}
    if route.scope is not None:
        kinds |= {problems.BadRequest, problems.Unauthorized, problems.Forbidden, problems.NotFound}
    if route.method != "GET":
        kinds |= {problems.InvalidPayload, problems.TooLarge}
    if drafted.made.get("requestBody"):
        kinds.add(problems.UnsupportedMediaType)
    if route.method == "POST" and route.scope is not None:
        kinds |= {problems.IdempotencyConflict, problems.IdempotencyInProgress}
    return kinds
