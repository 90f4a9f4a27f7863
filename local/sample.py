"""Sample events, as events/README.md describes them, with what a sender would make new each time."""

import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.refusal import Refusal

_MOMENT = re.compile(r"\{now(_ms)?(?:([+-]\d+)([smhd]))?\}")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True)
class Sample:
    """Either an HTTP request (`method` and `path`) or the payload of an invocation."""

    description: str
    method: str | None = None
    path: str | None = None
    headers: Mapping[str, str] | None = None
    body: Any = None
    user: str = "user_demo"  # whose token goes with a request to /v1
    platform: str | None = None  # the platform role that he gets first
    after: str | None = None  # the sample beside it that is sent first, for its answer's id
    secret: str | None = None  # that signs what goes to an integration's webhook
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
    """Strings with `{new}` replaced; a string that is `{now}`, `{now_ms}`, `{now+30d}`… becomes a number."""
    if isinstance(value, dict):
        return {key: fill(item, new=new, now=now) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, new=new, now=now) for item in value]
    if not isinstance(value, str):
        return value
    if moment := _MOMENT.fullmatch(value):
        seconds = now + int(moment[2] or 0) * _SECONDS[moment[3] or "s"]
        return int(seconds * 1000) if moment[1] else int(seconds)
    return value.replace("{new}", new)


def _known(folder: Path) -> str:
    return ", ".join(sorted(map(str, folder.glob("**/*.json")))) or "none"
