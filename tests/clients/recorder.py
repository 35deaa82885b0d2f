"""A proxy between a client and the server that keeps what the client sent.

It changes nothing but the ``Host`` field and the framing of the body, and passes on each piece of
an answer when it arrives.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import urlsplit

_TIMEOUT_S: Final = 300.0
_HOP_BY_HOP: Final = {"connection", "transfer-encoding", "content-length", "keep-alive", "host"}


@dataclass(slots=True)
class Exchange:
    """One request, and the status of its answer: 0 while there is none."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    status: int = 0
    answer: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else None


@dataclass(slots=True)
class Recorder:
    """Where the client should go, and what came through so far, in order."""

    url: str
    exchanges: list[Exchange] = field(default_factory=list)

    def asked(self, path: str) -> list[Exchange]:
        """Requests whose path, without a query, ends so."""
        return [e for e in self.exchanges if e.path.partition("?")[0].endswith(path)]


@contextlib.contextmanager
def recording(server_url: str) -> Iterator[Recorder]:
    """Listen on a port of loopback and pass everything on to ``server_url``."""
    target = urlsplit(server_url).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def pass_on(self) -> None:
            exchange = Exchange(self.command, self.path, dict(self.headers), _body(self))
            recorder.exchanges.append(exchange)
            try:
                _forward(self, exchange, target)
            except OSError:  # one side went away: so must the other
                self.close_connection = True

        do_GET = do_POST = do_DELETE = do_HEAD = do_OPTIONS = do_PUT = pass_on  # noqa: N815

    class Proxy(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A program that ends breaks its idle connections."""
            if not isinstance(sys.exception(), OSError):
                super().handle_error(request, client_address)

    with Proxy(("127.0.0.1", 0), Handler) as proxy:
        recorder = Recorder(f"http://127.0.0.1:{proxy.server_address[1]}")
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        try:
            yield recorder
        finally:
            proxy.shutdown()
            thread.join()


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("transfer-encoding", "").lower() != "chunked":
        return handler.rfile.read(int(handler.headers.get("content-length") or 0))
    pieces = []
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        pieces.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()
    return b"".join(pieces)


def _forward(handler: BaseHTTPRequestHandler, exchange: Exchange, target: str) -> None:
    connection = http.client.HTTPConnection(target, timeout=_TIMEOUT_S)
    kept = {k: v for k, v in exchange.headers.items() if k.lower() not in _HOP_BY_HOP}
    with contextlib.closing(connection):
        connection.request(exchange.method, exchange.path, exchange.body or None, kept)
        answer = connection.getresponse()
        exchange.status = answer.status
        handler.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                handler.send_header(name, value)
        bodiless = exchange.method == "HEAD" or answer.status in (204, 304)
        if bodiless:
            handler.end_headers()
            return
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        while piece := answer.read1(1 << 16):
            exchange.answer += piece
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            handler.wfile.flush()
        handler.wfile.write(b"0\r\n\r\n")
