"""Loopback ports: bound once and kept, the last run's where it is still free."""

import errno
import json
import random
import socket
from contextlib import suppress
from pathlib import Path

from local.refusal import Refusal

HOST = "127.0.0.1"
BACKLOG = 1024  # connections that wait to be accepted; hundreds may come at once


def listen(port: int) -> socket.socket:
    """A listening socket; 0 picks a free port. Raises Refusal that says who has the port."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart needn't wait for TIME_WAIT
    try:
        listener.bind((HOST, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise Refusal(
                f"port {port} is in use{_owner(port)}. Stop that program, "
                f"or run `make dev PORT=0` (picks a free port) or `make dev PORT={port + 1}`."
            ) from None
        if error.errno == errno.EACCES:
            raise Refusal(f"port {port} is reserved for root. Run `make dev PORT=3000`.") from None
        raise
    return listener


def url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{host}:{port}"


class Remembered:
    """Free ports that stay the same from run to run where they can, so that saved URLs stay good."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._ports: dict[str, int] = json.loads(file.read_text())
        except (FileNotFoundError, ValueError):
            self._ports = {}

    def listen(self, name: str) -> socket.socket:
        try:
            listener = listen(self._ports.get(name, 0))
        except Refusal:
            listener = listen(0)
        self._ports[name] = listener.getsockname()[1]
        self._file.write_text(json.dumps(self._ports))
        return listener


def unused() -> int:
    """A port for a program that can't be handed a socket.

    From below the range the kernel gives to outgoing connections, or one of those could take it
    before the program does.
    """
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        port = random.randrange(min(20_000, first_ephemeral // 2), first_ephemeral)  # noqa: S311  not a secret
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise Refusal(f"no free port was found between {first_ephemeral // 2} and {first_ephemeral}.")


def _owner(port: int) -> str:
    """` by NAME (pid N)`, where the kernel lets us see it."""
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            listening = fields[3] == "0A"
            if listening and int(fields[1].rpartition(":")[2], 16) == port and (pid := _holder(fields[9])):
                command = (
                    Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                return f" by pid {pid} ({command.strip()[:80]})"
    return ""


def _holder(inode: str) -> str | None:
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    if str(descriptor.readlink()) == f"socket:[{inode}]":
                        return process.name
    return None
