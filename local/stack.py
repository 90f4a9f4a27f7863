"""`make dev`: all of Backplane on this machine, from the template that is deployed."""

import argparse
import platform
import time
from contextlib import ExitStack, suppress

from local import checkout, lifetime
from local.assembly import assemble
from local.checkout import Data
from local.children import end_leftovers
from local.lock import Lock
from local.postgres import Postgres, PostgresError
from local.refusal import Refusal, exits
from local.running import Stack
from local.terminal import say

MAX_LOG = 20 * 1024 * 1024  # bytes; a longer one is set aside when the stack starts


def main() -> int:
    parser = argparse.ArgumentParser(prog="make dev", description=__doc__)
    parser.add_argument("--port", type=int, default=3000, help="of the API; 0 picks a free one")
    parser.add_argument("--forget", action="store_true", help="delete the local cloud's data instead")
    arguments = parser.parse_args()
    if platform.system() != "Linux":
        raise Refusal(
            f"the local cloud runs on Linux and WSL 2, and this is {platform.system()}: AWS's runtime "
            f"emulator is a Linux program. Run it in a Linux virtual machine or a development container."
        )
    return forget(checkout.data()) if arguments.forget else run(checkout.data(), arguments.port)


def run(data: Data, port: int) -> int:
    """Start everything and stay until told to stop. Raises Refusal."""
    began = time.monotonic()
    lifetime.stop_on_signals()
    lifetime.follow_parent()
    try:
        with ExitStack() as cleanup:
            _prepare(data, cleanup)
            stack = assemble(data, port, cleanup)
            cleanup.callback(data.stack.unlink, missing_ok=True)
            stack.write(data.stack)
            _announce(stack, time.monotonic() - began)
            lifetime.wait()
    except lifetime.Stop:
        say("Stopped. The data stays; `make clean-local` forgets it.")
    return 0


def forget(data: Data) -> int:
    """Delete the local cloud's data. Raises Refusal while it runs."""
    if not data.folder.exists():
        say("There is no local cloud here to forget.")
        return 0
    with Lock(data.lock):
        end_leftovers(data.processes)
        try:
            Postgres(data.postgres).forget()
        except PostgresError as error:
            raise Refusal(str(error)) from None
        data.forget()
    with suppress(OSError):  # tests may have theirs in it
        data.folder.rmdir()
    kept = (
        " The database of your DATABASE_URL is not touched." if "DATABASE_URL" in checkout.overrides() else ""
    )
    say(f"Forgot the local cloud's data.{kept}")
    return 0


def _prepare(data: Data, cleanup: ExitStack) -> None:
    """The folder is ours alone, and nothing of a killed run is left in it."""
    data.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = cleanup.enter_context(Lock(data.lock))
    ended = end_leftovers(data.processes)
    data.stack.unlink(missing_ok=True)
    if lock.taken_over:
        left = f" and ended {ended} of its processes" if ended else ""
        say(f"The last run (pid {lock.taken_over}) was killed: took over its lock{left}.")
    data.logs.mkdir(mode=0o700, exist_ok=True)
    for log in data.logs.glob("*.log"):
        if log.stat().st_size > MAX_LOG:
            log.replace(log.with_suffix(".log.old"))


def _announce(stack: Stack, seconds: float) -> None:
    database = stack.database_url.rpartition("@")[2]
    say(
        f"Backplane is ready after {seconds:.1f} s: API {stack.api_url} · Lambda {stack.lambda_url} · "
        f"AWS {stack.aws_endpoint_url} · PostgreSQL {database}"
    )
    say("Try, in another terminal:")
    say(f"  curl {stack.api_url}/health")
    say("  make send E=events/clerk_webhook.json")
    say(f'  curl -H "Authorization: Bearer $(make -s token USER=user_demo)" {stack.api_url}/v1/credits')


if __name__ == "__main__":
    exits(main)
