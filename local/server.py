"""A threaded HTTP server for WSGI applications: keep-alive, and bodies whole in both directions.

API Gateway and Lambda hand over whole requests and whole answers, so we read a body before the
application sees it and send an answer in one piece. That also makes keep-alive safe, which
Werkzeug's own handler gives up.

WSGI folds `_` and `-` in header names, joins repeated headers and decodes the path. So the environment
has three members more: what was sent, and whether the body was too large to be read.
"""

import io
import json
import socket
import sys
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from typing import IO, TYPE_CHECKING, cast

from werkzeug.serving import DechunkedInput, WSGIRequestHandler
from werkzeug.test import run_wsgi_app

from local.ports import BACKLOG

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

HEADERS = "backplane.headers"  # [(name, value)], as sent
TARGET = "backplane.target"  # of the request line, as sent
TOO_LARGE = "backplane.too_large"  # the body is over MAX_BODY, and the application says so in its words

MAX_BODY = 10 * 1024 * 1024  # bytes; API Gateway's limit
MAX_IGNORED = 100 * 1024 * 1024  # bytes of a body too large that are read and dropped
IDLE_TIMEOUT = 60.0  # seconds a kept connection may be silent
LINGER = 2.0  # seconds a client that is refused may be silent


class _TooLargeError(Exception):
    pass


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or an answer waits 40 ms for the client's delayed ACK
    wbufsize = -1  # headers and body leave together
    timeout = IDLE_TIMEOUT

    def run_wsgi(self) -> None:
        # Not self.path, in which the standard library makes one of several slashes at the beginning.
        target = self.requestline.split()[1]
        environ = self.make_environ() | {HEADERS: self.headers.items(), TARGET: target, TOO_LARGE: False}
        body = b""
        try:
            body = self._body()
        except _TooLargeError:
            environ[TOO_LARGE] = self.close_connection = True
        except (ValueError, OSError):  # a length that is no number, chunks that are none, a client that left
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        environ["wsgi.input"] = io.BytesIO(body)
        environ["wsgi.input_terminated"] = True
        environ["CONTENT_LENGTH"] = str(len(body))
        chunks, status, headers = run_wsgi_app(self.server.app, environ, buffered=True)
        self._answer(status, headers.to_wsgi_list(), b"".join(chunks))
        if environ[TOO_LARGE]:
            self._ignore_rest()

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            self._continue()
            body = DechunkedInput(cast("IO[bytes]", self.rfile)).read(MAX_BODY + 1)
            if len(body) > MAX_BODY:
                raise _TooLargeError
            return body
        length = int(self.headers.get("Content-Length") or 0)
        if length > MAX_BODY:
            raise _TooLargeError
        if length < 0:
            raise ValueError("a negative length")
        self._continue()
        body = self.rfile.read(length)
        if len(body) < length:
            raise OSError("the client left")
        return body

    def _continue(self) -> None:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.wfile.flush()

    def handle_expect_100(self) -> bool:
        return True  # after the length was looked at, by _continue

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002  the base class's
        """What is wrong with the request as HTTP, said as the gateway says it."""
        self.close_connection = True
        status = HTTPStatus(code)
        body = json.dumps({"message": status.phrase}, separators=(",", ":")).encode()
        self._answer(f"{code} {status.phrase}", [("Content-Type", "application/json")], body)

    def _ignore_rest(self) -> None:
        """Read what the client still sends: closing at once would make its system drop our answer."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(LINGER)
            ignored = 0
            while ignored < MAX_IGNORED and (chunk := self.connection.recv(1 << 16)):
                ignored += len(chunk)

    def _answer(self, status: str, headers: list[tuple[str, str]], body: bytes) -> None:
        code, _, phrase = status.partition(" ")
        self.send_response_only(int(code), phrase)
        for name, value in headers:
            if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                self.send_header(name, value)
        self.send_header("Date", self.date_time_string())
        bodyless = int(code) in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}
        if not bodyless:
            self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if body and not bodyless and self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def log(self, type: str, message: str, *args: object) -> None:  # noqa: A002  its name in the base
        """Invocations are logged where they happen; a line a request more would say nothing."""


class Server(ThreadingHTTPServer):
    """Serves an application on a listening socket, from a thread of its own."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = BACKLOG
    multithread = True
    multiprocess = False
    ssl_context = None
    passthrough_errors = False
    _server_version = "backplane"

    def __init__(self, listener: socket.socket, app: "WSGIApplication") -> None:
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.app = app
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="server", daemon=True)

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Accept nothing more and free the port; requests under way go on."""
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that broke is its client's affair; anything else is a defect of ours."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]
