"""`make dev`: all of Backplane on this machine, from the template that is deployed."""

import argparse
import json
import platform
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from local import aws, checkout, lifetime, ports
from local.checkout import Data
from local.children import Children, end_leftovers
from local.credentials import Credentials
from local.lock import Lock
from local.postgres import Postgres, PostgresError
from local.refusal import Refusal, exits
from local.running import Stack
from local.terminal import say

if TYPE_CHECKING:
    from local.runtime import Runtime
    from local.server import Server

DATABASE = "backplane"
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
            stack = start(data, port, cleanup)
            cleanup.callback(data.stack.unlink, missing_ok=True)
            stack.write(data.stack)
            _announce(stack, time.monotonic() - began)
            lifetime.wait()
    except lifetime.Stop:
        say("Stopped. The data stays; `make clean-local` forgets it.")
    return 0


def start(data: Data, port: int, cleanup: ExitStack) -> Stack:
    """Start everything, each with its end in `cleanup`; everything answers. Raises Refusal."""
    overrides = checkout.overrides()
    listener = cleanup.enter_context(ports.listen(port))
    remembered = ports.Remembered(data.ports)
    children = Children(data.processes)
    cleanup.callback(children.close)
    aws_url = aws.start(children, remembered.listen("aws"), data.logs / "aws.log")
    owner_url = _database(data, overrides.get("DATABASE_URL"), cleanup)

    # SAM's modules take half a second to import; meanwhile moto starts.
    from local import application, parameters, service_key, wiring
    from local.gateway import Gateway
    from local.invoke_api import InvokeApi
    from local.issuer import Jwks, SigningKey
    from local.runtime import Runtime
    from local.server import Server

    credentials = Credentials(data.secrets)
    client = aws.clients(aws_url)
    issuer = _serve(Server(remembered.listen("issuer"), Jwks(SigningKey(data.signing_key))), cleanup)
    senders = parameters.Senders.of(overrides, credentials, issuer)
    app = application.create(
        checkout.template(),
        parameters.parameters(senders, owner_url, listener.getsockname()[1], client),
        client,
        credentials,
    )
    wired = wiring.connect(
        app.functions,
        client,
        aws_url=aws_url,
        owner_url=owner_url,
        direct_url=overrides.get("DATABASE_DIRECT_URL"),
    )
    runtime = Runtime(wired.functions, children, data.logs)
    lambda_url = _serve(Server(remembered.listen("lambda"), InvokeApi(runtime)), cleanup)
    _migrate(runtime, data)
    stack = Stack(
        api_url=f"http://{ports.HOST}:{listener.getsockname()[1]}",
        lambda_url=lambda_url,
        aws_endpoint_url=aws_url,
        database_url=wired.database_urls["backplane_app"],
        admin_database_url=owner_url,
        stripe_webhook_secret=senders.stripe_secrets[0],
        clerk_webhook_secret=senders.clerk_secrets[0],
        service_key=service_key.seed(owner_url, credentials),
        issuer=senders.issuer,
        signing_key_path=str(data.signing_key),
        functions={each.folder: each.name for each in wired.functions},
    )
    cleanup.callback(runtime.close)
    gateway = Gateway(app.api, runtime, listener.getsockname()[1], app.expose_headers)
    _serve(Server(listener, gateway.app), cleanup)
    return stack


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


def _database(data: Data, given: str | None, cleanup: ExitStack) -> str:
    """The owner's URL. Raises Refusal."""
    from local import owner  # psycopg, which other messages need not wait for

    if given:
        owner.check(given)
        return given
    server = Postgres(data.postgres)
    if not server.home.exists():
        say(f"Making a PostgreSQL server for this checkout; its data will be in {server.home}.")
    cleanup.callback(server.stop)
    try:
        server.start()
    except PostgresError as error:
        raise Refusal(f"{error} Or set DATABASE_URL to a server of yours.") from None
    owner.ensure_database(server.url(), DATABASE)
    return server.url(DATABASE)


def _serve(server: "Server", cleanup: ExitStack) -> str:
    server.start()
    cleanup.callback(server.stop)
    return server.url


def _migrate(runtime: "Runtime", data: Data) -> None:
    """Bring the database up to date as a deployment does: by invoking the function."""
    from local.environment import Status

    outcome = runtime.invoke("migrate", b"{}")
    if outcome.status is not Status.OK:
        cause = json.loads(outcome.payload).get("errorMessage", "")
        raise Refusal(
            f"the database can't be brought up to date: {cause}\n"
            f"The log is {data.logs / 'migrate.log'}. Where the data doesn't matter: `make clean-local`."
        )


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
