"""One execution environment: AWS's runtime interface emulator around `python -m awslambdaric`.

The emulator is a plain Linux program that SAM CLI's wheel carries. It speaks HTTP to us and the
Lambda runtime API to the function's process, serves one invocation at a time, and starts the
function's process with the first one.
"""

import http.client
import json
import os
import platform
import select
import socket
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from local import ports
from local.children import Children, dies_with
from local.function import Function
from local.log_stream import LogStream, Report
from local.refusal import Refusal

START_TIMEOUT = 20.0  # seconds until the emulator listens
MARGIN = 5.0  # seconds the emulator may take beyond the function's timeout, which it enforces itself
ATTEMPTS = 5  # at ports, which others may take at the same time
PATH = "/2015-03-31/functions/function/invocations"

LAUNCH = Path(__file__).with_name("launch.py")


class Status(StrEnum):
    OK = "ok"
    ERROR = "error"  # the handler raised
    TIMEOUT = "timeout"
    CRASH = "crash"  # the process ended, or never came up
    INIT = "init"  # the module could not be loaded: the handler never ran
    LATE = "late"  # nobody waits any more, and the handler still runs


@dataclass(frozen=True)
class Outcome:
    status: Status
    payload: bytes  # JSON: the answer, or {errorMessage, errorType, …}
    report: Future[Report] | None = None  # comes a moment later; None: the function never ran


def emulator() -> Path:
    """The runtime interface emulator for this machine. Raises Refusal."""
    spec = find_spec("samcli")  # found, not imported: it is slow
    architecture = {"aarch64": "arm64", "arm64": "arm64"}.get(platform.machine(), "x86_64")
    if spec is None or not spec.submodule_search_locations:
        raise Refusal("SAM CLI is not installed in this environment. Run `make dev`, which builds it.")
    path = Path(spec.submodule_search_locations[0]) / "local" / "rapid" / f"aws-lambda-rie-{architecture}"
    if not os.access(path, os.X_OK):
        raise Refusal(f"{path.name} is missing from SAM CLI's wheel. Remove .venv and run `make dev` again.")
    return path


