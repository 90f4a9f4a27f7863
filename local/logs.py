"""`make logs [F=credits]`: follow the functions' logs, from their last lines on.

On a terminal as a person reads them; through a pipe as they are, a JSON object a line.
"""

import argparse
import json
import sys
import time
from collections import deque
from pathlib import Path
from typing import IO

from local import checkout, invocation
from local.refusal import Refusal, exits

LAST = 20  # lines shown of what was there before
INTERVAL = 0.2  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="make logs", description=__doc__)
    parser.add_argument("function", nargs="?", default="", help="its folder's name; omitted: all")
    name = parser.parse_args().function
    folder = checkout.data().logs
    if not folder.is_dir():
        raise Refusal("there are no logs yet. Start the local cloud with `make dev`.")
    if name and not (checkout.template().parent / "functions" / name).is_dir() and name != "aws":
        raise Refusal(f"there is no function {name}.")
    follow(folder, name)


def follow(folder: Path, name: str) -> None:
    """Print lines as they come, until Ctrl-C; files that appear later too."""
    open_files: dict[Path, IO[str]] = {}
    while True:
        wrote = False
        for path in sorted(folder.glob(f"{name or '*'}.log")):
            prefix = "" if name else f"{path.stem:<16} "
            if path not in open_files or _was_replaced(path, open_files[path]):
                open_files[path] = path.open(errors="replace")
                lines = list(deque(open_files[path], LAST))
            else:
                lines = open_files[path].readlines()
            for line in lines:
                sys.stdout.write(prefix + (_for_a_person(line) if sys.stdout.isatty() else line))
            wrote = wrote or bool(lines)
        sys.stdout.flush()
        if not wrote:
            time.sleep(INTERVAL)


def _for_a_person(line: str) -> str:
    """The message with its traceback; an invocation's end is a line across."""
    try:
        record = json.loads(line)
        metrics, request_id = record["record"]["metrics"], record["record"]["requestId"]
    except (ValueError, LookupError, TypeError):
        told = [each.removeprefix(invocation.MARGIN) for each in invocation.readable(line.rstrip("\n"))]
        return "\n".join(told) + "\n"
    return f"{request_id} {' '.join(f'{name} {value:g}' for name, value in metrics.items())}\n"


def _was_replaced(path: Path, opened: IO[str]) -> bool:
    """A stack that starts sets a long log aside."""
    return path.stat().st_size < opened.tell()


if __name__ == "__main__":
    exits(main)
