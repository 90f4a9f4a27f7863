"""API Gateway's HTTP API: SAM CLI's own, mended where it differs from AWS's.

SAM CLI's class is no public API, so its version is locked and tests/e2e/test_local_gateway.py holds
it to what we need. What it gets wrong (the numbers are aws-sam-cli's issues): header names keep
their case (#2726), a handler's exception is a 200 (#2590), a body that isn't UTF-8 is a 502
(#3110), an unknown path is a 403, and every request has the time and the id of the process's start.
"""

import base64
import json
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from flask import Response, g, request
from samcli.lib.providers.provider import Api, Cors
from samcli.local.apigw.exceptions import LambdaResponseParseException
from samcli.local.apigw.local_apigw_service import LocalApigwService
from samcli.local.apigw.path_converter import PathConverter
from samcli.local.apigw.route import Route
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Request

from local.environment import Status
from local.ports import HOST
from local.runtime import Runtime, Throttled

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

MAX_EVENT = 6 * 1024 * 1024  # bytes; Lambda's limit of a payload
TEXT = ("text/", "application/json", "application/javascript", "application/xml")


class _NoDebugger:
    """The LambdaRunner that SAM CLI's class asks for; invocations go to our runtime instead."""

    def is_debugging(self) -> bool:
        return False


class Gateway(LocalApigwService):  # type: ignore[misc]
    def __init__(self, api: Api, runtime: Runtime, port: int, expose_headers: Iterable[str] = ()) -> None:
        super().__init__(api, _NoDebugger(), port=port, host=HOST)
        self._runtime = runtime
        self._expose_headers = ",".join(expose_headers)
        self.create()
        self._app.url_map.merge_slashes = False  # `//a` is another path, not a redirect
        self._app.after_request(self._finish)

    @property
    def app(self) -> "WSGIApplication":
        application: WSGIApplication = self._app
        return application

    def _construct_error_handling(self) -> None:
        for status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
            self._app.register_error_handler(status, lambda _: _answer(HTTPStatus.NOT_FOUND, "Not Found"))
        self._app.register_error_handler(HTTPStatus.INTERNAL_SERVER_ERROR, lambda _: _failed().response)

    def _get_current_route(self, flask_request: Request) -> Route:
        try:
            return super()._get_current_route(flask_request)
        except KeyError:  # Flask answers HEAD wherever there is a GET
            raise _Refused(HTTPStatus.NOT_FOUND, "Not Found") from None

    def _generate_lambda_event(
        self, flask_request: Request, route: Route, method: str, endpoint: str
    ) -> dict[str, Any]:
        body, is_base64 = _body(flask_request.get_data(), flask_request.mimetype)
        flask_request._cached_data = b""  # noqa: SLF001  or the base class decodes it as UTF-8
        try:
            event: dict[str, Any] = super()._generate_lambda_event(flask_request, route, method, endpoint)
        except UnicodeDecodeError:  # in the query
            raise _Refused(HTTPStatus.BAD_REQUEST, "Bad Request") from None
        event.pop("body", None)
        if body is not None:
            event["body"] = body
        event["isBase64Encoded"] = is_base64
        event["headers"] = {name.lower(): value for name, value in event["headers"].items()}
        event["headers"].setdefault("x-forwarded-for", flask_request.remote_addr)
        event["routeKey"] = _route_key(route, method, endpoint)
        now = datetime.now(UTC)
        g.request_id = str(uuid.uuid4())
        event["requestContext"] |= {
            "routeKey": event["routeKey"],
            "requestId": g.request_id,
            "time": now.strftime("%d/%b/%Y:%H:%M:%S +0000"),
            "timeEpoch": int(now.timestamp() * 1000),
        }
        event["requestContext"]["http"]["userAgent"] = flask_request.headers.get("User-Agent", "")
        return event

    def _invoke_lambda_function(
        self,
        lambda_function_name: str,
        event: dict[str, Any],
        tenant_id: str | None = None,  # noqa: ARG002  the base class passes it
    ) -> str:
        payload = json.dumps(event).encode()
        if len(payload) > MAX_EVENT:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "Request Entity Too Large")
        try:
            outcome = self._runtime.invoke(lambda_function_name, payload)
        except Throttled:
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "Service Unavailable") from None
        except OSError:  # no environment could be started; the terminal says why
            raise _failed() from None
        if outcome.status is not Status.OK:
            raise _failed()
        return outcome.payload.decode()

    @staticmethod
    def _parse_v2_payload_format_lambda_output(
        lambda_output: str, binary_types: list[str], flask_request: Request
    ) -> tuple[int, Any, Any]:
        try:
            parsed: tuple[int, Any, Any] = LocalApigwService._parse_v2_payload_format_lambda_output(  # noqa: SLF001
                lambda_output, binary_types, flask_request
            )
        except (LambdaResponseParseException, ValueError, TypeError, AttributeError):
            raise _failed() from None  # not an answer HTTP can carry
        return parsed

    def _finish(self, response: Response) -> Response:
        """CORS on refusals too, or a page can't read why; and the id by which AWS is asked about it."""
        headers = Cors.cors_to_headers(self.api.cors, request.headers.get("Origin"), Route.HTTP)
        if headers and self._expose_headers:
            headers["Access-Control-Expose-Headers"] = self._expose_headers
        response.headers.update(headers)
        if request.method == "OPTIONS" and self.api.cors:
            response.status_code = HTTPStatus.NO_CONTENT
        if request_id := g.get("request_id"):
            response.headers["apigw-requestid"] = request_id
        return response


class _Refused(HTTPException):
    """An answer of the gateway's own, raised through the base class's hands."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(response=_answer(status, message))


def _failed() -> _Refused:
    return _Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal Server Error")


def _answer(status: HTTPStatus, message: str) -> Response:
    return Response(json.dumps({"message": message}), status, mimetype="application/json")


def _body(raw: bytes, media_type: str) -> tuple[str | None, bool]:
    """The event's body and whether it is base64: text types go as text where they are UTF-8."""
    if not raw:
        return None, False
    if media_type.startswith(TEXT) or media_type.endswith(("+json", "+xml")):
        try:
            return raw.decode(), False
        except UnicodeDecodeError:
            pass
    return base64.b64encode(raw).decode(), True


def _route_key(route: Route, method: str, endpoint: str) -> str:
    """As template.yaml has it: SAM CLI spells `ANY` out."""
    if route.is_default_route:
        return "$default"
    any_method = set(Route.ANY_HTTP_METHODS) <= set(route.methods)
    return f"{'ANY' if any_method else method} {PathConverter.convert_path_to_api_gateway(endpoint)}"
