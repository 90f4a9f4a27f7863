"""The processes of a run: each dies with the stack, is written down, and is ended by its id."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

SHIM = Path(__file__).with_name("die_with_parent.py")


def dies_with(parent: int, command: Sequence[str | Path]) -> list[str]:
    """The command, wrapped so that the kernel ends it when `parent` dies (0: whoever starts it)."""
    return [sys.executable, "-I", "-S", str(SHIM), str(parent), *map(str, command)]


class StoppingError(OSError):
    """Nothing is started any more."""

    def __init__(self) -> None:
        super().__init__("the stack is stopping")


class Children:
    """Starts processes and remembers them.

    All are forked from one thread that lives as long as this object: to the kernel the parent whose
    death ends a child is a thread, and those that serve requests come and go.
    """

    def __init__(self, record: Path) -> None:
        self._record = record
        self._record.write_text("")
        self._forker = ThreadPoolExecutor(1, thread_name_prefix="forker")
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def spawn(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str],
        cwd: Path,
        stdout: int | None = None,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """Start it with stdout and stderr together, in a session of its own: a terminal's Ctrl-C is ours.

        Raises StoppingError.
        """
        try:
            starting = self._forker.submit(
                self._spawn,
                dies_with(os.getpid(), command),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=tuple(pass_fds),
            )
        except RuntimeError:  # the executor's, once it is shut down
            raise StoppingError from None
        return starting.result()

    def _spawn(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        # In the forker, as close() is: after it has begun, nothing is started.
        if self._closed:
            raise StoppingError
        process = subprocess.Popen(command, **options)
        with self._record.open("a") as record:
            record.write(f"{process.pid} {started_at(process.pid)}\n")
        with self._lock:
            self._running.add(process)
        return process

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """End it now, with whatever it has started."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a session's leader is its group's too
        process.wait()
        with self._lock:
            self._running.discard(process)

    def close(self) -> None:
        """End them all and start no more."""

        def shut() -> list[subprocess.Popen[bytes]]:
            self._closed = True
            return list(self._running)

        for process in self._forker.submit(shut).result():
            self.end(process)
        self._forker.shutdown()
        self._record.unlink(missing_ok=True)


def started_at(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; with its id this names it for ever.

    None: it is gone, or is a zombie that nobody has waited for.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, started = fields[0], fields[19]  # fields 3 and 22 of proc_pid_stat(5)
    return None if state in {"Z", "X"} else started


def end_leftovers(record: Path) -> int:
    """End what a killed run has left, by what it wrote down; how many there were."""
    try:
        lines = record.read_text().splitlines()
    except FileNotFoundError:
        return 0
    ended = 0
    for line in lines:
        pid, _, started = line.partition(" ")
        if pid.isdigit() and started and started_at(int(pid)) == started:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(int(pid), signal.SIGKILL)
                ended += 1
    record.unlink(missing_ok=True)
    return ended
