"""Continues the answers of a worker that was killed, on their own sockets.

See ``stream_log``. Each answer runs through the route that had begun it, with the logged body, so
every API is continued in the same way.
"""

from __future__ import annotations

import asyncio
import http
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from runtime import errors
from runtime.gateway.call import Call, Handler
from runtime.gateway.connection import CONNECTION, Connection
from runtime.gateway.generation import BrokenStream, ClientGone
from runtime.gateway.service import Birth, Service
from runtime.gateway.stream_log import (
    CONNECTIONS,
    STREAMS,
    Logged,
    StreamLog,
    accepted,
    read_log,
    read_received,
)
from runtime.gateway.tap import Tap
from runtime.gateway.wire.failure import Refused, failure_of
from supervision.shelf import ShelfClient

Route = Callable[[str, str], tuple[Handler, dict[str, Any]] | None]
"""The handler of a method and a path, and the path's parameters."""
_CHUNKED: Final = b"transfer-encoding: chunked"
_LOG: Final = logging.getLogger("supervision.http")


class Successor:
    """What one worker does for those that had its number before."""

    def __init__(
        self,
        service: Service,
        shelf: ShelfClient,
        worker: int,
        route: Route,
        adopt: Callable[[socket.socket, bytes, Callable[[], object]], None],
    ) -> None:
        """``adopt`` goes on with a connection and what has come on it.

        Then it calls its last argument: nothing of a predecessor is needed any more.
        """
        self._service = service
        self._adopt = adopt
        self._shelf = shelf
        self._worker = worker
        self._route = route
        self.continued = 0

    def begin(self) -> list[Awaitable[None]]:
        """Take every answer and every connection from the shelf; what continues them."""
        found: list[Awaitable[None]] = []
        answered: set[str] = set()
        for name in self._shelf.names(f"{STREAMS}{self._worker}/"):
            entry = self._shelf.get(name)
            if entry is None or len(entry.fds) != 2:
                continue
            sock = socket.socket(fileno=entry.fds[0])
            sock.setblocking(False)
            logged = read_log(entry.fds[1])
            if logged is None:
                self._shelf.forget(name)
                sock.close()
                os.close(entry.fds[1])
                continue
            answered.add(logged.head.connection_id)
            log = StreamLog(self._shelf, name, entry.fds[1], os.fstat(entry.fds[1]).st_size)
            found.append(self._continue(sock, logged, log))
        self._connections(answered)
        return found

    def _connections(self, answered: set[str]) -> None:
        """Connections without an answer under way: what had come on them is read again."""
        for name in self._shelf.names(f"{CONNECTIONS}{self._worker}/"):
            entry = self._shelf.get(name)
            forget = partial(self._shelf.forget, name)
            if entry is None or len(entry.fds) != 2:
                forget()
                continue
            sock, received = socket.socket(fileno=entry.fds[0]), read_received(entry.fds[1])
            os.close(entry.fds[1])
            sock.setblocking(False)
            if received is None or name.rpartition("/")[2] in answered:
                forget()
                sock.close()
            else:
                self._adopt(sock, received, forget)

    async def _continue(self, sock: socket.socket, logged: Logged, log: StreamLog) -> None:
        loop = asyncio.get_running_loop()
        stalled_s = self._service.settings.stalled_s
        try:
            sent = accepted(sock) - logged.head.base
            _, taken = await loop.connect_accepted_socket(lambda: TakenSocket(stalled_s), sock)
        except OSError:  # the client is gone
            sock.close()
            log.drop()
            return
        rest = logged.data[max(0, sent) :]
        if rest:
            taken.tap.transport.write(rest)
        if {"end", "failed"} & logged.marks:
            log.finish(taken.tap.transport)
            taken.tap.close()
            return
        self.continued += 1
        taken.tap.log = log
        taken.has_begun, taken.is_chunked = (
            bool(logged.data),
            _CHUNKED in logged.data[:4096].lower(),
        )
        await self._run(taken, logged, log)

    async def _run(self, taken: TakenSocket, logged: Logged, log: StreamLog) -> None:
        head = logged.head
        found = self._route(head.method, head.path)
        call = ContinuedCall(self._service, taken, logged, log, found[1] if found else {})
        try:
            if found is not None:
                await found[0](call)
        except (ClientGone, BrokenStream):
            pass
        except (Refused, errors.LlamaActorsError) as error:
            if not call.has_begun:
                await call.fail(failure_of(error))
        except Exception:  # noqa: BLE001 - a fault here ends this answer, and is logged
            _LOG.exception("the continued answer %s failed", head.call_id)
        finally:
            log.drop()
            taken.tap.close()


class ContinuedCall(Call):
    """A request whose answer was begun by a worker that is gone."""

    def __init__(
        self,
        service: Service,
        taken: TakenSocket,
        logged: Logged,
        log: StreamLog,
        path_params: dict[str, Any],
    ) -> None:
        head = logged.head
        scope = {
            "type": "http",
            "method": head.method,
            "path": head.path,
            "query_string": head.query,
            "headers": head.headers,
            "path_params": path_params,
            "client": None,
            CONNECTION: Connection(taken.tap, taken.is_paused),
        }
        super().__init__(service, scope, taken.receive, taken.send)
        self.id, self.key = head.call_id, head.key
        self.birth = Birth(head.answer_id, head.created, head.seed)
        self.has_begun = taken.has_begun
        self.log, self.logged = log, logged
        self._body = head.body

    async def body(self) -> bytes:
        return self._body

    async def model(self, asked: str | None) -> str:
        """As it was when the answer began, whatever the name means now."""
        fixed = None if self.logged is None else self.logged.model
        return fixed or await super().model(asked)


class TakenSocket(asyncio.Protocol):
    """The socket of a connection whose worker is gone: written to, and closed after the answer."""

    def __init__(self, stalled_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._stalled_s = stalled_s
        self._gone = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._stall: asyncio.TimerHandle | None = None
        self.has_begun = self.is_chunked = False
        self.tap: Tap

    # ── the loop's calls ────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("not a stream")
        self.tap = Tap(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._gone.set()
        self._writable.set()
        self.resume_writing()

    def pause_writing(self) -> None:
        self._writable.clear()
        self._stall = self._loop.call_later(self._stalled_s, self.tap.abort)

    def resume_writing(self) -> None:
        self._writable.set()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def is_paused(self) -> bool:
        return not self._writable.is_set()

    # ── ASGI ────────────────────────────────────────────────────────────────────────────────────

    async def receive(self) -> dict[str, Any]:
        """The body was read before: all that may still come is the end."""
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        await self._writable.wait()
        if self._gone.is_set():
            return
        if message["type"] == "http.response.start":
            self._start(message)
            return
        body, is_last = message.get("body", b""), not message.get("more_body", False)
        if self.is_chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            body += b"0\r\n\r\n" if is_last else b""
        if body:
            self.tap.write(body)

    def _start(self, message: dict[str, Any]) -> None:
        status = http.HTTPStatus(message["status"])
        lines = [b"HTTP/1.1 %d %b" % (status, status.phrase.encode())]
        headers = list(message["headers"])
        self.is_chunked = not any(name == b"content-length" for name, _ in headers)
        headers += [(b"transfer-encoding", b"chunked")] if self.is_chunked else []
        lines += [name + b": " + value for name, value in (*headers, (b"connection", b"close"))]
        self.has_begun = True
        self.tap.write(b"\r\n".join(lines) + b"\r\n\r\n")
