"""A server of artefacts on this machine that misbehaves as its paths say."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

from backplane.downloads import Reach

HERE = Reach(loopback=True)
CONTENT = bytes(range(256)) * 4096  # a megabyte
TYPE = "application/vnd.android.package-archive"


class Artefacts:
    """`/whole`, `/cut`, `/chunked`, …: see `_of`. Remembers what was asked for."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content = content
        self.asked: list[str] = []
        self.fails = 0  # so many answers of /flaky are 503
        self.released = threading.Event()  # ends what drips, and lets go of what waits

    def __enter__(self) -> Self:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None: ...

            def do_GET(self) -> None:
                server.asked.append(urlsplit(self.path).path)
                self.close_connection = True
                try:
                    server.answer(self)
                except OSError:  # the client has gone
                    return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        status, headers, body = self._of(parts.path, parts.query)
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)
        self._afterwards(request, parts.path)

    def _of(self, path: str, query: str) -> tuple[int, dict[str, str], bytes | memoryview]:
        whole = memoryview(self.content)  # whose parts are no copies
        typed = {"content-type": TYPE}
        sized = typed | {"content-length": str(len(self.content))}
        chunked = typed | {"transfer-encoding": "chunked"}
        nothing = {"content-length": "0"}
        if path == "/flaky" and self.fails > 0:
            self.fails -= 1
            return 503, nothing, b""
        answers: dict[str, tuple[int, dict[str, str], bytes | memoryview]] = {
            "/whole": (200, sized, self.content),
            "/flaky": (200, sized, self.content),
            "/cut": (200, sized, whole[:-1000]),
            "/claims": (200, typed | {"content-length": query}, self.content),
            "/chunked": (200, chunked, b""),
            "/cut-chunks": (200, chunked, b""),
            "/endless": (200, chunked, b""),
            "/until-the-end": (200, typed, self.content),
            "/encoded": (200, sized | {"content-encoding": "gzip"}, self.content),
            "/to": (302, nothing | {"location": query}, b""),
            "/circle": (302, nothing | {"location": "/circle"}, b""),
            "/nowhere": (302, nothing, b""),
            "/drip": (200, sized, b""),
            "/half": (200, sized, whole[: len(whole) // 2]),  # the rest when it is released
        }
        return answers.get(path, (404, nothing, b""))

    def _afterwards(self, request: BaseHTTPRequestHandler, path: str) -> None:
        match path:
            case "/chunked" | "/cut-chunks":
                for start in range(0, len(self.content), 50_000):
                    _chunk(request, self.content[start : start + 50_000])
                if path == "/chunked":
                    _chunk(request, b"")
            case "/endless":
                while not self.released.is_set():
                    _chunk(request, self.content)
            case "/drip":
                while not self.released.wait(0.05):
                    request.wfile.write(b"x")
            case "/half":
                self.released.wait(600)
                request.wfile.write(self.content[len(self.content) // 2 :])


def _chunk(request: BaseHTTPRequestHandler, data: bytes) -> None:
    request.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
