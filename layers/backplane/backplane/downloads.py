"""Downloads from addresses that others name: over HTTPS, from the public internet only, and bounded.

A host's addresses are resolved once, each is judged, and the connection goes to the judged one: a name that
answers something else the second time changes nothing. Every redirect is judged anew.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urljoin, urlsplit

BLOCK: Final = 256 * 1024  # bytes a read
CONNECT_TIMEOUT: Final = 10.0  # seconds
READ_TIMEOUT: Final = 30.0  # seconds without a byte
MAX_REDIRECTS: Final = 5
MAX_ADDRESSES: Final = 4  # tried, one after another
MAX_URL: Final = 4096  # characters

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
# Addresses of IPv4 in IPv6's clothes, which a gateway on the way may undress (RFC 6052, 3056, 4380), and
# what Python calls global and nobody is assigned: a unicast address is in 2000::/3.
_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_TUNNELS: Final = (ipaddress.IPv6Network("2002::/16"), ipaddress.IPv6Network("2001::/32"))


class RefusedError(RuntimeError):
    """Will fail however often it is tried: the address, the answer or its size is not one to take."""


class BrokenOffError(RuntimeError):
    """A passing cause: it may do another time."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Where downloads may go. Tests may let one reach their own machine; nothing deployed does."""

    loopback: bool = False  # then without TLS too, and on any port

    def allows(self, address: str) -> bool:
        """Whether a resolved address may be connected to."""
        ip = ipaddress.ip_address(address.partition("%")[0])
        if ip.is_loopback:
            return self.loopback
        if isinstance(ip, ipaddress.IPv6Address) and (
            ip not in _UNICAST or any(ip in tunnel for tunnel in _TUNNELS)
        ):
            return False
        return ip.is_global and not ip.is_multicast


PUBLIC: Final = Reach()