class Environment:
    """Raises OSError where it can't be started."""

    def __init__(
        self,
        function: Function,
        children: Children,
        log: Path,
        *,
        made_from: object = None,
        writes_bytecode: bool = True,
    ) -> None:
        self.made_from = made_from  # the caller's
        self._function = function
        self._children = children
        self._log = log
        self._writes_bytecode = writes_bytecode
        self._request_id = ""
        self._report: Future[Report] | None = None
        self._process, self._port = self._start()
        self._connection = http.client.HTTPConnection(
            ports.HOST, self._port, timeout=function.timeout + MARGIN
        )

    @property
    def alive(self) -> bool:
        """Whether the emulator runs, and the function's process if it ever did.

        The emulator finds out about a process that was killed only when it has a request for it.
        """
        return self._process.poll() is None and self._stream.runtime_lives

    def invoke(self, payload: bytes, request_id: str, until: float | None = None) -> Outcome:
        """Hand over one event and wait for its end; LATE, past `until` by the monotonic clock: see wait().

        After anything but OK, ERROR and LATE, end() it.
        """
        self._request_id, self._report = request_id, self._stream.expect()
        headers = {"X-Amzn-RequestId": request_id, "Content-Type": "application/json"}
        try:
            self._connection.request("POST", PATH, payload, headers)
            if until is not None and not self._has_answered(until - time.monotonic()):
                return Outcome(Status.LATE, b"", self._report)
        except OSError as error:
            return self._gone(error)
        return self.wait()

    def wait(self) -> Outcome:
        """The end of the invocation under way."""
        try:
            answer = self._connection.getresponse()
            body = answer.read()
        except TimeoutError:
            message = f"RequestId: {self._request_id} Error: the runtime did not answer"
            return replace(_failure(Status.TIMEOUT, message, "Sandbox.Timedout"), report=self._report)
        except (OSError, http.client.HTTPException) as error:
            return self._gone(error)
        return replace(_classify(answer.status, body, self._request_id), report=self._report)

    def _has_answered(self, seconds: float) -> bool:
        """The emulator answers in one piece, when all is done."""
        waiting = select.poll()
        waiting.register(self._connection.sock, select.POLLIN)
        return bool(waiting.poll(max(seconds, 0) * 1000))

    def _gone(self, error: Exception) -> Outcome:
        message = f"RequestId: {self._request_id} Error: the runtime is gone ({type(error).__name__})"
        return replace(_failure(Status.CRASH, message, "Runtime.ExitError"), report=self._report)

    def end(self) -> None:
        self._connection.close()
        self._children.end(self._process)

    def _start(self) -> tuple[subprocess.Popen[bytes], int]:
        for _ in range(ATTEMPTS):
            port, runtime_port = ports.unused(), ports.unused()
            process = self._spawn(port, runtime_port)
            if _listens(process, port):
                return process, port
            self._children.end(process)
        raise OSError(f"the runtime emulator of {self._function.folder} did not start: see {self._log}")

    def _spawn(self, port: int, runtime_port: int) -> subprocess.Popen[bytes]:
        function = self._function
        runtime: list[str | Path] = [sys.executable, "-P", LAUNCH, "awslambdaric", function.handler]
        reader, writer = os.pipe()
        try:
            process = self._children.spawn(
                [
                    *(emulator(), "--log-level", "error"),
                    *("--runtime-interface-emulator-address", f"{ports.HOST}:{port}"),
                    *("--runtime-api-address", f"{ports.HOST}:{runtime_port}"),
                    *dies_with(0, runtime),
                ],
                env=_variables(function, self._writes_bytecode),
                cwd=function.code,
                stdout=writer,
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        self._stream = LogStream(reader, self._log)
        return process


def _variables(function: Function, writes_bytecode: bool) -> dict[str, str]:
    """Lambda's own variables and the template's; of ours nothing but where programs are."""
    code = str(function.code)
    return ({} if writes_bytecode else {"PYTHONDONTWRITEBYTECODE": "1"}) | {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "TZ": ":UTC",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        **function.environment,
        "LAMBDA_TASK_ROOT": code,
        "PYTHONPATH": os.pathsep.join([code, *map(str, function.layers)]),
        "AWS_EXECUTION_ENV": f"AWS_Lambda_{function.runtime}",  # by which awslambdaric writes answers
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "AWS_LAMBDA_FUNCTION_TIMEOUT": str(function.timeout),
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory),
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_FORMAT": function.log_format,
    }


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((ports.HOST, port), 1).close()
        except OSError:
            time.sleep(0.005)
        else:
            return process.poll() is None
    return False


def _classify(status: int, body: bytes, request_id: str) -> Outcome:
    """What the emulator's answer means: it says 200 to everything but a process that ended."""
    try:
        answer = json.loads(body)
    except ValueError:
        # An answer of the function is JSON; this is the emulator's own line about its time.
        text = f"RequestId: {request_id} Error: {body.decode(errors='replace').strip() or 'Runtime exited'}"
        if body.startswith(b"Task timed out"):
            return _failure(Status.TIMEOUT, text, "Sandbox.Timedout")
        return _failure(Status.CRASH, text, "Runtime.Unknown")
    failed = isinstance(answer, dict) and {"errorMessage", "errorType"} <= answer.keys()
    if failed and answer.get("requestId") == "":  # awslambdaric's, of an initialization
        return Outcome(Status.INIT, body)
    if status != http.HTTPStatus.OK:
        return (
            Outcome(Status.CRASH, body) if failed else _failure(Status.CRASH, str(answer), "Runtime.Unknown")
        )
    # awslambdaric names the request in the errors it reports, a handler's own answer doesn't.
    if failed and answer.get("requestId") == request_id:
        return Outcome(Status.ERROR, body)
    return Outcome(Status.OK, body)


def _failure(status: Status, message: str, kind: str) -> Outcome:
    return Outcome(status, json.dumps({"errorMessage": message, "errorType": kind}).encode())
