"""A refusal to go on that a person can act on: what is in the way, and the way out."""

import sys
from collections.abc import Callable
from typing import NoReturn


class Refusal(Exception):  # noqa: N818  it is not a defect, it is an answer
    """Printed as it stands, without a traceback."""


def exits(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's main function and exit as it says: 1 for a refusal, 130 for Ctrl-C."""
    try:
        sys.exit(main() or 0)
    except Refusal as refusal:
        sys.exit(f"backplane: {refusal}")  # to stderr, status 1
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `make logs | head`
        sys.stderr.close()
        sys.exit(0)