class Download:
    """An answer of status 200, of which nothing was read yet."""

    def __init__(self, response: http.client.HTTPResponse, *, limit: int, ends: float) -> None:
        self._response = response
        self._limit = limit
        self._ends = ends
        self.content_type = response.headers.get("content-type", "")
        self.length = _length(response)  # in bytes, as it says; None: it comes in chunks
        if self.length is None and not response.chunked:
            raise RefusedError("its server does not say how long it is")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise RefusedError("its server compresses it, though it was asked not to")
        if self.length is not None and self.length > limit:
            raise RefusedError(f"it has {self.length} bytes, and at most {limit} are taken")

    def blocks(self) -> Iterator[bytes]:
        """What it holds, to the last byte it announced. Raises RefusedError, BrokenOffError."""
        total = 0
        while block := self._read():
            total += len(block)
            if total > self._limit:
                raise RefusedError(f"it has more than {self._limit} bytes, which are all that is taken")
            yield block
        if time.monotonic() > self._ends:  # it was cut, which may look like an end
            raise BrokenOffError("it took longer than there was time for")
        if self.length is not None and total != self.length:
            raise BrokenOffError(f"it ended after {total} of {self.length} bytes")

    def _read(self) -> bytes:
        if time.monotonic() > self._ends:
            raise BrokenOffError("it took longer than there was time for")
        try:
            return self._response.read1(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise BrokenOffError(f"it broke off: {error or type(error).__name__}") from error


@contextmanager
def get(url: str, *, limit: int, ends: float, reach: Reach = PUBLIC) -> Iterator[Download]:
    """Fetches a URL, of at most `limit` bytes, until `ends` on time.monotonic's clock.

    Raises RefusedError, BrokenOffError. Neither quotes the URL: whoever has it may have the file.
    """
    for _ in range(MAX_REDIRECTS + 1):
        with _connected(url, reach, ends) as connection, _answer(connection, url) as response:
            if response.status in _REDIRECTS:
                url = _next(url, response)
                continue
            if response.status != http.client.OK:
                told = f"its server answered {response.status}"
                raise (BrokenOffError if response.status in _PASSING else RefusedError)(told)
            yield Download(response, limit=limit, ends=ends)
            return
    raise RefusedError(f"it was redirected more than {MAX_REDIRECTS} times")


# ---- one step of the way ----


class _Pinned(http.client.HTTPConnection):
    """A connection to addresses that were judged; the certificate is the host's all the same."""

    def __init__(self, host: str, port: int, addresses: list[str], *, tls: bool) -> None:
        super().__init__(host, port)
        self._addresses = addresses
        self._tls = tls
        if tls:
            self.default_port = 443  # which the Host header does not name

    def connect(self) -> None:
        for address in self._addresses:
            try:
                self.sock = socket.create_connection((address, self.port), CONNECT_TIMEOUT)
                break
            except OSError:
                if address == self._addresses[-1]:
                    raise
        self.sock.settimeout(READ_TIMEOUT)
        if self._tls:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            self.sock.do_handshake()

    def cut(self) -> None:
        """Ends what waits for the other side, in whichever thread."""
        with suppress(OSError):
            if self.sock is not None:
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


@contextmanager
def _connected(url: str, reach: Reach, ends: float) -> Iterator[_Pinned]:
    """A connection for one request. However slowly the other side drips, it is cut when the time is up."""
    host, port, tls = _place(url, reach)
    connection = _Pinned(host, port, _judged(host, port, reach), tls=tls)
    watch = threading.Timer(max(0.0, ends - time.monotonic()), connection.cut)
    watch.daemon = True
    watch.start()
    try:
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            raise RefusedError(f"its server's certificate is not valid: {error.verify_message}") from error
        except OSError as error:
            raise BrokenOffError(f"its server can't be reached: {error}") from error
        yield connection
    finally:
        watch.cancel()
        connection.close()


def _place(url: str, reach: Reach) -> tuple[str, int, bool]:
    """The host, the port and whether with TLS. Raises RefusedError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        plain = host is not None and host.isascii() and url.isascii() and url.isprintable()
    except ValueError:
        raise RefusedError("its address is malformed") from None
    if host is None or not plain or " " in url or len(url) > MAX_URL or parts.username is not None:
        raise RefusedError("its address is malformed")
    if reach.loopback and parts.scheme == "http":
        return host, port or 80, False
    if parts.scheme != "https":
        raise RefusedError("its address is not one of HTTPS")
    if port not in {None, 443} and not reach.loopback:
        raise RefusedError("its address names another port than HTTPS's own")
    return host, port or 443, True


def _judged(host: str, port: int, reach: Reach) -> list[str]:
    """The host's addresses. Raises RefusedError where any of them may not be reached."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:  # a label that is empty or too long
        raise RefusedError("its address is malformed") from None
    except OSError as error:
        raise BrokenOffError(f"its host has no address at the moment: {error}") from error
    addresses = [str(each[4][0]) for each in found]
    if not addresses or not all(reach.allows(address) for address in addresses):
        raise RefusedError("its address is not on the public internet")
    return addresses[:MAX_ADDRESSES]


def _answer(connection: _Pinned, url: str) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        # Compressed on the way, it would be other bytes than its length says, and as long as it likes.
        connection.request("GET", path, headers={"accept": "*/*", "accept-encoding": "identity"})
        return connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise BrokenOffError(f"its server gave no answer: {error or type(error).__name__}") from error


def _next(url: str, response: http.client.HTTPResponse) -> str:
    location = response.headers.get("location")
    if not location:
        raise RefusedError("its server redirects without saying where")
    try:
        return urljoin(url, location)
    except ValueError:
        raise RefusedError("its server redirects to a malformed address") from None


def _length(response: http.client.HTTPResponse) -> int | None:
    """Raises RefusedError where there are several, or what is not a number."""
    told = response.headers.get_all("content-length", [])
    if not told or response.chunked:
        return None
    if len(set(told)) > 1 or not (told[0].isascii() and told[0].isdecimal()) or len(told[0]) > 15:  # noqa: PLR2004
        raise RefusedError("its server tells no length that can be read")
    return int(told[0])
