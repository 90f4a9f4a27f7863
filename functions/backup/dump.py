"""pg_dump through zstd into S3: streamed, nothing on disk, and no longer than there is time."""

import fcntl
import hashlib
import os
import select
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, Final

import zstandard

from backplane import catalogue, pgtools
from backplane.multipart import Upload

CHUNK: Final = 1024 * 1024  # bytes a read
LEVEL: Final = 1  # zstd's: the fastest; higher ones cost more time than they save bytes
LOCK_WAIT: Final = 30  # seconds pg_dump waits for a table that somebody has locked

# A function that is cut off says no farewell: by these the server notices within two minutes, and
# lets go of the dump's locks and of the maintenance lock. (The defaults are hours.)
WATCHFULNESS: Final = {
    "tcp_keepalives_idle": 60,
    "tcp_keepalives_interval": 10,
    "tcp_keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}

Report = Callable[[int, int], None]  # hears bytes dumped and bytes stored


class DumpError(RuntimeError):
    """The dump is not whole; the message says why."""


@dataclass(frozen=True)
class Dumped:
    dump_bytes: int
    bytes: int
    sha256: str


def command(parameters: Mapping[str, Any], snapshot: str) -> tuple[list[str], dict[str, str]]:
    """pg_dump's arguments and environment. Raises pgtools.ToolError."""
    conninfo, secret = pgtools.connection(parameters)
    return [
        pgtools.program("pg_dump"),
        "--format=custom",
        "--compress=none",  # zstd does it here, in one stream
        "--no-password",
        f"--lock-wait-timeout={LOCK_WAIT}s",
        # Without it pg_dump refuses tables that row-level security binds it by, with it they may seem
        # empty: visibility.py has made sure that this role's policies show every row.
        "--enable-row-security",
        f"--exclude-extension={catalogue.COUNTING}",
        f"--snapshot={snapshot}",
        f"--dbname={conninfo}",
    ], secret | {"PGOPTIONS": " ".join(f"-c {name}={value}" for name, value in WATCHFULNESS.items())}


def stream(tool: pgtools.Tool, upload: Upload, *, ends: float, report: Report) -> Dumped:
    """All that pg_dump writes, compressed, into the upload, which is left to be completed.

    Raises DumpError, pgtools.ToolError where pg_dump failed, TimeoutError at `ends`, UploadError.
    """
    # Its size is not known, and so not in the frame; the checksum is.
    deflater = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, threads=_threads()).compressobj()
    digest = hashlib.sha256()
    dumped = 0

    def store(block: bytes) -> None:
        if block:
            digest.update(block)
            upload.write(block)

    for chunk in _chunks(tool.stdout, ends):
        dumped += len(chunk)
        store(deflater.compress(chunk))
        report(dumped, upload.sent)
    # The end of the pipe is not the end of the work: a program that died closes it, too.
    tool.finish(max(0.0, ends - time.monotonic()))
    if dumped == 0:
        raise DumpError(f"pg_dump wrote nothing. {tool.said}".strip())
    store(deflater.flush())
    return Dumped(dumped, upload.bytes, digest.hexdigest())


def _chunks(pipe: IO[bytes], ends: float) -> Iterator[memoryview]:
    """What comes through the pipe, in a buffer that is used again. Raises TimeoutError."""
    with suppress(OSError):  # it is faster with it, and the system may limit it
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, CHUNK)
    buffer = memoryview(bytearray(CHUNK))
    waiting = select.poll()
    waiting.register(pipe, select.POLLIN | select.POLLHUP)
    while True:
        if not waiting.poll(max(0.0, ends - time.monotonic()) * 1000):
            raise TimeoutError("the time was up while the database was being dumped")
        size = os.readv(pipe.fileno(), [buffer])
        if not size:
            return
        if time.monotonic() > ends:
            raise TimeoutError("the time was up while the database was being dumped")
        yield buffer[:size]


def _threads() -> int:
    """0 compresses in the caller's thread; more hands it on, so that reading goes on meanwhile."""
    return 1 if (os.cpu_count() or 1) > 1 else 0
