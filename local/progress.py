"""A bar at a terminal, a line now and then elsewhere."""

import sys
import time

WIDTH = 30  # characters
EVERY = 5.0  # seconds between lines that are not a terminal's
MIB = 1024**2


class Bar:
    """How far a piece of work is. Writes to stderr, so that the answer alone is on stdout."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = self._told = time.monotonic()
        self._drawn = False

    def show(self, done: int, total: int | None = None) -> None:
        """Bytes done, out of so many where that is known."""
        now = time.monotonic()
        if now - self._told < (0.1 if sys.stderr.isatty() else EVERY):
            return
        self._told = now
        share = min(1.0, done / total) if total else None
        bar = "" if share is None else f"[{'#' * int(share * WIDTH):<{WIDTH}}] {share:4.0%}  "
        line = f"{self._what}  {bar}{done / MIB:,.1f} MB  {now - self._began:.0f} s"
        sys.stderr.write(f"\r{line}\x1b[K" if sys.stderr.isatty() else f"{line}\n")
        sys.stderr.flush()
        self._drawn = True

    def end(self) -> None:
        if self._drawn and sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
