"""One stack a data folder: whoever holds the lock file's flock, which dies with its holder."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from local.refusal import Refusal


class Lock:
    """Raises Refusal where another process holds it. `taken_over` is the id of a killed one's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.taken_over: int | None = None

    def __enter__(self) -> Self:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            holder = os.read(descriptor, 32).decode().strip()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise Refusal(
                    f"a local cloud is already running here (pid {holder or 'unknown'}). "
                    f"Use that one, or stop it with `kill {holder or 'PID'}`."
                ) from None
            if self._is_current(descriptor):
                break
            os.close(descriptor)  # its holder was leaving and has removed the file
        self._descriptor = descriptor
        self.taken_over = int(holder) if holder.isdigit() else None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _is_current(self, descriptor: int) -> bool:
        try:
            current = self._path.stat()
        except FileNotFoundError:
            return False
        mine = os.fstat(descriptor)
        return (current.st_dev, current.st_ino) == (mine.st_dev, mine.st_ino)
