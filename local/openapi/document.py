"""The whole document: what Powertools makes of all routers at once, and what it does not know of.

Functions are separate Lambdas with a resolver each; one resolver with everybody's routes tells models of
one name apart. What has no router (webhooks, /health, /docs) stands in unrouted.py.
"""

import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from backplane import api
from local.openapi import operations, problem_answers, schemas, template, unrouted

ROOT = Path(__file__).resolve().parents[2]
FILE = (
    ROOT / "functions" / "openapi" / "openapi.json"
)  # where the function finds it; docs/openapi.json leads there

INFO = """\
The backend of an AI app builder: users and organisations, subscriptions, credits, projects and what
belongs to them.

**Who calls.** `Authorization: Bearer …` with a session token of Clerk's or an API key, except where
an operation says that it needs none. `x-scope` names the scope an operation takes, `x-least-role`
the least role that has it.

**Requests** are JSON in UTF-8. Unknown fields and unknown query parameters are refused. Lists take
`limit` (20, at most 100) and `cursor`, the `next_cursor` of the part before. A POST may carry an
`Idempotency-Key`, and one that moves credits must: the same request under the same key takes effect
once, and a repetition answers what the first one did, with `Idempotent-Replayed: true`.

**Answers** are JSON with timestamps of RFC 3339 in UTC, ids that are UUIDs, and money and credits
in integers. Each has an `x-request-id`. Integers may have 64 bits.

**Errors** are `application/problem+json` (RFC 9457); branch on `code`, show `detail`. A method that
a path does not take is 405 `method_not_allowed` with `Allow`. What the gateway itself refuses never
reaches the code and reads `{"message": …}`: 404 where no route leads, 413 beyond 10 MB, 429 where
all callers together are too many, 503 where a function did not answer in time.
"""
TAGS = {
    "admin": "What platform admins do, across organisations.",
    "webhooks": "What Stripe, Clerk and the others send. Authenticated by the sender's signature.",
    "operations": "Whether all is well, and what this API takes and gives.",
}


def text() -> str:
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


def document() -> dict[str, Any]:
    routers = _routers()
    made, components = _generated(routers)
    paths: dict[str, dict[str, Any]] = {}
    answers = problem_answers.Answers()
    for function, router in routers.items():
        for route in router.routes:
            path, method = operations.path_of(route), route.method.lower()
            drafted = operations.Drafted(function, route, made[path][method], components)
            paths.setdefault(path, {})[method] = operations.operation(drafted, answers)
    for given in template.routes():
        if operation := unrouted.operation(given.method, given.path, answers):
            paths.setdefault(given.path, {})[given.method.lower()] = operation
    tags = sorted(
        {tag for each in paths.values() for operation in each.values() for tag in operation["tags"]}
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "Backplane", "version": "1", "description": INFO},
        "servers": [{"url": "/"}],
        "tags": [{"name": tag, "description": TAGS.get(tag) or _about(tag)} for tag in tags],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted((components | unrouted.SCHEMAS | problem_answers.SCHEMAS).items())),
            "parameters": operations.PARAMETERS,
            "responses": dict(sorted(answers.components.items())),
            "headers": operations.HEADERS,
            "securitySchemes": operations.SECURITY_SCHEMES,
        },
        "x-cors": template.cors(),
    }


def _routers() -> dict[str, api.Router]:
    """By the function's name, which is its folder's and its entry module's."""
    found = {}
    for folder in sorted((ROOT / "functions").iterdir()):
        if (folder / f"{folder.name}.py").exists():
            if str(folder) not in sys.path:
                sys.path.append(str(folder))
            router = getattr(importlib.import_module(folder.name), "router", None)
            if router is not None:
                found[folder.name] = router
    return found


def _generated(routers: dict[str, api.Router]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Powertools' operations by path and method, and the schemas they refer to."""
    everybody = api.Router()
    everybody.routes = [route for router in routers.values() for route in router.routes]
    document = api.Resolver(everybody).get_openapi_schema(title="Backplane", version="1")
    whole = schemas.tidied(document.model_dump(by_alias=True, exclude_none=True, mode="json"))
    components: dict[str, Any] = whole["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError", "ResponseValidationError"):  # ours are problems
        components.pop(name, None)
    return whole["paths"], components


def _about(function: str) -> str:
    return (inspect.getdoc(importlib.import_module(function)) or "").partition("\n\n")[0].replace("\n", " ")
