"""The raw side of a request: API Gateway's payload 2.0 event to bytes, text and JSON, with care."""

import base64
import binascii
import json
import math
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NoReturn

from backplane.config import settings
from backplane.problems import InvalidPayload, TooLarge

MAX_DEPTH = 64
MAX_ENVELOPE_TEXT = 255


def raw_body(event: Mapping[str, Any]) -> bytes:
    """The body as it came over the wire, whichever way the gateway carried it.

    Raises TooLarge beyond MAX_BODY_BYTES, InvalidPayload where base64 is announced and isn't.
    """
    body = event.get("body") or ""
    if event.get("isBase64Encoded"):
        try:
            data = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidPayload("The body is not the base64 it is said to be.") from error
    else:
        data = body.encode("utf-8", "surrogatepass")
    limit = settings().max_body_bytes
    if len(data) > limit:
        raise TooLarge(f"The body has {len(data)} bytes; at most {limit} are taken.")
    return data


def text(data: bytes) -> str:
    """Raises InvalidPayload where the bytes are not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidPayload("The body is not UTF-8. Send JSON encoded as UTF-8.") from error


def parse_json(source: str, *, with_nul: bool = False) -> Any:
    """JSON (RFC 8259) that can be stored (`unstorable`) and names nothing twice. Raises InvalidPayload."""
    value = _loads(source, object_pairs_hook=_once)
    if defect := unstorable(value, with_nul=with_nul):
        raise InvalidPayload(f"The body {defect}, which cannot be stored.")
    return value


def parse_event(data: bytes) -> tuple[dict[str, Any], str | None]:
    """A sender's JSON object, and why it cannot be stored, if so. Raises InvalidPayload."""
    source = text(data)
    value = _loads(source)
    if not isinstance(value, dict):
        raise InvalidPayload("The body is JSON but not an object.")
    # Only an escape can smuggle in what UTF-8 and JSON's own rules keep out.
    return value, unstorable(value) if "\\u" in source else None


def envelope_text(data: Mapping[str, Any], name: str) -> str:
    """A field that an event cannot be recorded without. Raises InvalidPayload."""
    value = data.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ENVELOPE_TEXT or unstorable(value):
        raise InvalidPayload(f"The event has no {name}: a text of 1 to 255 characters is expected.")
    return value


def unstorable(value: Any, *, with_nul: bool = False) -> str | None:
    """What PostgreSQL's text and jsonb, or our own recursion, would refuse in a JSON value."""
    pending = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if depth > MAX_DEPTH:
            return f"is nested more than {MAX_DEPTH} levels deep"
        if isinstance(item, str):
            if "\x00" in item and not with_nul:
                return "holds a NUL"
            if not _is_unicode(item):
                return "holds a lone surrogate"
        elif isinstance(item, list | tuple):
            pending += [(part, depth + 1) for part in item]
        elif isinstance(item, dict):
            pending += [(part, depth + 1) for pair in item.items() for part in pair]
    return None


def stored_bytes(value: Any) -> int:
    """How many bytes of JSON a value is when it comes back out of jsonb, which writes numbers out: of 1e308,
    309 digits.
    """
    text = json.dumps(value, ensure_ascii=False)
    numbers: list[str] = []
    json.loads(text, parse_float=numbers.append)
    return len(text.encode()) + sum(len(f"{Decimal(number):f}") - len(number) for number in numbers)


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _loads(source: str, **hooks: Any) -> Any:
    try:
        return json.loads(source, parse_constant=_refuse_constant, parse_float=_finite, **hooks)
    except json.JSONDecodeError as error:
        raise InvalidPayload(
            f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from error
    except RecursionError as error:
        raise InvalidPayload(f"The body is nested too deeply; {MAX_DEPTH} levels are taken.") from error
    except ValueError as error:  # an integer of thousands of digits
        raise InvalidPayload("The body holds a number that is too long.") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Parsers differ in which of two equal names counts (RFC 8259, 4): a proxy may have seen the other."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = Counter(name for name, _ in pairs)
        twice = next(name for name, times in names.items() if times > 1)
        raise InvalidPayload(f"The body names {twice[:100]!r} twice in one object. Send it once.")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidPayload(f"The body holds {name}, which is not JSON.")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise InvalidPayload(f"The body holds {digits[:20]}…, which is too large a number.")
    return number


def header(event: Mapping[str, Any], name: str) -> str | None:
    """One header, by its lower-case name, whatever case the sender's proxy left it in."""
    headers: Mapping[str, str] = event.get("headers") or {}
    if name in headers:
        return headers[name]
    return next((value for key, value in headers.items() if key.lower() == name), None)


def request_id(event: Mapping[str, Any]) -> str:
    value: str = event.get("requestContext", {}).get("requestId", "-")
    return value
