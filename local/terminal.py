"""Lines to the person at the terminal."""

import os
from contextlib import suppress


def say(line: str) -> None:
    """Write a line in one piece, so that threads don't mix theirs; a closed terminal is no error."""
    with suppress(OSError):
        os.write(1, f"{line}\n".encode())
