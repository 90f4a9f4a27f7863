"""Lines to the person at the terminal, without the run's secrets."""

import os
from collections.abc import Iterable
from contextlib import suppress

MIN_SECRET = 8  # characters; hiding a shorter one would garble words

_hidden: set[bytes] = set()


def say(line: str) -> None:
    """Write a line in one piece, so that threads don't mix theirs; a closed terminal is no error."""
    with suppress(OSError):
        os.write(1, redact(f"{line}\n".encode()))


def hide(secrets: Iterable[str]) -> None:
    """From now on these appear in no line and no log."""
    _hidden.update(each.encode() for each in secrets if len(each) >= MIN_SECRET)


def redact(line: bytes) -> bytes:
    for secret in _hidden:
        line = line.replace(secret, b"***")
    return line
