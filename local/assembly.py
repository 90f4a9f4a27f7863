"""The parts of a local cloud, put together: processes, then the template's resources, then servers."""

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from local import aws, checkout, ports, state
from local.checkout import Data
from local.children import Children
from local.credentials import Credentials
from local.postgres import Postgres, PostgresError
from local.refusal import Refusal
from local.running import Stack
from local.terminal import hide, say

if TYPE_CHECKING:
    from local.application import Application
    from local.parameters import Senders
    from local.runtime import Runtime
    from local.server import Server
    from local.wiring import Wiring

DATABASE = "backplane"
HEALTH_TIMEOUT = 60  # seconds
SECRET_OVERRIDES = {
    "STRIPE_WEBHOOK_SECRET",
    "STRIPE_API_KEY",
    "CLERK_WEBHOOK_SECRET",
    "SUPABASE_CLIENT_SECRET",
}


@dataclass(frozen=True)
class Ground:
    """What the template's resources stand on."""

    data: Data
    overrides: Mapping[str, str]
    listener: socket.socket  # the API's
    ports: ports.Remembered
    children: Children
    aws_url: str
    owner_url: str
    credentials: Credentials

    @property
    def api_port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    @property
    def secrets(self) -> Iterator[str]:
        """What no log may show: the run's own and the developer's."""
        yield from self.credentials.known
        for name in SECRET_OVERRIDES & self.overrides.keys():
            yield from self.overrides[name].split(",")
        for url in (self.owner_url, self.overrides.get("DATABASE_DIRECT_URL", "")):
            yield unquote(urlsplit(url).password or "")


def assemble(data: Data, port: int, cleanup: ExitStack) -> Stack:
    """Start everything, each part with its end in `cleanup`; all of it answers. Raises Refusal."""
    ground = _start_processes(data, port, cleanup)

    # SAM's modules take half a second to import: meanwhile moto starts.
    from local import parameters, service_key
    from local.async_invoke import AsynchronousInvocations
    from local.deliveries import Deliveries
    from local.gateway import Gateway
    from local.invoke_api import InvokeApi
    from local.issuer import Jwks, SigningKey
    from local.reload import Live, Reload
    from local.runtime import Runtime
    from local.server import Server

    issuer = _serve(Server(ground.ports.listen("issuer"), Jwks(SigningKey(data.signing_key))), cleanup)
    senders = parameters.Senders.of(ground.overrides, ground.credentials, issuer)
    reload = Reload(checkout.template())
    lambda_listener = ground.ports.listen("lambda")
    lambda_url = ports.url(lambda_listener)
    client = aws.clients(ground.aws_url)
    read = _resources(ground, senders, lambda_url)
    app, wired = read(changed=False)
    runtime = Runtime(wired.functions, ground.children, data.logs)
    asynchronous = AsynchronousInvocations(app.triggers, runtime, client)
    _serve(Server(lambda_listener, reload.before(InvokeApi(runtime, asynchronous))), cleanup)
    cleanup.callback(runtime.close)
    cleanup.callback(asynchronous.close)
    _migrate(runtime, data)
    key = service_key.seed(ground.owner_url, ground.credentials)
    hide([key])
    gateway = Gateway(app.api, runtime)
    api_url = _serve(Server(ground.listener, reload.before(gateway)), cleanup)
    _ask_health(api_url)
    live = Live(
        read=lambda: read(changed=True),
        runtime=runtime,
        gateway=gateway,
        asynchronous=asynchronous,
        deliver=lambda triggers: Deliveries(triggers, runtime, client, aws.clients(lambda_url)),
        triggers=app.triggers,
        stack_file=data.stack,
    )
    cleanup.callback(live.stop)
    live.start()
    cleanup.callback(reload.stop)
    reload.start(live.apply)
    return Stack(
        api_url=api_url,
        lambda_url=lambda_url,
        aws_endpoint_url=ground.aws_url,
        database_url=wired.database_urls["backplane_app"],
        admin_database_url=ground.owner_url,
        stripe_webhook_secret=senders.stripe_secrets[0],
        clerk_webhook_secret=senders.clerk_secrets[0],
        service_key=key,
        issuer=senders.issuer,
        signing_key_path=str(data.signing_key),
        functions={each.folder: each.name for each in wired.functions},
    )


def _start_processes(data: Data, port: int, cleanup: ExitStack) -> Ground:
    """The API's port first, since it is what may be taken."""
    listener = cleanup.enter_context(ports.listen(port))
    overrides = checkout.overrides()
    remembered = ports.Remembered(data.ports)
    children = Children(data.processes)
    cleanup.callback(children.close)
    say(state.prepare(data.aws))
    aws_url = aws.start(
        children, remembered.listen("aws"), data.logs / "aws.log", state=data.aws, cleanup=cleanup
    )
    return Ground(
        data=data,
        overrides=overrides,
        listener=listener,
        ports=remembered,
        children=children,
        aws_url=aws_url,
        owner_url=_database(data, overrides.get("DATABASE_URL"), cleanup),
        credentials=Credentials(data.secrets),
    )


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


def _resources(
    ground: Ground, senders: "Senders", lambda_url: str
) -> "Callable[..., tuple[Application, Wiring]]":
    """What makes the template's resources, and makes them anew where it has `changed`. It raises Refusal."""
    from local import application, parameters, pgtools, wiring

    tools = pgtools.ensure(ground.data.pgtools)
    client = aws.clients(ground.aws_url)
    values = parameters.parameters(senders, ground.owner_url, ground.api_port, client)

    def read(*, changed: bool) -> "tuple[Application, Wiring]":
        app = application.create(checkout.template(), values, client, ground.credentials, changed=changed)
        wired = wiring.connect(
            app.functions,
            client,
            aws_url=ground.aws_url,
            lambda_url=lambda_url,
            owner_url=ground.owner_url,
            direct_url=ground.overrides.get("DATABASE_DIRECT_URL"),
            pgtools=str(tools),
        )
        hide(ground.secrets)
        return app, wired

    return read


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


def _ask_health(url: str) -> None:
    """The API answers once this returns."""
    try:
        urllib.request.urlopen(f"{url}/health", timeout=HEALTH_TIMEOUT).close()  # noqa: S310  our own address
    except urllib.error.HTTPError as error:
        with error:
            say(f"/health answers {error.code}: {error.read().decode(errors='replace')}")


def _serve(server: "Server", cleanup: ExitStack) -> str:
    server.start()
    cleanup.callback(server.stop)
    return server.url
