"""A TCP proxy that watches a client and its server, and can cut the line at a chosen word."""

import select
import socket
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit


@dataclass
class Cut:
    """End the connection when the client says `word`: before the server hears it, or after it answered."""

    word: bytes
    heard: bool


@dataclass
class Proxy:
    """Between a client and the server of `url`; use `proxy.url` instead of it."""

    upstream: str
    cut: Cut | None = None
    said: list[bytes] = field(default_factory=list)  # by the client, a flight each
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._stop, self._stopped = socket.socketpair()
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.close()  # wakes every thread
        for thread in self._threads:
            thread.join(10)
        self._listener.close()
        self._stopped.close()

    @property
    def url(self) -> str:
        parts = urlsplit(self.upstream)
        login = parts.netloc.rpartition("@")[0]
        return urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{self._listener.getsockname()[1]}"))

    @property
    def flights(self) -> int:
        """How often the client spoke and had to wait: its round trips."""
        return len(self.said)

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _readable(self, *sockets: socket.socket) -> list[socket.socket]:
        """Those with something to read, none when the proxy is being stopped."""
        ready, _, _ = select.select([*sockets, self._stopped], [], [])
        return [] if self._stopped in ready else ready

    def _accept(self) -> None:
        while self._readable(self._listener):
            client, _ = self._listener.accept()
            parts = urlsplit(self.upstream)
            server = socket.create_connection((str(parts.hostname), parts.port or 5432))
            self._start(self._pump, client, server)

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        with client, server:
            server_spoke_last = True
            while ready := self._readable(client, server):
                for one in ready:
                    if not (data := one.recv(65536)):
                        return
                    if one is server:
                        client.sendall(data)
                        server_spoke_last = True
                        continue
                    if server_spoke_last:
                        self.said.append(b"")
                    server_spoke_last = False
                    self.said[-1] += data
                    if self.cut and self.cut.word in data:
                        cut, self.cut = self.cut, None
                        if cut.heard:
                            server.sendall(data)
                            server.recv(65536)
                        return
                    server.sendall(data)
