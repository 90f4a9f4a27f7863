"""Starting, asking and stopping local clouds."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from local import application, aws, ports, wiring
from local.application import Application
from local.async_invoke import AsynchronousInvocations
from local.children import Children, started_at
from local.credentials import Credentials
from local.deliveries import Deliveries
from local.function import Function
from local.gateway import Gateway
from local.invoke_api import InvokeApi
from local.reload import Live, Reload
from local.runtime import Runtime
from local.server import Server
from local.wiring import Wiring

ROOT = Path(__file__).resolve().parents[2]
TOYS = Path(__file__).parent / "toys" / "template.yaml"
PATIENCE = 60.0  # seconds: a bound, never a measure


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]  # lower-case names
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def request(
    url: str, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, response.read())
    finally:
        connection.close()


def until(happened: Callable[[], Any], what: str) -> Any:
    """What the function gives once it is true."""
    deadline = time.monotonic() + PATIENCE
    while not (result := happened()):
        assert time.monotonic() < deadline, f"{what}, but it didn't within {PATIENCE:.0f} s"
        time.sleep(0.02)
    return result


def alive(family: Mapping[int, str]) -> set[int]:
    """Which of these processes still run."""
    return {pid for pid, began in family.items() if started_at(pid) == began}


# ---- all of it, in processes ----


class Cloud:
    """`python -m local.stack` on a data folder of its own, nothing of the developer's in its environment."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.output = ""
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None, "the stack has not been started"
        return self._process

    @property
    def written(self) -> dict[str, Any]:
        """stack.json."""
        read: dict[str, Any] = json.loads((self.data / "stack.json").read_text())
        return read

    def environment(self, **variables: str) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("DATABASE_", "PG"))}
        for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "USER", "PORT"):  # where the tests run under make
            ours.pop(name, None)
        return ours | {
            "PYTHONPATH": f"{ROOT / 'layers' / 'backplane'}{os.pathsep}{ROOT}",
            "BACKPLANE_LOCAL_DATA": str(self.data),
            "BACKPLANE_ENV_FILE": os.devnull,
            **variables,
        }

    def spawn(self, *command: str, port: str = "0", **variables: str) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            command or (sys.executable, "-m", "local.stack", "--port", port),
            cwd=ROOT,
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return self._process

    def start(self, *command: str, **variables: str) -> dict[str, Any]:
        """Start it and wait until it is ready; stack.json."""
        process = self.spawn(*command, **variables)
        assert process.stdout is not None
        self.output = ""
        for line in process.stdout:
            self.output += line
            if "Backplane is ready" in line:
                self._reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
                self._reader.start()
                return self.written
        raise AssertionError(f"it did not start (exit {process.wait(PATIENCE)}):\n{self.output}")

    def _read(self, printed: IO[str]) -> None:
        """To the end: a pipe that nobody reads fills up, and then whoever prints stands still."""
        with printed:
            for line in printed:
                self.output += line

    def wait(self) -> int:
        """For its end; the exit status. What it printed is in `output`."""
        printed = self.process.stdout
        self.process.wait(timeout=PATIENCE)
        if self._reader is not None:
            self._reader.join(timeout=PATIENCE)
            self._reader = None
        elif printed is not None and not printed.closed:
            self._read(printed)
        return self.process.returncode

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def run(self, module: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """One of the commands, to its end."""
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def family(self) -> dict[int, str]:
        """The stack's process and all that descend from it: when each began, by process id."""
        parents = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
        family = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= more
        return {pid: began for pid in family if (began := started_at(pid))}

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        return request(self.written["api_url"], method, path, body, headers)

    def token(self, user: str, *arguments: str) -> str:
        minted = self.run("local.token", user, *arguments)
        assert minted.returncode == 0, minted.stderr
        assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", minted.stdout), "only the token is printed"
        return minted.stdout.strip()

    def end(self) -> None:
        """End it, whatever state it is in."""
        if self._process:
            family = self.family()
            self._process.kill()
            self.wait()
            until(lambda: not alive(family), "the processes of a killed stack end")

    def forget(self) -> None:
        """End it and delete its data."""
        self.end()
        done = self.run("local.stack", "--forget")
        assert done.returncode == 0, done.stderr


# ---- a toy, in this process ----


@dataclass
class Toys:
    api_url: str
    lambda_url: str
    function: Function
    runtime: Runtime
    children: Children
    client: aws.Client  # of moto
    logs: Path

    @cached_property
    def lambda_client(self) -> Any:
        return aws.clients(self.lambda_url)("lambda")

    def order(self, path: str = "/toy", /, **order: Any) -> Answer:
        """Tell the function over HTTP what to do."""
        headers = {"content-type": "application/json"}
        return request(self.api_url, "POST", path, json.dumps(order).encode(), headers)


@contextmanager
def start_toys(folder: Path, template: Path = TOYS) -> Iterator[Toys]:
    with ExitStack() as cleanup:
        children = Children(folder / "processes")
        cleanup.callback(children.close)
        aws_url = aws.start(children, ports.listen(0), folder / "aws.log")
        client = aws.clients(aws_url)
        reload = Reload(template)
        listener = ports.listen(0)

        def read(*, changed: bool = True) -> tuple[Application, Wiring]:
            credentials = Credentials(folder / "secrets.json")
            app = application.create(template, {"Stage": "local"}, client, credentials, changed=changed)
            urls = {"aws_url": aws_url, "lambda_url": ports.url(listener)}
            return app, wiring.connect(app.functions, client, **urls, owner_url="", direct_url=None)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # SAM CLI's of SAM's translator
            app, wired = read(changed=False)
        runtime = Runtime(wired.functions, children, folder)
        cleanup.callback(runtime.close)
        gateway = Gateway(app.api, runtime)
        asynchronous = AsynchronousInvocations(app.triggers, runtime, client, delays=(0.1, 0.2))
        cleanup.callback(asynchronous.close)
        api = Server(ports.listen(0), reload.before(gateway))
        invoke = Server(listener, reload.before(InvokeApi(runtime, asynchronous)))
        for server in (api, invoke):
            server.start()
            cleanup.callback(server.stop)
        functions = aws.clients(invoke.url)
        live = Live(
            read=read,
            runtime=runtime,
            gateway=gateway,
            asynchronous=asynchronous,
            deliver=lambda triggers: Deliveries(triggers, runtime, client, functions),
            triggers=app.triggers,
            stack_file=folder / "stack.json",
        )
        cleanup.callback(live.stop)
        live.start()
        cleanup.callback(reload.stop)
        reload.start(live.apply)
        yield Toys(api.url, invoke.url, wired.functions[0], runtime, children, client, folder)
