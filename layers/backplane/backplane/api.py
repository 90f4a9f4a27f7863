"""The HTTP edge of user-facing functions: routes whose types say what they take and give.

    router = api.Router()

    @router.post("/v1/credits/debits", scope="credits:spend", status_code=201)
    def debit(body: DebitRequest, caller: api.Caller, key: api.IdempotencyKey) -> api.Response[Debit]: …

    handler = api.lambda_handler(router)

Powertools' resolver routes, validates and serialises. What is bent to our shape is here: the caller
is known before anything else of the request is read, every error is problem+json, every answer has
`x-request-id`, and a POST that carries an Idempotency-Key takes effect once (the credits' routes, which
declare `key: api.IdempotencyKey`, see to that themselves).
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar, cast, get_type_hints

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.event_handler.api_gateway import ResponseBuilder, Route
from aws_lambda_powertools.event_handler.openapi.exceptions import RequestValidationError
from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic_core import to_jsonable_python

from backplane import auth, db, idempotency, outbox, requests
from backplane.problems import (
    Internal,
    MethodNotAllowed,
    NotFound,
    Problem,
    Unprocessable,
    UnsupportedMediaType,
)
from backplane.routes import (
    JSON,
    KEY_HEADER,
    KEY_PATTERN,
    MAX_KEY,
    BaseUrl,
    Body,
    Caller,
    Commit,
    IdempotencyKey,
    RepeatKey,
    Router,
    Tx,
    answer,
)

__all__ = [
    "BaseUrl",
    "Body",
    "Caller",
    "Commit",
    "IdempotencyKey",
    "RepeatKey",
    "Response",
    "Router",
    "Tx",
    "answer",
    "lambda_handler",
]

# What is asked under this path is asked in the organisation that it names: the caller's role there counts.
OF_AN_ORGANIZATION = "/v1/organizations/<organization_id>"

T = TypeVar("T")
Handler = Callable[[dict[str, Any], LambdaContext], dict[str, Any]]

logger = Logger()


class Resolver(APIGatewayHttpResolver):
    """Powertools' resolver, with the caller known first and nothing unexpected let in."""

    def __init__(self, router: Router) -> None:
        # Our own answers that fail validation are our defect (500), not the caller's (422).
        super().__init__(
            enable_validation=True,
            response_validation_error_http_code=500,
            json_body_deserializer=partial(requests.parse_json, with_nul=router.with_nul),
            serializer=_to_json,
        )
        self._scopes = {(route.method, route.path): route.scope for route in router.routes}
        self._shown_once = {f"{route.method} {route.path}": route.shown_once for route in router.routes}
        self._in_transaction = {
            (route.method, route.path) for route in router.routes if _takes_transaction(route.function)
        }
        self._claim: idempotency.Claim | None = None
        for route in router.routes:
            self.route(route.path, route.method, status_code=route.status_code)(route.function)
        self.exception_handler(Problem)(self._problem)
        self.exception_handler(RequestValidationError)(self._invalid)
        self.exception_handler(Exception)(self._defect)
        self.not_found(self._unknown_route)

    def _call_route(self, route: Route, route_arguments: dict[str, str]) -> ResponseBuilder[Any]:
        try:
            if (route.method, route.path) in self._scopes:
                self._admit(route, route_arguments)
                if first := self._first_answer(route):
                    return ResponseBuilder(first, serializer=_to_json, route=route)
            self.context["commit"] = partial(self._commit, route)
            if (route.method, route.path) in self._in_transaction:
                response = self._answer_in_transaction(route, route_arguments)
                return ResponseBuilder(response, serializer=_to_json, route=route)
        except Exception as error:  # the edge: whatever it is becomes an answer
            builder: ResponseBuilder[Any] | None = self._call_exception_handler(error, route)
            if builder is None:
                raise
            return builder
        return super()._call_route(route, route_arguments)

    def _admit(self, route: Route, arguments: dict[str, str]) -> None:
        event = self.current_event.raw_event
        scope = self._scopes[route.method, route.path]
        if scope is not None:
            headers = {name.lower(): value for name, value in (event.get("headers") or {}).items()}
            there = arguments["organization_id"] if route.path.startswith(OF_AN_ORGANIZATION) else None
            caller = auth.authenticate(headers, path_organization=there)
            auth.require(caller, scope)
            self.context["caller"] = caller
            logger.append_keys(organization_id=str(caller.organization_id), actor=caller.actor)
        self._refuse_queries(route)
        if route.dependant.body_params:
            self._refuse_other_bodies(event)
            if not event.get("body"):  # as good as an empty object: what is required is named then
                event |= {"body": "{}", "isBase64Encoded": False}
        elif route.method != "GET" and (data := requests.raw_body(event)):
            _refuse_fields(data)

    def _first_answer(self, route: Route) -> Response[str] | None:
        """What the request's Idempotency-Key was answered before; None where it is to be answered now."""
        event = self.current_event.raw_event
        caller: auth.Caller | None = self.context.get("caller")
        key = requests.header(event, KEY_HEADER.lower())
        its_own = any(param.alias.lower() == KEY_HEADER.lower() for param in route.dependant.header_params)
        if route.method != "POST" or caller is None or key is None or its_own:
            return None
        if not (0 < len(key) <= MAX_KEY and re.fullmatch(KEY_PATTERN, key)):
            raise Unprocessable(
                f"{KEY_HEADER} must be 1 to {MAX_KEY} printable ASCII characters.",
                errors=[{"loc": ["header", KEY_HEADER], "msg": "Invalid key", "type": "invalid_key"}],
            )
        found = idempotency.claim(
            caller.organization_id, f"{route.method} {route.path}", key, _request_hash(event)
        )
        if isinstance(found, idempotency.Claim):
            self._claim = found
            self.context["repeat_key"] = key
            return None
        return Response(
            status_code=found.status_code,
            content_type=JSON,
            body=found.body,
            headers={"Idempotent-Replayed": "true"},
        )

    def _answer_in_transaction(self, route: Route, arguments: dict[str, str]) -> Response[Any]:
        """The route's answer, committed with all that it did. May run the route again, as db.run does."""
        caller: auth.Caller = self.context["caller"]

        def work(tx: db.Tx) -> Response[Any]:
            self.context["tx"] = tx
            answered = route(router_middlewares=self._router_middlewares, app=self, route_arguments=arguments)
            response = cast("Response[Any]", self._to_response(answered))
            if self._claim is not None and response.status_code < HTTPStatus.BAD_REQUEST:
                body = response.body if isinstance(response.body, str) else _to_json(response.body)
                idempotency.remember(
                    tx, self._claim, response.status_code, body, self._shown_once[self._claim.route]
                )
            return response

        response = db.run(work, organization_id=caller.organization_id, user_id=caller.user_id)
        self._claim = None
        return response

    def _commit(self, route: Route, work: Callable[[db.Tx], T]) -> T:
        """What `work` returns, committed with the route's answer if that is the same."""
        caller: auth.Caller = self.context["caller"]

        def remembered(tx: db.Tx) -> T:
            result = work(tx)
            if self._claim is not None:
                body = _to_json(to_jsonable_python(result))
                shown_once = self._shown_once[self._claim.route]
                idempotency.remember(tx, self._claim, route.status_code, body, shown_once)
            return result

        result = db.run(remembered, organization_id=caller.organization_id, user_id=caller.user_id)
        self._claim = None
        return result

    def settle_key(self, response: Mapping[str, Any] | None) -> None:
        """Remembers the answer under the request's Idempotency-Key, or gives the key back."""
        claim, self._claim = self._claim, None
        if claim is not None:
            status, body = (500, "") if response is None else (response["statusCode"], response["body"])
            idempotency.finish(claim, status, body or "", shown_once=self._shown_once[claim.route])

    def _refuse_other_bodies(self, event: dict[str, Any]) -> None:
        """Lets in JSON of a bounded size, in UTF-8."""
        content_type = requests.header(event, "content-type") or JSON
        if content_type.partition(";")[0].strip().lower() != JSON:
            raise UnsupportedMediaType(f"Send the body as JSON with `content-type: {JSON}`.")
        # Powertools compares the type with regard to case and would choose another parser.
        others = {k: v for k, v in (event.get("headers") or {}).items() if k.lower() != "content-type"}
        event["headers"] = others | {"content-type": JSON}
        requests.text(requests.raw_body(event))

    def _refuse_queries(self, route: Route) -> None:
        """Lets in the parameters that the route knows, with texts that can be stored and looked for."""
        given = self.current_event.query_string_parameters or {}
        known = {param.alias for param in route.dependant.query_params}
        if unknown := sorted(set(given) - known):
            taken = f"It takes {', '.join(sorted(known))}." if known else "It takes none."
            raise Unprocessable(
                f"Unknown query parameters: {', '.join(unknown)}. {taken}",
                errors=_of_queries(unknown, "Extra inputs are not permitted", "extra_forbidden"),
            )
        if unfit := {name: defect for name, value in given.items() if (defect := requests.unstorable(value))}:
            name, defect = next(iter(unfit.items()))
            raise Unprocessable(
                f"The query parameter {name} {defect}, which no stored text can. Leave that out.",
                errors=_of_queries(unfit, "Not a text that can be stored", "unstorable"),
            )

    def _request_id(self) -> str:
        return requests.request_id(self.current_event.raw_event)

    def _problem(self, problem: Problem) -> Response[str]:
        return Response(
            status_code=problem.status,
            headers=problem.headers(),
            body=json.dumps(problem.body(self._request_id()), separators=(",", ":")),
        )

    def _invalid(self, error: RequestValidationError) -> Response[str]:
        errors = [{"loc": list(e["loc"]), "msg": e["msg"], "type": e["type"]} for e in error.errors()]
        where = ", ".join(dict.fromkeys(".".join(map(str, e["loc"])) for e in errors))
        return self._problem(
            Unprocessable(
                f"The request is not valid: see errors for what is wrong with {where}.", errors=errors
            )
        )

    def _defect(self, error: Exception) -> Response[str]:
        logger.error("the request failed", exc_info=error)
        return self._problem(Internal())

    def _unknown_route(self, _: Exception) -> Response[str]:
        path = self.current_event.path
        methods = sorted({r.method for r in self._static_routes + self._dynamic_routes if r.rule.match(path)})
        if methods:
            response = self._problem(MethodNotAllowed(f"This path takes {', '.join(methods)}."))
            response.headers["allow"] = ", ".join(methods)
            return response
        return self._problem(NotFound("There is nothing at this path. /docs shows what there is."))


