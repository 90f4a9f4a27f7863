"""API Gateway's HTTP API: a request becomes an event, a function's answer a response.

docs/decisions/local-gateway.md says why this is not SAM CLI's.
"""

import json
import time
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING

from local.environment import Status
from local.http_answer import HttpAnswer, InvalidAnswer, http_answer, message
from local.http_api import HttpApi, Match
from local.http_event import HttpRequest, http_event
from local.runtime import Runtime, Throttled
from local.server import HEADERS, TARGET, TOO_LARGE
from local.terminal import say

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

MAX_EVENT = 6 * 1024 * 1024  # bytes; Lambda's limit of a payload
MAX_HEADERS = 10_240  # bytes; an HTTP API's limit of the request line and all header values

_FAILED = message(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal Server Error")
_UNAVAILABLE = message(HTTPStatus.SERVICE_UNAVAILABLE, "Service Unavailable")
_NOT_FOUND = message(HTTPStatus.NOT_FOUND, "Not Found")
_TOO_LARGE = message(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "Request Entity Too Large")
_HEADERS_TOO_LARGE = message(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "Request Header Fields Too Large")
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


class Gateway:
    """A WSGI application. `api` may be replaced at any time."""

    def __init__(self, api: HttpApi, runtime: Runtime) -> None:
        self.api = api
        self._runtime = runtime

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        request = _request(environ)
        request_id = str(uuid.uuid4())
        api = self.api
        answer = self._answer(api, request, request_id, too_large=environ[TOO_LARGE])
        if api.cors and request.method != "OPTIONS":
            # Its own CORS headers a function adds in vain; refusals have them, or a page can't read why.
            answer = answer.without("access-control-").adding(api.cors.answer(request.header("origin")))
        answer = answer.adding({"apigw-requestid": request_id})
        start_response(f"{int(answer.status)} {_PHRASES.get(answer.status, 'Unknown')}", list(answer.headers))
        return [answer.body]

    def _answer(self, api: HttpApi, request: HttpRequest, request_id: str, *, too_large: bool) -> HttpAnswer:
        if request.size > MAX_HEADERS:
            return _HEADERS_TOO_LARGE
        if request.method == "OPTIONS" and api.cors:
            return _preflight(api, request)
        match = api.match(request.method, request.path)
        if match is None:
            return _NOT_FOUND
        if too_large:
            return _TOO_LARGE
        made = http_event(request, match, request_id=request_id, now=datetime.now(UTC))
        event = json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode()
        return _TOO_LARGE if len(event) > MAX_EVENT else self._invoke(match, event)

    def _invoke(self, match: Match, event: bytes) -> HttpAnswer:
        try:
            until = time.monotonic() + match.route.timeout
            outcome = self._runtime.invoke(match.route.function, event, until=until)
        except Throttled:
            return _UNAVAILABLE
        except OSError:  # no environment could be started; the terminal says why
            return _FAILED
        if outcome.status in {Status.TIMEOUT, Status.LATE}:
            return _UNAVAILABLE
        if outcome.status is not Status.OK:
            return _FAILED
        try:
            return http_answer(outcome.payload)
        except InvalidAnswer as invalid:
            say(f"{match.route.function} gave an answer that HTTP can't carry: {invalid}")
            return _FAILED


def _request(environ: "WSGIEnvironment") -> HttpRequest:
    return HttpRequest(
        method=environ["REQUEST_METHOD"],
        target=environ[TARGET],
        headers=environ[HEADERS],
        body=environ["wsgi.input"].read(),
        source_ip=environ["REMOTE_ADDR"],
        port=int(environ["SERVER_PORT"]),
        protocol=environ["SERVER_PROTOCOL"],
    )


def _preflight(api: HttpApi, request: HttpRequest) -> HttpAnswer:
    """OPTIONS never reaches a function. Only a preflight, which names a method, is told what is allowed."""
    asked = request.header("access-control-request-method")
    headers = api.cors.preflight(request.header("origin")) if api.cors and asked else {}
    return HttpAnswer(HTTPStatus.NO_CONTENT, tuple(headers.items()), b"")
