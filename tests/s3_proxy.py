"""Between an S3 client and its server, failing as told: before the request is heard, or after."""

import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import urlsplit

Fault = Literal["pass", "refuse", "refuse after", "reset", "reset after", "hang"]
FAULTS: tuple[Fault, ...] = ("refuse", "refuse after", "reset", "reset after")


class S3Proxy:
    """`decide` hears each request's method and path, and says what becomes of it."""

    def __init__(self, upstream: str, decide: Callable[[str, str], Fault]) -> None:
        self._upstream = urlsplit(upstream).netloc
        self._decide = decide
        self._lock = threading.Lock()
        self.released = threading.Event()  # ends what hangs

    def __enter__(self) -> Self:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None: ...

            def serve(self) -> None:
                proxy.serve(self)

        for method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.serve)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        with self._lock:
            fault = self._decide(request.command, request.path)
        match fault:
            case "hang":
                self.released.wait(600)
                request.close_connection = True
            case "reset":
                request.close_connection = True
            case "refuse":
                _answer(request, 503, b"<Error><Code>SlowDown</Code></Error>", {})
            case _:
                status, answer, headers = self._forward(request, body)
                if fault == "reset after":
                    request.close_connection = True
                elif fault == "refuse after":
                    _answer(request, 500, b"<Error><Code>InternalError</Code></Error>", {})
                else:
                    _answer(request, status, answer, headers)

    def _forward(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        upstream = http.client.HTTPConnection(self._upstream, timeout=60)
        try:
            headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
            upstream.request(request.command, request.path, body, headers)
            answer = upstream.getresponse()
            return answer.status, answer.read(), dict(answer.headers)
        finally:
            upstream.close()


def _answer(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
    left_out = {"content-length", "connection", "transfer-encoding", "server", "date"}
    length = headers.get("content-length", headers.get("Content-Length", str(len(body))))
    try:
        request.send_response(status)
        for name, value in headers.items():
            if name.lower() not in left_out:
                request.send_header(name, value)
        request.send_header("Content-Length", length if request.command == "HEAD" else str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)
    except OSError:  # the client has gone
        request.close_connection = True