def _takes_transaction(function: Callable[..., Any]) -> bool:
    return Tx in get_type_hints(function, include_extras=True).values()


def _of_queries(names: Iterable[str], message: str, kind: str) -> list[dict[str, Any]]:
    return [{"loc": ["query", name], "msg": message, "type": kind} for name in names]


def _refuse_fields(data: bytes) -> None:
    """For a request that takes no body: nothing, or an empty object."""
    if requests.parse_json(requests.text(data)) != {}:
        raise Unprocessable(
            "This request takes no body. Leave it out.",
            errors=[{"loc": ["body"], "msg": "Extra inputs are not permitted", "type": "extra_forbidden"}],
        )


def _request_hash(event: Mapping[str, Any]) -> bytes:
    data = requests.raw_body(event)
    try:
        body = json.loads(data) if data else None
    except (ValueError, RecursionError):
        body = data.hex()  # refused in a moment
    return idempotency.request_hash(event.get("rawPath"), event.get("queryStringParameters"), body)


def _to_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def lambda_handler(router: Router) -> Handler:
    """A Lambda handler for API Gateway's payload 2.0 that answers the router's routes."""
    resolver = Resolver(router)

    @logger.inject_lambda_context(correlation_id_path="requestContext.requestId", clear_state=True)
    def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
        db.set_deadline(context.get_remaining_time_in_millis() / 1000)
        response: dict[str, Any] | None = None
        try:
            response = resolver.resolve(event, context)
        finally:
            resolver.settle_key(response)
        outbox.poke()
        headers: Mapping[str, Any] = response.get("headers") or {}
        # Answers are a caller's own: nothing between us may keep them.
        response["headers"] = (
            {"cache-control": "no-store"} | dict(headers) | {"x-request-id": requests.request_id(event)}
        )
        return response

    return handler
