"""Lambda's Invoke API, so that `boto3.client("lambda", endpoint_url=…).invoke(…)` works here."""

import json
import re
import threading
import uuid
from collections.abc import Iterable
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import unquote

from werkzeug.wrappers import Request, Response

from local.environment import Status
from local.runtime import Runtime, Throttled, UnknownFunction

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

MAX_PAYLOAD = 6 * 1024 * 1024  # bytes
_PATH = re.compile(r"/2015-03-31/functions/([^/]+)/invocations")
# A name, a partial ARN or an ARN, each with or without a qualifier.
_NAME = re.compile(r"(?:arn:[^:]+:lambda:[^:]*:)?(?:\d{12}:)?(?:function:)?([\w-]+)(?::[\w$-]+)?")


class InvokeApi:
    """A WSGI application. Invocation types RequestResponse, Event and DryRun."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        return self._answer(Request(environ))(environ, start_response)

    def _answer(self, request: Request) -> Response:
        try:
            function, payload = self._read(request)
            kind = request.headers.get("X-Amz-Invocation-Type", "RequestResponse")
            return self._invoke(function, payload, kind)
        except _Refused as refused:
            return refused.response
        except Throttled:
            throttled = _Refused(HTTPStatus.TOO_MANY_REQUESTS, "TooManyRequestsException", "Rate Exceeded.")
            return throttled.response
        except OSError as error:
            return _Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "ServiceException", str(error)).response

    def _read(self, request: Request) -> tuple[str, bytes]:
        """The function's physical name and the event. Raises _Refused."""
        path = _PATH.fullmatch(request.path)
        if path is None or request.method != "POST":
            message = "Only Invoke is answered here; for the rest there is aws_endpoint_url"
            raise _Refused(HTTPStatus.NOT_FOUND, "ResourceNotFoundException", message)
        given = unquote(path[1])
        name = _NAME.fullmatch(given)
        try:
            function = self._runtime.find(name[1] if name else given)
        except UnknownFunction:
            message = f"Function not found: {given}"
            raise _Refused(HTTPStatus.NOT_FOUND, "ResourceNotFoundException", message) from None
        payload = request.get_data() or b"{}"
        if len(payload) > MAX_PAYLOAD:
            message = f"{len(payload)} byte payload is too large: the limit is {MAX_PAYLOAD} bytes"
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "RequestTooLargeException", message)
        try:
            json.loads(payload)
        except (ValueError, RecursionError):
            message = "Could not parse request body into json"
            raise _Refused(HTTPStatus.BAD_REQUEST, "InvalidRequestContentException", message) from None
        return function.name, payload

    def _invoke(self, name: str, payload: bytes, kind: str) -> Response:
        request_id = str(uuid.uuid4())
        headers = {"x-amzn-RequestId": request_id, "X-Amz-Executed-Version": "$LATEST"}
        if kind == "DryRun":
            return Response(status=HTTPStatus.NO_CONTENT, headers=headers)
        if kind == "Event":
            threading.Thread(target=self._later, args=(name, payload, request_id), daemon=True).start()
            return Response(status=HTTPStatus.ACCEPTED, headers=headers)
        outcome = self._runtime.invoke(name, payload, request_id=request_id)
        if outcome.status is not Status.OK:
            headers["X-Amz-Function-Error"] = "Unhandled"
        return Response(outcome.payload, HTTPStatus.OK, headers, content_type="application/json")

    def _later(self, name: str, payload: bytes, request_id: str) -> None:
        with suppress(Throttled, OSError):  # the terminal has a line about either
            self._runtime.invoke(name, payload, request_id=request_id)


class _Refused(Exception):  # noqa: N818  Lambda's errors have names of their own
    def __init__(self, status: HTTPStatus, kind: str, message: str) -> None:
        super().__init__(message)
        body = json.dumps({"Type": "User", "Message": message})
        headers = {"x-amzn-ErrorType": kind}
        self.response = Response(body, status, headers, content_type="application/json")
