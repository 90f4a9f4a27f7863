"""Run a command that the kernel ends when its parent dies, even of kill -9.

    python -I -S die_with_parent.py PARENT COMMAND...

A program of its own, and not subprocess's preexec_fn, because that runs Python between fork and
exec while other threads hold locks. The wish survives exec. "Parent" is the thread that forked, so
that thread must live on. PARENT is its process id; 0 where the starter can't know it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent and os.getppid() != parent:  # it died before the line above
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606  the command is what this program is for


if __name__ == "__main__":
    main()
