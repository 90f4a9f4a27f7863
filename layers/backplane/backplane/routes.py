"""Routes as functions declare them: what each takes, gives and needs, by its types.

Functions take these names from api.py, which answers the requests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from aws_lambda_powertools.event_handler import Depends, Request, Response
from aws_lambda_powertools.event_handler.openapi.params import Header
from pydantic import BaseModel, ConfigDict

from backplane import auth, db, requests
from backplane.config import settings
from backplane.problems import Problem

# Every route that answers without a credential, in one place. (/health and /webhooks/… have no
# router: webhooks are authenticated by their signatures.)
PUBLIC_ROUTES = frozenset({"GET /v1/plans"})

JSON = "application/json"

T = TypeVar("T")
Raises = Sequence[type[Problem]]


class Body(BaseModel):
    """A request's body: unknown fields and wrong types are refused, nothing is guessed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _caller(request: Request) -> auth.Caller:
    caller: auth.Caller = request.context["caller"]
    return caller


def _tx(request: Request) -> db.Tx:
    tx: db.Tx = request.context["tx"]
    return tx


def _commit(request: Request) -> Callable[[Callable[[db.Tx], Any]], Any]:
    commit: Callable[[Callable[[db.Tx], Any]], Any] = request.context["commit"]
    return commit


def _base_url(request: Request) -> str:
    event = request.resolved_event.raw_event
    scheme = requests.header(event, "x-forwarded-proto") or "https"
    host = requests.header(event, "host") or event["requestContext"].get("domainName", "localhost")
    return (settings().public_url or f"{scheme}://{host}").rstrip("/")


Caller = Annotated[auth.Caller, Depends(_caller)]
# Where callers reach the API, without a slash at the end: for addresses that an answer tells.
BaseUrl = Annotated[str, Depends(_base_url)]
# The request's transaction, in the caller's organisation: what the route does in it and the answer that its
# Idempotency-Key repeats are committed together, or neither.
Tx = Annotated[db.Tx, Depends(_tx)]
# The same for a route that has work to do before its transaction, such as asking another service: it calls
# this with what is to be done in the transaction, last of all, and returns what that returned. Where that
# raised, it may call again.
Commit = Annotated[Callable[[Callable[[db.Tx], Any]], Any], Depends(_commit)]
KEY_HEADER = "Idempotency-Key"
KEY_PATTERN = r"^[\x20-\x7e]+$"
MAX_KEY = 255
IdempotencyKey = Annotated[
    str,
    Header(
        alias=KEY_HEADER,
        min_length=1,
        max_length=MAX_KEY,
        pattern=KEY_PATTERN,
        description="Makes a repetition safe: the same key and request answer the first result.",
    ),
]


def _repeat_key(request: Request) -> str | None:
    key: str | None = request.context.get("repeat_key")
    return key


# The Idempotency-Key of a POST that may do without one, for whoever passes the promise on.
RepeatKey = Annotated[str | None, Depends(_repeat_key)]


def answer(body: T, *, status_code: int = 200, replayed: bool = False) -> Response[T]:
    """An answer that says whether it repeats an earlier one."""
    headers = {"Idempotent-Replayed": "true"} if replayed else None
    return Response(status_code=status_code, content_type=JSON, body=body, headers=headers)


@dataclass(frozen=True, slots=True)
class Declared:
    """A route as its function declares it."""

    method: str
    path: str
    scope: str | None
    status_code: int
    function: Callable[..., Any]
    raises: Raises
    shown_once: Sequence[str]


class Router:
    """Collects a function's routes. A route names the scope it needs, or stands in PUBLIC_ROUTES.

    `raises` names the problems that are this route's own, beside those that any route may answer: the
    OpenAPI document tells callers of both. `shown_once` names the fields of a POST's answer that are
    secrets: its repetition omits them. `with_nul` takes texts that hold a NUL, which PostgreSQL cannot
    store: for routes that put them elsewhere.
    """

    def __init__(self, *, with_nul: bool = False) -> None:
        self.routes: list[Declared] = []
        self.with_nul = with_nul

    def get(self, path: str, *, scope: str | None = None, raises: Raises = ()) -> Callable[[T], T]:
        return self._route("GET", path, scope, status_code=200, raises=raises)

    def post(
        self,
        path: str,
        *,
        scope: str | None = None,
        status_code: int = 200,
        raises: Raises = (),
        shown_once: Sequence[str] = (),
    ) -> Callable[[T], T]:
        return self._route("POST", path, scope, status_code=status_code, raises=raises, shown_once=shown_once)

    def put(self, path: str, *, scope: str | None = None, raises: Raises = ()) -> Callable[[T], T]:
        return self._route("PUT", path, scope, status_code=200, raises=raises)

    def patch(self, path: str, *, scope: str | None = None, raises: Raises = ()) -> Callable[[T], T]:
        return self._route("PATCH", path, scope, status_code=200, raises=raises)

    def delete(
        self, path: str, *, scope: str | None = None, status_code: int = 204, raises: Raises = ()
    ) -> Callable[[T], T]:
        return self._route("DELETE", path, scope, status_code=status_code, raises=raises)

    def _route(
        self,
        method: str,
        path: str,
        scope: str | None,
        *,
        status_code: int,
        raises: Raises,
        shown_once: Sequence[str] = (),
    ) -> Callable[[T], T]:
        if (scope is None) != (f"{method} {path}" in PUBLIC_ROUTES):
            raise ValueError(f"{method} {path} must name a scope or stand in PUBLIC_ROUTES, not both")

        def register(function: T) -> T:
            declared = Declared(method, path, scope, status_code, function, raises, shown_once)  # type: ignore[arg-type]
            self.routes.append(declared)
            return function

        return register
