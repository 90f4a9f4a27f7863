"""Whether a function's files have changed, known to the request that comes next.

Each request looks, which costs about 0.1 ms for a function and its layer; requests that come together
share a look. Watching the kernel's events would cost less, but does not see the folders that WSL and
virtual machines mount. ctime says more than mtime: nobody can set it back.
"""

import itertools
import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

QUIET = 0.05  # seconds without a change before one counts: an editor may be in the middle of a file
PATIENCE = 1.0  # seconds; while the files keep changing, the code before serves
YOUNG = 2.5  # seconds; bytecode names its source by the second of its last change
INTERVAL = 0.01  # seconds between looks at files that are not quiet

_IGNORED = (".pyc", ".swp", ".swx", ".tmp", "~")

_editions = itertools.count(1)  # one for all, so that of two the greater is the later

Stamp = tuple[str, int, int, int]  # path, ctime in ns, size, inode


class Sources:
    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = tuple(paths)  # of files, and of folders with all that is in them
        self._lock = threading.Lock()
        self._looked = float("-inf")  # when the last look began
        self._stamps: tuple[Stamp, ...] | None = None
        self._changed = 0.0  # by the files' clock
        self._edition = 0

    def edition(self) -> int:
        """A number that grows with every change. Waits until the files are quiet, but not for long."""
        arrived = time.monotonic()
        with self._lock:
            while self._looked < arrived:
                looked = time.monotonic()
                stamps = tuple(sorted(stamp for path in self.paths for stamp in _stamps(path)))
                self._changed = max((stamp[1] for stamp in stamps), default=0) / 1e9
                is_late = looked > arrived + PATIENCE
                if stamps == self._stamps:
                    self._looked = looked
                elif self.age > QUIET or (is_late and self._stamps is None):
                    self._stamps, self._looked = stamps, looked
                    self._edition = next(_editions)
                elif is_late:
                    self._looked = looked
                else:
                    time.sleep(INTERVAL)
            return self._edition

    @property
    def age(self) -> float:
        """Seconds since the last change that a look has seen."""
        return abs(time.time() - self._changed)

    @property
    def are_young(self) -> bool:
        """Whether a change of the same length could still fall into the same second as the last one."""
        return self.age < YOUNG


def _stamps(root: Path) -> Iterator[Stamp]:
    waiting, seen = [str(root)], set()
    while waiting:
        path = waiting.pop()
        try:
            status = os.stat(path)  # noqa: PTH116  as scandir: a Path a file would cost more than the look
            if stat.S_ISREG(status.st_mode):
                yield path, status.st_ctime_ns, status.st_size, status.st_ino
                continue
            entries = list(os.scandir(path))
        except OSError:  # a folder that is being replaced
            continue
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.name.startswith((".", "__pycache__")) or entry.name.endswith(_IGNORED):
                continue
            try:
                if entry.is_dir():
                    waiting.append(entry.path)
                else:
                    file = entry.stat()
                    yield entry.path, file.st_ctime_ns, file.st_size, file.st_ino
            except OSError:  # a file that is being replaced
                continue
