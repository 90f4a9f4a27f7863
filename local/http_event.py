"""The event of payload format 2.0: what a function gets of an HTTP request.

developer guide, "Create AWS Lambda proxy integrations for HTTP APIs". What the guide leaves open is as
the service is known to do it: the path is decoded, cookies are in no header, a form is base64.
"""

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from local.aws import ACCOUNT
from local.http_api import Match, decoded_path

API_ID = "local"
TEXT = ("text/", "application/json", "application/javascript", "application/xml")

# Of one connection, not of the request; the gateway ends them.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "expect",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


@dataclass(frozen=True)
class HttpRequest:
    method: str
    target: str  # of the request line, as sent
    headers: Sequence[tuple[str, str]]  # as sent
    body: bytes
    source_ip: str
    port: int  # ours
    protocol: str = "HTTP/1.1"

    @property
    def path(self) -> str:
        return decoded_path(self.target)

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    @property
    def size(self) -> int:
        """What the limit of 10,240 bytes counts: the request line and the headers' values."""
        line = len(self.method) + len(self.target) + len(self.protocol) + 2
        return line + sum(len(value) for _, value in self.headers)

    def header(self, name: str) -> str | None:
        """A header's values, joined."""
        values = [value for each, value in self.headers if each.lower() == name]
        return ",".join(values) if values else None


def http_event(request: HttpRequest, match: Match, *, request_id: str, now: datetime) -> dict[str, Any]:
    headers = event_headers(request, now)
    body, is_base64 = event_body(request)
    host = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": match.route.key,
        "rawPath": request.path,
        "rawQueryString": request.query,
        "headers": headers,
        "requestContext": {
            "accountId": ACCOUNT,
            "apiId": API_ID,
            "domainName": host,
            "domainPrefix": host.partition(".")[0],
            "http": {
                "method": request.method,
                "path": request.path,
                "protocol": request.protocol,
                "sourceIp": request.source_ip,
                "userAgent": headers.get("user-agent", ""),
            },
            "requestId": request_id,
            "routeKey": match.route.key,
            "stage": "$default",
            "time": now.strftime("%d/%b/%Y:%H:%M:%S +0000"),
            "timeEpoch": int(now.timestamp() * 1000),
        },
        "isBase64Encoded": is_base64,
    }
    optional = {
        "cookies": cookies(request),
        "queryStringParameters": query_parameters(request.query),
        "pathParameters": dict(match.parameters),
        "body": body,
    }
    return event | {name: value for name, value in optional.items() if value}


def event_headers(request: HttpRequest, now: datetime) -> dict[str, str]:
    """Lower-case names, repeated ones joined by commas, and what the gateway adds."""
    headers: dict[str, str] = {}
    for name, value in request.headers:
        lower = name.lower()
        if lower not in HOP_BY_HOP and lower != "cookie":
            headers[lower] = f"{headers[lower]},{value}" if lower in headers else value
    passed = headers.get("x-forwarded-for")
    return headers | {
        "content-length": str(len(request.body)),
        "x-amzn-trace-id": headers.get("x-amzn-trace-id") or _trace_id(now),
        "x-forwarded-for": f"{passed}, {request.source_ip}" if passed else request.source_ip,
        "x-forwarded-port": str(request.port),
        "x-forwarded-proto": "http",
    }


def cookies(request: HttpRequest) -> list[str]:
    """One a cookie, as sent: all cookie headers together."""
    sent = [value for name, value in request.headers if name.lower() == "cookie"]
    return [cookie.strip() for value in sent for cookie in value.split(";") if cookie.strip()]


def query_parameters(query: str) -> dict[str, str]:
    """Decoded; the values of a repeated name joined by commas."""
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        parameters[name] = f"{parameters[name]},{value}" if name in parameters else value
    return parameters


def event_body(request: HttpRequest) -> tuple[str | None, bool]:
    """The event's body and whether it is base64: text types go as text where they are UTF-8."""
    if not request.body:
        return None, False
    media_type = (request.header("content-type") or "").partition(";")[0].strip().lower()
    is_text = media_type.startswith(TEXT) or media_type.endswith(("+json", "+xml"))
    if is_text and not request.header("content-encoding"):
        try:
            return request.body.decode(), False
        except UnicodeDecodeError:
            pass
    return base64.b64encode(request.body).decode(), True


def _trace_id(now: datetime) -> str:
    return f"Root=1-{int(now.timestamp()):08x}-{secrets.token_hex(12)}"
