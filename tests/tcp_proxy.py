"""A TCP proxy that watches a client and its server by the messages of PostgreSQL's protocol, and can
spoil the line: at a chosen word, or at any message of the conversation.
"""

import random
import select
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit, urlunsplit

from tests.wire import Frames, Message

Kind = Literal["cut", "reset", "half", "torn", "stall"]

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER without time: close says RST


@dataclass
class Cut:
    """End the connection when the client says `word`: before the server hears it, or after it answered."""

    word: bytes
    heard: bool


@dataclass(frozen=True)
class Fault:
    """What happens instead of delivering the message of this number (from 0, since the fault was set,
    farewells not counted).

    cut    both ends hear that the line is closed
    reset  both ends hear that it broke
    half   only who waits for the message hears the end; the other way stays open
    torn   a part of the message arrives, then the line is closed
    stall  nothing arrives any more, and nobody hears of it
    """

    step: int
    kind: Kind
    luck: random.Random = field(default_factory=lambda: random.Random(1))

    def __str__(self) -> str:
        return f"{self.kind} at {self.step}"


@dataclass
class Proxy:
    """Between a client and the server of `url`; use `proxy.url` instead of it.

    `answer` may put words into the server's mouth: what it returns for a client's message is sent back
    instead of passing the message on, and the line is closed.
    """

    upstream: str
    cut: Cut | None = None
    address: str = "127.0.0.1"
    port: int = 0
    answer: Callable[[Message], bytes | None] | None = None
    said: list[bytes] = field(default_factory=list)  # by the client, a flight each
    heard: list[Message] = field(default_factory=list)  # by either, since `watch` or `set_fault`
    struck: bool = False  # whether the fault has happened
    _fault: Fault | None = None
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._listener = socket.create_server((self.address, self.port))
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
        place = f"{self.address}:{self._listener.getsockname()[1]}"
        return urlunsplit(parts._replace(netloc=f"{login}@{place}"))

    @property
    def flights(self) -> int:
        """How often the client spoke and had to wait: its round trips."""
        return len(self.said)

    def watch(self) -> list[Message]:
        """Listens anew: what is said from now on."""
        self.set_fault(None)
        return self.heard

    def set_fault(self, fault: Fault | None) -> None:
        self._fault, self.heard, self.struck = fault, [], False

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
            try:
                server = socket.create_connection((str(parts.hostname), parts.port or 5432))
            except OSError:  # the server is down: so is its proxy
                client.close()
                continue
            for end in (client, server):  # a message by itself must not wait for the one before
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._start(self._pump, client, server)

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, suppress(OSError):  # an end has gone: so does the other
            frames = {client: Frames(by_client=True), server: Frames(by_client=False)}
            server_spoke_last = True
            while ready := self._readable(client, server):
                for one in ready:
                    if not (data := one.recv(65536)):
                        return
                    if one is client:
                        self._note(data, anew=server_spoke_last)
                        if self._is_cut(data, server):
                            return
                    server_spoke_last = one is server
                    if not all(self._pass_on(message, client, server) for message in frames[one].of(data)):
                        return

    def _note(self, data: bytes, *, anew: bool) -> None:
        if anew:
            self.said.append(b"")
        self.said[-1] += data

    def _is_cut(self, data: bytes, server: socket.socket) -> bool:
        cut = self.cut
        if cut is None or cut.word not in data:
            return False
        self.cut = None
        if cut.heard:
            server.sendall(data)
            server.recv(65536)
        return True

    def _pass_on(self, message: Message, client: socket.socket, server: socket.socket) -> bool:
        """Whether the line stands after it."""
        source, target = (client, server) if message.by_client else (server, client)
        if self.answer and message.by_client and (words := self.answer(message)) is not None:
            client.sendall(words)
            return False
        if message.type == "X":  # a farewell, which comes when it likes
            target.sendall(message.data)
            return True
        fault, step = self._fault, len(self.heard)
        self.heard.append(message)
        if fault is None or step != fault.step:
            target.sendall(message.data)
            return True
        self.struck = True
        self._spoil(fault, message.data, source, target, client)
        return False

    def _spoil(
        self, fault: Fault, data: bytes, source: socket.socket, target: socket.socket, client: socket.socket
    ) -> None:
        match fault.kind:
            case "reset":
                for end in (source, target):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            case "torn":
                target.sendall(data[: fault.luck.randrange(len(data))])
            case "half":
                target.shutdown(socket.SHUT_WR)
                while self._readable(target) and (rest := target.recv(65536)):
                    source.sendall(rest)
            case "stall":
                # Until the client gives up; its end is heard by the server then.
                while self._readable(client) and client.recv(65536):
                    continue
