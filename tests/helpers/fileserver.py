"""A loopback HTTP server for files, which misbehaves as it is told to and writes down what it was asked for."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["FileServer", "Served", "file_server"]


@dataclass
class Served:
    """What lies at one path, and how it is given out.

    Attributes:
        body: The bytes.
        etag: Its ETag; None for none, and then no `Last-Modified` either.
        has_ranges: Whether `Range` is honoured.
        cuts: Where the next answers break off, counted from the start of each answer; then no more.
        refusals: Statuses of the next answers; then no more.
        headers: More headers.
        location: Where the path redirects to; None for no redirect.
        gate: Waited for after half of the body, if given; `half_sent` is set before.
    """

    body: bytes = b""
    etag: str | None = '"v1"'
    has_ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    location: str | None = None
    gate: threading.Event | None = None
    half_sent: threading.Event = field(default_factory=threading.Event)


class FileServer:
    """The server, in threads of this process.

    Attributes:
        files: What lies where.
        requests: Path and headers of every request, in their order.
    """

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def netloc(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def put(self, path: str, body: bytes = b"", **settings: Any) -> str:
        """Put a file at `path` and return its URL."""
        self.files[path] = Served(body, **settings)
        return f"http://{self.netloc}{path}"

    def count(self) -> Counter[str]:
        """Return how often each path was asked for."""
        return Counter(path for path, _ in self.requests)

    def ranges(self) -> list[str | None]:
        """Return the `Range` of each request."""
        return [headers.get("Range") for _, headers in self.requests]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()  # waits for its threads
        self._thread.join()


@contextmanager
def file_server() -> Iterator[FileServer]:
    server = FileServer()
    try:
        yield server
    finally:
        server.close()


class _Server(ThreadingHTTPServer):
    owner: FileServer
    daemon_threads = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed hang up: nobody needs to know."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        owner = self.server.owner
        owner.requests.append((self.path, dict(self.headers.items())))
        served = owner.files.get(self.path)
        if served is None:
            self._head(404, {"Content-Length": "0"})
        elif served.refusals:
            self._head(served.refusals.pop(0), {"Content-Length": "0", **served.headers})
        elif served.location is not None:
            self._head(302, {"Content-Length": "0", "Location": served.location})
        else:
            self._give(served)

    def _give(self, served: Served) -> None:
        body = served.body
        first = 0
        wanted = self.headers.get("Range")
        if wanted and served.has_ranges and self.headers.get("If-Range", served.etag) == served.etag:
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if first >= len(body):
                self._head(416, {"Content-Length": "0", "Content-Range": f"bytes */{len(body)}"})
                return
        headers = {"Content-Length": str(len(body) - first)}
        if served.etag:
            headers["ETag"] = served.etag
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
        self._head(206 if first else 200, headers | served.headers)
        rest = body[first:]
        if served.gate is not None:
            half = len(rest) // 2
            self.wfile.write(rest[:half])
            served.half_sent.set()
            served.gate.wait(30)
            rest = rest[half:]
        if served.cuts:
            rest = rest[: served.cuts.pop(0)]
        self.wfile.write(rest)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""
