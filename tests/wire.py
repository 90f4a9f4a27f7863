"""PostgreSQL's protocol as far as tests need it: where messages begin and end, and a server's error."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

SSL_REQUEST = struct.pack("!ii", 8, 80877103)


@dataclass(frozen=True)
class Message:
    """One message of the protocol, whole, and who sent it."""

    by_client: bool
    data: bytes

    @property
    def type(self) -> str:
        """The protocol's letter; a client's first words have none."""
        first = chr(self.data[0])
        return first if first.isalpha() or first in "123" else "startup"

    def __str__(self) -> str:
        return f"{'>' if self.by_client else '<'}{self.type}"


@dataclass
class Frames:
    """Cuts one side's bytes into its messages."""

    by_client: bool
    _kept: bytes = b""
    _typed: bool = field(
        init=False
    )  # whether messages begin with their letter, as all but a client's first do

    def __post_init__(self) -> None:
        self._typed = not self.by_client

    def of(self, data: bytes) -> Iterator[Message]:
        self._kept += data
        if not self.by_client and self._kept[:1] in {b"N", b"S"} and len(self._kept) == 1:
            yield self._take(1)  # the answer to SSLRequest: a letter alone
        while length := self._whole():
            message = self._take(length)
            if self.by_client and message.data[4:8] != SSL_REQUEST[4:]:
                self._typed = True
            yield message

    def _whole(self) -> int:
        """The length of the first message, 0 where it has not come whole."""
        start = 1 if self._typed else 0
        if len(self._kept) < start + 4:
            return 0
        length: int = start + struct.unpack_from("!i", self._kept, start)[0]
        return length if len(self._kept) >= length else 0

    def _take(self, length: int) -> Message:
        data, self._kept = self._kept[:length], self._kept[length:]
        return Message(self.by_client, data)


def error_response(sqlstate: str, severity: str = "FATAL", text: str = "made up") -> bytes:
    """A server's ErrorResponse."""
    fields = {"S": severity, "V": severity, "C": sqlstate, "M": text}
    body = b"".join(f"{name}{value}\0".encode() for name, value in fields.items()) + b"\0"
    return b"E" + struct.pack("!i", len(body) + 4) + body
