"""A function's answer as HTTP: payload format 2.0, in full or inferred.

developer guide, "Create AWS Lambda proxy integrations for HTTP APIs", Lambda function response.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from local.http_event import HOP_BY_HOP

INFERRED_TYPE = "application/json"
DEFAULT_TYPE = "text/plain;charset=UTF-8"

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class InvalidAnswer(ValueError):  # noqa: N818  it is one, whatever went wrong
    """What HTTP can't carry: the gateway answers 500."""


@dataclass(frozen=True)
class HttpAnswer:
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def without(self, prefix: str) -> "HttpAnswer":
        kept = tuple((name, value) for name, value in self.headers if not name.startswith(prefix))
        return HttpAnswer(self.status, kept, self.body)

    def adding(self, headers: Mapping[str, str]) -> "HttpAnswer":
        return HttpAnswer(self.status, (*self.headers, *headers.items()), self.body)


def message(status: HTTPStatus, text: str) -> HttpAnswer:
    """An answer of the gateway's own."""
    body = json.dumps({"message": text}, separators=(",", ":")).encode()
    return HttpAnswer(status, (("content-type", "application/json"),), body)


def http_answer(payload: bytes) -> HttpAnswer:
    """Raises InvalidAnswer."""
    try:
        returned = json.loads(payload)
    except ValueError:
        raise InvalidAnswer("it is not JSON") from None
    if isinstance(returned, dict) and "statusCode" in returned:
        return _given(returned)
    # Without a statusCode the whole is the body, and text goes as it is.
    body = _encoded(returned) if isinstance(returned, str) else payload
    return HttpAnswer(HTTPStatus.OK, (("content-type", INFERRED_TYPE),), body)


def _given(returned: Mapping[str, Any]) -> HttpAnswer:
    headers = [*_headers(returned.get("headers") or {}), *_cookies(returned.get("cookies") or ())]
    if not any(name == "content-type" for name, _ in headers):
        headers.append(("content-type", DEFAULT_TYPE))
    return HttpAnswer(_status(returned["statusCode"]), tuple(headers), _body(returned))


def _status(value: Any) -> int:
    """A number, or a string that is one."""
    status = int(value) if isinstance(value, str) and value.isdecimal() else value
    if type(status) is not int or not HTTPStatus.OK <= status <= 599:  # noqa: PLR2004  HTTP's last
        raise InvalidAnswer(f"statusCode {value!r}")
    return status


def _headers(given: Any) -> Iterable[tuple[str, str]]:
    if not isinstance(given, dict):
        raise InvalidAnswer("headers that are no object")
    for name, value in given.items():
        if isinstance(value, list | dict):
            raise InvalidAnswer(f"the header {name} is no text")
        if value is not None and name.lower() not in HOP_BY_HOP | {"content-length"}:
            yield _header(name, value if isinstance(value, str) else json.dumps(value))


def _cookies(given: Any) -> Iterable[tuple[str, str]]:
    if not isinstance(given, list | tuple) or not all(isinstance(each, str) for each in given):
        raise InvalidAnswer("cookies that are no list of texts")
    for each in given:
        yield _header("set-cookie", each)


def _header(name: str, value: str) -> tuple[str, str]:
    if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
        raise InvalidAnswer(f"the header {name!r} can't be sent")
    return name.lower(), value


def _body(returned: Mapping[str, Any]) -> bytes:
    body = returned.get("body")
    if body is None:
        return b""
    if not isinstance(body, str):
        raise InvalidAnswer("a body that is no text")
    is_base64 = returned.get("isBase64Encoded") or False
    if not isinstance(is_base64, bool):
        raise InvalidAnswer(f"isBase64Encoded {is_base64!r}")
    if not is_base64:
        return _encoded(body)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidAnswer("a body that is not base64") from None


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        raise InvalidAnswer("a text that is no Unicode") from None
