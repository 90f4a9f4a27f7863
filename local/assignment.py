"""`data.object.amount=5`: one field of a sample, changed from the command line."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from local.refusal import Refusal

_PATH = re.compile(r"[^.\[\]=,+]+(?:\.[^.\[\]=,]+|\[\d+\])*")
_START = re.compile(rf"\+?{_PATH.pattern}=")
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")


@dataclass(frozen=True)
class Assignment:
    path: str
    value: Any
    adds: bool = False  # may make a field that is not there

    def apply(self, document: Any) -> None:
        """Change the document. Raises Refusal where it has no such path."""
        steps = [name or int(index) for name, index in _STEP.findall(self.path)]
        parent, walked = document, ""
        for step in steps[:-1]:
            parent = self._child(parent, step, walked)
            walked = _join(walked, step)
        last = steps[-1]
        if isinstance(parent, list):
            self._put_into_list(parent, _index(last), walked)
        elif isinstance(parent, dict) and (self.adds or last in parent):
            parent[str(last)] = self.value
        else:
            raise self._missing(parent, last, walked)

    def _child(self, parent: Any, step: str | int, walked: str) -> Any:
        if isinstance(parent, dict) and self.adds:
            return parent.setdefault(str(step), {})
        key = _index(step) if isinstance(parent, list) else step
        try:
            return parent[key]
        except (LookupError, TypeError):
            raise self._missing(parent, step, walked) from None

    def _put_into_list(self, items: list[Any], index: int | None, walked: str) -> None:
        if index is not None and index < len(items):
            items[index] = self.value
        elif self.adds and index == len(items):
            items.append(self.value)
        else:
            raise self._missing(items, "" if index is None else index, walked)

    def _missing(self, parent: Any, step: str | int, walked: str) -> Refusal:
        whole = walked or "the body"
        if isinstance(parent, dict):
            has = f"{whole} has {', '.join(parent) or 'nothing'}"
        elif isinstance(parent, list):
            has = f"{whole} is a list of {len(parent)}"
        else:
            has = f"{whole} is {json.dumps(parent)}"
        return Refusal(f"there is no {_join(walked, step)}: {has}. To add it: SET=+{self.path}=…")


def parse(text: str) -> list[Assignment]:
    """Several, with commas between. A value is JSON, or else a text. Raises Refusal."""
    found = []
    for each in _split(text):
        path, equals, value = each.partition("=")
        if not equals or not _PATH.fullmatch(path.removeprefix("+")):
            raise Refusal(f"{each!r} sets nothing: SET=data.object.amount=5, several with commas between.")
        found.append(Assignment(path.removeprefix("+"), _value(value), path.startswith("+")))
    return found


def _split(text: str) -> Iterator[str]:
    """At the commas that another assignment follows; those in a value are the value's."""
    begin = depth = 0
    quoted = escaped = False
    for at, character in enumerate(text):
        if quoted:
            quoted = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            quoted = True
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth <= 0 and _START.match(text, at + 1):
            yield text[begin:at].strip()
            begin = at + 1
    if rest := text[begin:].strip():
        yield rest


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _index(step: str | int) -> int | None:
    """As `items[0]` and `items.0` have it."""
    if isinstance(step, int):
        return step
    return int(step) if step.isdecimal() else None


def _join(path: str, step: str | int) -> str:
    if isinstance(step, int):
        return f"{path}[{step}]"
    return f"{path}.{step}" if path else step
