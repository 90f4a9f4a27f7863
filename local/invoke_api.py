"""Lambda's Invoke API, so that `boto3.client("lambda", endpoint_url=…).invoke(…)` works here."""

import json
import re
import uuid
from collections.abc import Iterable
from concurrent.futures import TimeoutError as TooSlow
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import unquote

from werkzeug.wrappers import Request, Response

from local.async_invoke import AsynchronousInvocations
from local.aws import ACCOUNT, REGION
from local.environment import Outcome, Status
from local.function import Function, name_in
from local.invocation_log import log_result
from local.runtime import Runtime, Throttled, UnknownFunction
from local.server import TOO_LARGE

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

MAX_PAYLOAD = 6 * 1024 * 1024  # bytes
MAX_EVENT = 256 * 1024  # bytes, asynchronously
REPORT_TIMEOUT = 2.0  # seconds an answer waits for its log
_PATH = re.compile(r"/2015-03-31/functions/([^/]+)/invocations")


class InvokeApi:
    """A WSGI application. Invocation types RequestResponse, Event and DryRun."""

    def __init__(self, runtime: Runtime, asynchronous: AsynchronousInvocations) -> None:
        self._runtime = runtime
        self._asynchronous = asynchronous

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        request_id = str(uuid.uuid4())
        try:
            response = self._answer(Request(environ), request_id)
        except _Refused as refused:
            response = refused.response
        except Throttled:
            reason = {"Reason": "ConcurrentInvocationLimitExceeded"}
            message = "Rate Exceeded."
            response = _Refused(
                HTTPStatus.TOO_MANY_REQUESTS, "TooManyRequestsException", message, reason
            ).response
        except OSError as error:
            response = _Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "ServiceException", str(error)).response
        response.headers["x-amzn-RequestId"] = request_id
        return response(environ, start_response)

    def _answer(self, request: Request, request_id: str) -> Response:
        function = self._function(request)
        kind = request.headers.get("X-Amz-Invocation-Type", "RequestResponse")
        payload = _payload(request, MAX_EVENT if kind == "Event" else MAX_PAYLOAD)
        headers = {"X-Amz-Executed-Version": "$LATEST"}
        match kind:
            case "DryRun":
                return Response(status=HTTPStatus.NO_CONTENT, headers=headers)
            case "Event":
                self._asynchronous.accept(function.name, payload, request_id)
                return Response(status=HTTPStatus.ACCEPTED, headers=headers)
            case "RequestResponse":
                outcome = self._runtime.invoke(function.name, payload, request_id=request_id)
            case _:
                message = f"InvocationType {kind} is none of RequestResponse, Event and DryRun"
                raise _Refused(HTTPStatus.BAD_REQUEST, "InvalidParameterValueException", message)
        if outcome.status is not Status.OK:
            headers["X-Amz-Function-Error"] = "Unhandled"
        if request.headers.get("X-Amz-Log-Type") == "Tail":
            headers |= _log(function, outcome, request_id)
        return Response(outcome.payload, HTTPStatus.OK, headers, content_type="application/json")

    def _function(self, request: Request) -> Function:
        path = _PATH.fullmatch(request.path)
        if path is None or request.method != "POST":
            message = "Only Invoke is answered here; for the rest there is aws_endpoint_url"
            raise _Refused(HTTPStatus.NOT_FOUND, "ResourceNotFoundException", message)
        name = name_in(unquote(path[1]))
        try:
            return self._runtime.find(name)
        except UnknownFunction:
            message = f"Function not found: arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}"
            raise _Refused(HTTPStatus.NOT_FOUND, "ResourceNotFoundException", message) from None


def _payload(request: Request, limit: int) -> bytes:
    payload = request.get_data() or b"{}"
    if len(payload) > limit or request.environ[TOO_LARGE]:
        message = f"Request must be smaller than {limit} bytes for the InvokeFunction operation"
        raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "RequestTooLargeException", message)
    try:
        json.loads(payload)
    except (ValueError, RecursionError):
        message = "Could not parse request body into json"
        raise _Refused(HTTPStatus.BAD_REQUEST, "InvalidRequestContentException", message) from None
    return payload


def _log(function: Function, outcome: Outcome, request_id: str) -> dict[str, str]:
    with suppress(TooSlow):
        if outcome.report:
            report = outcome.report.result(REPORT_TIMEOUT)
            return {"X-Amz-Log-Result": log_result(request_id, report, function.memory)}
    return {}


class _Refused(Exception):  # noqa: N818  Lambda's errors have names of their own
    def __init__(
        self, status: HTTPStatus, kind: str, message: str, more: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        side = "User" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "Service"
        body = json.dumps({"Type": side, "Message": message, **(more or {})})
        self.response = Response(body, status, {"x-amzn-ErrorType": kind}, content_type="application/json")
