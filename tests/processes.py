"""Programs that race, each in a process of its own, as on Lambda."""

import os
import subprocess
import sys
from collections.abc import Sequence

PATIENCE = 100.0  # seconds: a bound, never a measure


def race(program: str, *arguments: Sequence[str], gates: int = 1) -> list[list[str]]:
    """What each printed, by word; a program for each list of arguments.

    At each gate a program prints "ready" and reads a line: it is let through when all of them wait there.
    """
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", program, *own],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        for own in arguments
    ]
    try:
        for _ in range(gates):
            for racer in racers:
                assert racer.stdout is not None
                assert racer.stdout.readline() == "ready\n"
            for racer in racers:
                assert racer.stdin is not None
                racer.stdin.write("go\n")
                racer.stdin.flush()
        said = [racer.communicate(timeout=PATIENCE)[0].split() for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
    assert [racer.returncode for racer in racers] == [0] * len(racers)
    return said
