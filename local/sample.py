"""Sample events, as events/README.md describes them, with what a sender would make new each time."""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.refusal import Refusal


@dataclass(frozen=True)
class Sample:
    """Either an HTTP request (`method` and `path`) or the payload of an invocation."""

    description: str
    method: str | None = None
    path: str | None = None
    headers: Mapping[str, str] | None = None
    body: Any = None
    user: str = "user_demo"  # whose token goes with a request to /v1
    invoke: Any = None


def read(file: Path, unique: str | None = None) -> Sample:
    """The sample with `{new}`, `{now}` and `{now_ms}` filled in. Raises Refusal."""
    try:
        written = json.loads(file.read_text())
    except FileNotFoundError:
        raise Refusal(f"there is no {file}. Those that are: {_known(file.parent)}.") from None
    except ValueError as error:
        raise Refusal(f"{file} is not JSON: {error}") from None
    try:
        sample = Sample(**fill(written, new=unique or secrets.token_hex(8), now=time.time()))
    except TypeError:
        raise Refusal(f"{file} is not a sample event: see events/README.md.") from None
    if (sample.path is None) == (sample.invoke is None):
        raise Refusal(f"{file} must have either a path or invoke: see events/README.md.")
    return sample


def fill(value: Any, *, new: str, now: float) -> Any:
    """Strings with `{new}` replaced; a string that is `{now}` or `{now_ms}` becomes a number."""
    if isinstance(value, dict):
        return {key: fill(item, new=new, now=now) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, new=new, now=now) for item in value]
    if value == "{now}":
        return int(now)
    if value == "{now_ms}":
        return int(now * 1000)
    return value.replace("{new}", new) if isinstance(value, str) else value


def _known(folder: Path) -> str:
    return ", ".join(sorted(map(str, folder.glob("*.json")))) or "none"
