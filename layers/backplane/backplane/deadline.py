"""How long this invocation may still work. One invocation runs at a time in a process."""

import time
from typing import Final

DEFAULT_BUDGET: Final = 30.0  # seconds for one unit of work where no deadline is set
MARGIN: Final = 0.5  # seconds of an invocation kept back to answer in

_ends: float | None = None  # on time.monotonic's clock


def begin(seconds_remaining: float) -> None:
    """The invocation is cut off after so many seconds."""
    global _ends  # noqa: PLW0603
    _ends = time.monotonic() + seconds_remaining - MARGIN


def forget() -> None:
    global _ends  # noqa: PLW0603
    _ends = None


def remaining() -> float:
    """Seconds this invocation may still work, less what it takes to answer."""
    return DEFAULT_BUDGET if _ends is None else _ends - time.monotonic()
