"""`make demo`: the product in a minute, on a scratch stack of its own.

Each row is done over HTTP or the Invoke API with a real signature, and checked in the database. Exits
with 1 if any row is wrong.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from local import checkout
from local.refusal import Refusal, exits
from local.running import Stack, read
from local.story import Mismatch, Row, Story
from local.story_rows import STORY

START = 120.0  # seconds for a stack to be ready
STOP = 30.0


def main() -> int:
    print("A scratch stack starts (yours, if it runs, is left alone) …", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="backplane-demo-") as folder,
        scratch_stack(Path(folder)) as stack,
    ):
        return tell(Story(stack), STORY)


def tell(story: Story, rows: Sequence[Row]) -> int:
    """Does the rows one after the other and prints what came of each. Answers the exit status."""
    began = time.monotonic()
    wrong = 0
    width = max(len(row.title) for row in rows)
    for number, row in enumerate(rows, 1):
        started = time.monotonic()
        print(f"{number:>3}  {row.title:<{width}}  ", end="", flush=True)
        try:
            seen, mark = row.act(story), "ok"
        except Mismatch as mismatch:
            seen, mark = str(mismatch), "WRONG"
        except Exception as error:  # noqa: BLE001  a row that breaks is a wrong row; the next ones still tell
            seen, mark = f"{type(error).__name__}: {error}", "WRONG"
        wrong += mark != "ok"
        print(f"{mark:<5}  {seen}  ({(time.monotonic() - started) * 1000:.0f} ms)", flush=True)
    seconds = time.monotonic() - began
    print(f"\n{len(rows) - wrong} of {len(rows)} rows are right, in {seconds:.1f} s.")
    return 1 if wrong else 0


@contextmanager
def scratch_stack(folder: Path) -> Iterator[Stack]:
    """A stack with data of its own, from start to `--forget`. Raises Refusal where it does not start."""
    environment = os.environ | {"BACKPLANE_LOCAL_DATA": str(folder), "BACKPLANE_ENV_FILE": os.devnull}
    for name in checkout.REPLACEABLE:
        environment.pop(name, None)
    output = folder / "output"
    command = [sys.executable, "-m", "local.stack"]
    with output.open("w") as sink:
        process = subprocess.Popen(
            [*command, "--port", "0"], env=environment, stdout=sink, stderr=subprocess.STDOUT
        )
    try:
        yield _ready(process, checkout.Data(folder), output)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP)
        process.kill()
        process.wait()
        subprocess.run([*command, "--forget"], env=environment, check=False, capture_output=True)


def _ready(process: "subprocess.Popen[bytes]", data: checkout.Data, output: Path) -> Stack:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and process.poll() is None:
        if data.stack.exists():
            return read(data.stack)
        time.sleep(0.05)
    raise Refusal(f"the scratch stack did not start:\n{output.read_text()}")


if __name__ == "__main__":
    exits(main)
