"""When the stack stops: on SIGINT, SIGTERM and SIGHUP, and when `make` has been told to.

`make dev` runs the stack as make's child. A Ctrl-C reaches both, being sent to the terminal's whole
process group, and make passes a SIGTERM on. But a SIGINT or SIGHUP to make alone is not passed on: make
puts the signal's default action back and waits for its child. And a kill -9 of make tells nobody.
So the parent is watched, twice a second: the stack stops when it is gone, or when it is a make that
has stopped catching one of these signals.
"""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

KEPT = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERVAL = 0.5  # seconds


class Stop(BaseException):
    """Raised in the main thread, once."""


def stop_on_signals() -> None:
    """From now on a signal to stop raises Stop in the main thread; those after the first do nothing."""
    for each in SIGNALS:
        signal.signal(each, _stop)


def ignore_signals() -> None:
    """A second Ctrl-C must not interrupt the stopping and leave processes."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)


def follow_parent() -> None:
    threading.Thread(target=_follow, args=(os.getppid(),), name="follow", daemon=True).start()


def wait() -> NoReturn:
    """Until Stop is raised.

    Not signal.pause(): a signal that comes just before it is noted, and then waited for, for ever.
    """
    while True:
        time.sleep(INTERVAL)


def _stop(_number: int, _frame: FrameType | None) -> None:
    ignore_signals()
    raise Stop


def _follow(parent: int) -> None:
    caught = _caught(parent) if _name(parent) in {"make", "gmake"} else 0
    while os.getppid() == parent and _caught(parent) & caught == caught:
        time.sleep(INTERVAL)
    os.kill(os.getpid(), signal.SIGTERM)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _caught(pid: int) -> int:
    """Which of the signals that make keeps to itself it has handlers for: bits of proc_pid_status(5)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    masks = dict(line.split(":\t", 1) for line in status.splitlines() if line.startswith("Sig"))
    return int(masks.get("SigCgt", "0"), 16) & sum(1 << (each - 1) for each in KEPT)
