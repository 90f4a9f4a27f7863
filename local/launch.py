"""Run AWS's runtime client for a function, and say when its initialization has ended.

    python -P launch.py awslambdaric MODULE.HANDLER

As `python -m awslambdaric MODULE.HANDLER`, but for a line on stdout before the first invocation is
asked for: the runtime emulator starts the clock of its own "Init Duration" too late to be of use. And but
for the traceback of an import that failed, of which the client keeps the last line only.
"""

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType

from awslambdaric import __main__ as runtime  # type: ignore[import-untyped]
from awslambdaric.lambda_runtime_client import LambdaRuntimeClient  # type: ignore[import-untyped]


def main() -> None:
    sys.argv = sys.argv[1:]
    wait = LambdaRuntimeClient.wait_next_invocation

    def first_wait(client: LambdaRuntimeClient) -> object:
        LambdaRuntimeClient.wait_next_invocation = wait
        line = f"INIT_REPORT Pid: {os.getpid()}\tInit Duration: {age() * 1000:.2f} ms\n"
        os.write(1, line.encode())
        return wait(client)

    LambdaRuntimeClient.wait_next_invocation = first_wait
    _tell_of_imports(sys.argv[-1].rpartition(".")[0].replace("/", "."))
    runtime.main(sys.argv)


def _tell_of_imports(handlers_module: str) -> None:
    import_module = importlib.import_module

    def telling(name: str, package: str | None = None) -> ModuleType:
        try:
            return import_module(name, package)
        except ImportError as error:
            if name == handlers_module:
                trace = traceback.TracebackException.from_exception(error)
                trace.stack[:] = [frame for frame in trace.stack if not _is_machinery(frame.filename)]
                record = {"level": "ERROR", "message": "".join(trace.format()).rstrip()}
                os.write(1, json.dumps(record).encode() + b"\n")
            raise

    importlib.import_module = telling


def _is_machinery(filename: str) -> bool:
    return filename.startswith("<frozen ") or filename in {__file__, importlib.__file__}


def age() -> float:
    """Seconds since this process began, the interpreter's own start with it."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
