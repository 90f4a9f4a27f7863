"""What one execution environment prints: kept as JSON lines, and gathered by invocation.

The emulator's own lines tell where an invocation begins and ends, and how long it took. Everything
between is the function's. A line that is no JSON is put into one, so that a log file is JSON throughout.
"""

import json
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from local.children import started_at
from local.terminal import redact

KEPT = 500  # lines an invocation, the last ones

_INIT = re.compile(rb"INIT_REPORT Pid: (\d+)\tInit Duration: ([\d.]+) ms")
_REPORT = re.compile(rb"REPORT RequestId: (\S+)\t(?:Init Duration: \S+ ms\t)?Duration: ([\d.]+) ms")
_NOISE = re.compile(rb"(START|END) RequestId: |\d+ \w+ \d+ [\d:,]+ \[\w+\] \(rapid\)")


@dataclass(frozen=True)
class Report:
    """What Lambda's REPORT line tells of an invocation, and what the function printed meanwhile."""

    duration: float | None = None  # ms, without the initialization; None: it was ended before it could say
    init: float | None = None  # ms; only of an environment's first invocation
    memory: int | None = None  # MB, the most the process has had
    lines: tuple[str, ...] = ()  # as printed


class LogStream:
    """Reads a pipe until its end, on a thread of its own."""

    def __init__(self, reader: int, path: Path) -> None:
        self._reader = reader
        self._path = path
        self._lines: deque[str] = deque(maxlen=KEPT)
        self._pid = 0
        self._runtime: tuple[int, str | None] | None = None  # the function's process and when it began
        self._init: float | None = None
        self._expected: deque[Future[Report]] = deque()  # an answer may come before its report is read
        self._ended = False
        self._lock = threading.Lock()
        threading.Thread(target=self._read, name="log", daemon=True).start()

    def expect(self) -> Future[Report]:
        """The report of the invocation about to begin. It always comes: at the latest when the pipe ends."""
        expected: Future[Report] = Future()
        with self._lock:
            if self._ended:
                expected.set_result(Report())
            else:
                self._expected.append(expected)
        return expected

    @property
    def runtime_lives(self) -> bool:
        """False: the function's process was there and is gone."""
        runtime = self._runtime
        return runtime is None or (runtime[1] is not None and started_at(runtime[0]) == runtime[1])

    def _read(self) -> None:
        with os.fdopen(self._reader, "rb") as lines, self._path.open("ab", buffering=0) as log:
            for line in lines:
                self._take(redact(line), log.write)
        with self._lock:
            self._ended = True
        while self._expected:
            self._settle(None, None)

    def _take(self, line: bytes, write: Callable[[bytes], object]) -> None:
        if report := _REPORT.match(line):
            request_id, duration = report[1].decode(), float(report[2])
            init, memory = self._init, self._peak_memory()
            # The emulator counts the initialization into the first invocation's duration.
            duration = max(duration - (init or 0), 0.0)
            write(_report_line(request_id, duration, init, memory))
            self._settle(duration, memory)
        elif began := _INIT.match(line):
            self._pid, self._init = int(began[1]), float(began[2])
            self._runtime = (self._pid, started_at(self._pid))
        elif not _NOISE.match(line):
            self._lines.append(line.decode(errors="replace").rstrip("\n"))
            write(as_json(line))

    def _settle(self, duration: float | None, memory: int | None) -> None:
        report = Report(duration, self._init, memory, tuple(self._lines))
        self._lines.clear()
        self._init = None
        with self._lock:
            expected = self._expected.popleft() if self._expected else None
        if expected:
            expected.set_result(report)

    def _peak_memory(self) -> int | None:
        with suppress(OSError):
            for line in Path(f"/proc/{self._pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) // 1024
        return None


def as_json(line: bytes) -> bytes:
    """The line, or the line as the message of a JSON object."""
    stripped = line.strip()
    if stripped.startswith(b"{"):
        with suppress(ValueError):
            if isinstance(json.loads(stripped), dict):
                return stripped + b"\n"
    message = line.decode(errors="replace").rstrip("\n").replace("\r", "\n").replace("\xa0", " ")
    return json.dumps({"timestamp": _now(), "message": message}, ensure_ascii=False).encode() + b"\n"


def _report_line(request_id: str, duration: float, init: float | None, memory: int | None) -> bytes:
    """As Lambda's JSON log format has it."""
    metrics = {"durationMs": round(duration, 2), "initDurationMs": init, "maxMemoryUsedMB": memory}
    record = {
        "requestId": request_id,
        "metrics": {name: value for name, value in metrics.items() if value is not None},
    }
    return json.dumps({"time": _now(), "type": "platform.report", "record": record}).encode() + b"\n"


def _now() -> str:
    seconds = time.time()
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds * 1000) % 1000:03d}Z"
