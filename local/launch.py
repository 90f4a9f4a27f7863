"""Run AWS's runtime client for a function, and say when its initialization has ended.

    python -P launch.py awslambdaric MODULE.HANDLER

As `python -m awslambdaric MODULE.HANDLER`, but for a line on stdout before the first invocation is
asked for: the runtime emulator starts the clock of its own "Init Duration" too late to be of use.
"""

import os
import sys
import time
from pathlib import Path

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
    runtime.main(sys.argv)


def age() -> float:
    """Seconds since this process began, the interpreter's own start with it."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
