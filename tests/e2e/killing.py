"""Functions' processes killed while they work, and callers who don't take that for an answer."""

import http.client
import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.e2e.local_cloud import Answer, Cloud, until

PATIENCE = 200  # repetitions of a request: a bound, never a measure

TRANSIENT = {429, 500, 502, 503, 504}


def kill(stack: Cloud, handlers: set[str], luck: random.Random) -> None:
    """Kills one of the processes that serve these functions, as soon as there is one: `credits.handler`."""
    pids = until(lambda: environments(stack, handlers), f"an environment of {handlers} runs")
    with suppress(ProcessLookupError):
        os.kill(luck.choice(pids), signal.SIGKILL)


def environments(stack: Cloud, handlers: set[str]) -> list[int]:
    wanted = {handler.encode() for handler in handlers}
    found = []
    for pid in stack.family():
        with suppress(OSError):
            arguments = set(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"))
            if b"awslambdaric" in arguments and arguments & wanted:
                found.append(pid)
    return found


def answered(
    ask: Callable[[], Answer], again: Callable[[Answer], bool] = lambda _: False
) -> tuple[Answer, int]:
    """Asks until it is answered, by the function and not by what is left of it, and not so that `again`
    says to repeat it. Answers how often it asked again, too.
    """
    for repeated in range(PATIENCE):
        with suppress(OSError, http.client.HTTPException):
            answer = ask()
            if answer.status not in TRANSIENT and not again(answer):
                return answer, repeated
    raise AssertionError("a request must be answered in the end")
