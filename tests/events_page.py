"""docs/events.md as a schema: which events there are, which fields each has, and what a field may be."""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

PAGE = Path(__file__).resolve().parents[1] / "docs" / "events.md"


@cache
def events() -> dict[str, dict[str, bool]]:
    """The fields of each type of event, and whether an event must have them."""
    found: dict[str, dict[str, bool]] = {}
    row = re.compile(r"^\| `([a-z_]+\.[a-z_]+)` \|[^|]*\|([^|]*)\|$", re.MULTILINE)
    for name, data in row.findall(PAGE.read_text()):
        assert name not in found, f"docs/events.md lists {name} twice"
        outside = re.sub(r"\([^)]*\)", "", data)  # what stands in brackets explains
        found[name] = {field: not mark for field, mark in re.findall(r"`([a-z_0-9]+)(\??)`", outside)}
    return found


@cache
def fields() -> dict[str, str]:
    """The type of each field."""
    table = PAGE.read_text().partition("## The fields")[2]
    return {
        field: kind.strip()
        for names, kind in re.findall(r"^\| (`[^|]*) \|([^|]*)\|$", table, re.MULTILINE)
        for field in re.findall(r"`(\w+)`", names)
    }


def faults(event_type: str, data: Mapping[str, Any]) -> list[str]:
    """What of an event is not as docs/events.md has it."""
    if event_type not in events():
        return [f"docs/events.md has no {event_type}"]
    declared = events()[event_type]
    missing = [name for name, needed in declared.items() if needed and name not in data]
    unknown = [name for name in data if name not in declared]
    wrong = [
        f"{event_type}: {name} is {value!r}, which is not {fields().get(name, 'among the fields')}"
        for name, value in data.items()
        if name in declared and not _may_be(value, fields().get(name))
    ]
    return (
        [f"{event_type} lacks {name}" for name in missing]
        + [f"{event_type} has {name}, which docs/events.md does not" for name in unknown]
        + wrong
    )


def _may_be(value: object, kind: str | None) -> bool:
    try:
        return _is(value, kind)
    except ValueError:  # of a UUID or a time
        return False


def _is(value: object, kind: str | None) -> bool:
    if kind is None:
        return False
    if kind.endswith(" or null"):
        return value is None or _is(value, kind.removesuffix(" or null"))
    match kind:
        case "text":
            return isinstance(value, str) and value != ""
        case "integer":
            return type(value) is int
        case "object":
            return isinstance(value, dict)
        case "boolean":
            return type(value) is bool
        case "UUID":
            return isinstance(value, str) and str(UUID(value)) == value
        case "time":
            return isinstance(value, str) and datetime.fromisoformat(value).utcoffset() == timedelta(0)
        case _:
            return value in re.findall(r"`(\w+)`", kind)
