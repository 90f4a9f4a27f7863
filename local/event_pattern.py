"""Event patterns, as EventBridge's rules and Lambda's filters have them.

docs.aws.amazon.com/eventbridge/latest/userguide/eb-create-pattern-operators.html. An event's array
matches where one of its elements does, and what a pattern asks below an array is asked of one element.
"""

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Pattern = Mapping[str, Any]

_ABSENT = object()
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "=": lambda value, limit: value == limit,
    "<": lambda value, limit: value < limit,
    "<=": lambda value, limit: value <= limit,
    ">": lambda value, limit: value > limit,
    ">=": lambda value, limit: value >= limit,
}


class BadPattern(ValueError):  # noqa: N818  it says what is bad
    pass


def check(pattern: Any) -> None:
    """Raises BadPattern where the pattern says something that is not understood here."""
    if not isinstance(pattern, dict) or not pattern:
        raise BadPattern(f"{pattern!r} is not a pattern")
    for key, wanted in pattern.items():
        if key == "$or":
            if not isinstance(wanted, list):
                raise BadPattern("$or takes a list of patterns")
            for each in wanted:
                check(each)
        elif isinstance(wanted, dict):
            check(wanted)
        elif isinstance(wanted, list) and wanted:
            for each in wanted:
                _try(each)
        else:
            raise BadPattern(f"{key} must be an object or a list that is not empty")


def _try(wanted: Any) -> None:
    try:
        _matches_value(wanted, "")
    except BadPattern:
        raise
    except (ValueError, TypeError, LookupError, AttributeError):
        raise BadPattern(f"{wanted!r} is not a comparison") from None


def matches(pattern: Pattern, event: Any) -> bool:
    """Whether a pattern that check() has let through describes the event."""
    if isinstance(event, list):
        return any(matches(pattern, each) for each in event)
    fields = event if isinstance(event, dict) else {}
    return all(
        any(matches(each, event) for each in wanted)
        if key == "$or"
        else _matches_field(wanted, fields.get(key, _ABSENT))
        for key, wanted in pattern.items()
    )


def _matches_field(wanted: Any, value: Any) -> bool:
    if isinstance(wanted, dict):
        # An absent object has no fields: only `exists: false` below it can match.
        return matches(wanted, {} if value is _ABSENT else value)
    values = value if isinstance(value, list) else [value]
    if any(isinstance(each, dict) for each in values):
        values = [_ABSENT]  # a pattern's list asks for a leaf
    return any(_matches_value(each, item) for each in wanted for item in values or [_ABSENT])


def _matches_value(wanted: Any, value: Any) -> bool:
    if not isinstance(wanted, dict):
        return _same(wanted, value)
    if len(wanted) != 1:
        raise BadPattern(f"{wanted!r} is not one comparison")
    ((operator, operand),) = wanted.items()
    if operator == "exists":
        return (value is not _ABSENT) == bool(operand)
    if operator == "anything-but":
        return value is not _ABSENT and not _excluded(operand, value)
    if operator == "numeric":
        return _compares(operand, value if _is_number(value) else math.nan)
    return _matches_text(operator, operand, value) if isinstance(value, str) else False


def _same(wanted: Any, value: Any) -> bool:
    if _is_number(wanted) or _is_number(value):  # 1 and 1.0 are equal, 1 and true are not
        return _is_number(wanted) and _is_number(value) and wanted == value
    return type(wanted) is type(value) and bool(wanted == value)


def _excluded(operand: Any, value: Any) -> bool:
    if isinstance(operand, dict):
        ((operator, operands),) = operand.items()
        each = operands if isinstance(operands, list) else [operands]
        return any(_matches_value({operator: one}, value) for one in each)
    return any(_same(each, value) for each in (operand if isinstance(operand, list) else [operand]))


def _compares(operand: Any, value: float) -> bool:
    pairs = list(zip(operand[::2], operand[1::2], strict=True))
    if not pairs or any(operator not in _COMPARE for operator, _ in pairs):
        raise BadPattern(f"{operand!r} is not a numeric comparison")
    return all(_COMPARE[operator](value, limit) for operator, limit in pairs)


def _matches_text(operator: str, operand: Any, value: str) -> bool:
    if operator in {"prefix", "suffix"}:
        if isinstance(operand, dict):
            operand, value = str(operand["equals-ignore-case"]).lower(), value.lower()
        return value.startswith(operand) if operator == "prefix" else value.endswith(operand)
    if operator == "equals-ignore-case":
        return value.lower() == str(operand).lower()
    if operator == "wildcard":
        return _glob(operand).fullmatch(value) is not None
    if operator == "cidr":
        network = ipaddress.ip_network(operand)
        try:
            return ipaddress.ip_address(value) in network
        except ValueError:
            return False
    raise BadPattern(f"the comparison {operator!r} is not known here")


def _glob(text: str) -> re.Pattern[str]:
    r"""`*` is any text; `\*` and `\\` are themselves."""
    parts = re.findall(r"\\[*\\]|\*|[^*\\]+|\\", text)
    return re.compile(
        "".join(".*" if each == "*" else re.escape(each[-1:] if each[0] == "\\" else each) for each in parts),
        re.DOTALL,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
