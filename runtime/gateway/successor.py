"""Continues the answers of a worker that was killed, on their own sockets.

See ``stream_log``. Each answer runs through the route that had begun it, with the logged body, so
every API is continued in the same way. So do responses in the background, which have no socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from runtime import errors
from runtime.gateway.call import Call, Handler, Receive, Send, outcome_of, tracing
from runtime.gateway.connection import CONNECTION, Connection
from runtime.gateway.conversation_streams import Conversations, ConversationStream
from runtime.gateway.direct import Writer
from runtime.gateway.generation import BrokenStream, ClientGone
from runtime.gateway.service import Birth, Service
from runtime.gateway.shelved_run import ENDS, RUNS
from runtime.gateway.stream_log import (
    ALONE_AFTER,
    CONNECTIONS,
    ENDED,
    HELD,
    HELD_S,
    MAX_TAKEN,
    STREAMS,
    Logged,
    Received,
    StreamLog,
    accepted,
    read_log,
    read_received,
)
from runtime.gateway.tap import Tap
from runtime.gateway.wire.failure import Refused, failure_of
from supervision.shelf import ShelfClient

Route = Callable[[str, str], tuple[Handler, dict[str, Any], str] | None]
"""The handler of a method and a path, the path's parameters, and the pattern it matches."""
Resume = Callable[[Call, Logged, StreamLog], Coroutine[Any, Any, None]]
_LOOK_S: Final = 0.01
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
        adopt: Callable[[socket.socket, Received, Callable[[], object]], None],
        resume: Resume,
    ) -> None:
        """``adopt`` goes on with a connection and what has come on it.

        Then it calls its last argument: nothing of a predecessor is needed any more. ``resume``
        goes on with a response in the background.
        """
        self._service = service
        self._adopt = adopt
        self._shelf = shelf
        self._worker = worker
        self._route = route
        self._resume = resume
        self.continued = 0

    def begin(self) -> list[Awaitable[None]]:
        """Take every answer and every connection from the shelf; what continues them."""
        found: list[Awaitable[None]] = []
        answered: set[str] = set()
        suspects: list[_Suspect] = []
        conversations = self._service.own(Conversations)
        for name, sock, fd, logged in self._answers():
            answered.add(logged.head.connection_id)
            self._service.ledger.claim([logged.head.call_id])
            log = StreamLog(self._shelf, name, fd, logged.n_bytes)
            # Before any client can ask for it.
            kept = conversations.restore(logged, self._service.settings)
            if logged.n_taken >= ALONE_AFTER and not logged.is_given_up:
                suspects.append(_Suspect(sock, logged, log, kept))
                continue
            log.take(logged.n_bytes)
            found.append(self._continued(sock, logged, log, kept))
        if suspects:
            found.append(self._one_by_one(suspects))
        # Those without an answer under way: what had come on them is read again.
        for name, sock, fd in self._entries(CONNECTIONS):
            forget = partial(self._shelf.forget, name)
            received = read_received(fd, sock)
            os.close(fd)
            is_answered = name.rpartition("/")[2] in answered
            if received is None or received.n_taken >= MAX_TAKEN or is_answered:
                forget()
                sock.close()
            else:
                self._adopt(sock, received, forget)
        return [*found, *self._begin_runs()]

    def _answers(self) -> list[tuple[str, socket.socket, int, Logged]]:
        """Answers with their sockets and logs, in the order in which their requests came.

        So those that were running run again before those that had waited.
        """
        found = []
        for name, sock, fd in self._entries(STREAMS):
            logged = read_log(fd)
            if logged is None:
                self._shelf.forget(name)
                sock.close()
                os.close(fd)
            else:
                found.append((name, sock, fd, logged))
        return sorted(found, key=lambda one: one[3].head.at)

    def _begin_runs(self) -> list[Awaitable[None]]:
        """Responses in the background go on; logs of those that have ended can still be read."""
        ledger, responses = self._service.ledger, self._service.responses
        found: list[Awaitable[None]] = []
        names = []
        for name in self._shelf.names(f"{RUNS}{self._worker}/"):
            entry = self._shelf.get(name)
            if entry is None or not entry.fds:
                continue
            fd = entry.fds[0]
            logged = None if entry.data == ENDED else read_log(fd)
            if logged is None or ENDS & logged.marks:
                responses.left(name, os.fstat(fd).st_size)
                os.close(fd)
                continue
            log = StreamLog(self._shelf, name, fd, logged.n_bytes)
            log.take(logged.n_bytes)
            names.append(logged.head.call_id)
            call = LoggedCall(self._service, logged, {})
            work = self._resume(call, logged, log)
            found.append(responses.resuming(logged.head.call_id, work))
        ledger.claim(names)
        ledger.goes_on_with(names)
        return found

    def _entries(self, prefix: str) -> Iterator[tuple[str, socket.socket, int]]:
        """Names, sockets and logs; one that cannot be used is dropped, and the others are there."""
        for name in self._shelf.names(f"{prefix}{self._worker}/"):
            fds: tuple[int, ...] = ()
            try:
                entry = self._shelf.get(name)
                fds = () if entry is None else entry.fds
                fd, log_fd = fds
                sock = socket.socket(fileno=fd)
            except (OSError, ValueError) as error:
                _LOG.warning("%s on the shelf cannot be continued: %s", name, error)
                self._shelf.forget(name)
                for one in fds:
                    os.close(one)
                continue
            sock.setblocking(False)
            yield name, sock, log_fd

    async def _one_by_one(self, suspects: list[_Suspect]) -> None:
        """Continue answers during which workers have ended, those with the fewest ends first.

        The next one begins when this one has shown that it does not end the worker at once: it has
        ended, or has sent something, or has lasted. So one that does is found without the others.
        """
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Future[None]] = []
        for one in sorted(suspects, key=lambda one: one.logged.n_taken):
            one.log.take(one.logged.n_bytes)
            task = asyncio.ensure_future(
                self._continued(one.sock, one.logged, one.log, one.conversation)
            )
            tasks.append(task)
            until = loop.time() + HELD_S
            while not (task.done() or one.log.n_data) and loop.time() < until:
                await asyncio.wait({task}, timeout=_LOOK_S)
        await asyncio.wait(tasks)

    async def _continued(
        self, sock: socket.socket, logged: Logged, log: StreamLog, kept: ConversationStream | None
    ) -> None:
        """Continue an answer; if it can be read again, let that end with it."""
        try:
            await self._continue(sock, logged, log)
        finally:
            self._service.ledger.end(logged.head.call_id, 0)  # unless its request has done it
            if kept is not None:
                kept.end(is_whole="end" in logged.marks)

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
        if sent == len(logged.data) + 1 and "end" in logged.marks:
            sent -= 1  # it was closed already: the end of a connection counts as one byte
        if not 0 <= sent <= len(logged.data):  # something else was lost, or written, on it
            _LOG.warning(
                "the answer %s cannot be continued: %d bytes are sent, and %d logged",
                *(logged.head.call_id, sent, len(logged.data)),
            )
            log.drop()
            taken.tap.close()
            return
        if rest := logged.data[sent:]:
            taken.tap.write(rest)
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
        call.trace.route = found[2] if found else ""
        with tracing(call):
            await self._answer(call, found and found[0], taken, log)

    async def _answer(
        self, call: ContinuedCall, handler: Handler | None, taken: TakenSocket, log: StreamLog
    ) -> None:
        head, logged = call.continued.head, call.continued
        is_complete = False
        held = asyncio.get_running_loop().call_later(HELD_S, log.remember, HELD, "")
        try:
            if logged.is_given_up:
                _LOG.error(
                    "the answer %s is given up: %d workers ended during it without a byte of it",
                    *(head.call_id, logged.n_taken_at_all),
                )
                raise errors.EngineFailed(
                    f"{logged.n_taken_at_all} workers ended during this request"
                )
            if handler is not None:
                await handler(call)
                is_complete = True
        except (ClientGone, BrokenStream) as error:
            call.trace.outcome = outcome_of(error)
        except (Refused, errors.LlamaActorsError) as error:
            is_complete = await call.fail_unless_begun(failure_of(error))
        except Exception as error:  # noqa: BLE001 - a fault here ends this answer, and is logged
            _LOG.exception("the continued answer %s failed", head.call_id)
            is_complete = await call.fail_unless_begun(failure_of(error))
        finally:
            held.cancel()
            if is_complete:
                log.finish(taken.tap.transport)
            else:
                log.drop()
            taken.tap.close()


@dataclass(frozen=True, slots=True)
class _Suspect:
    """An answer that has been continued in vain."""

    sock: socket.socket
    logged: Logged
    log: StreamLog
    conversation: ConversationStream | None


async def _nothing() -> dict[str, Any]:
    raise AssertionError("there is no client")


async def _nowhere(message: dict[str, Any]) -> None:
    raise AssertionError(f"there is no client for {message['type']}")


class LoggedCall(Call):
    """A request that a worker had begun which is gone."""

    def __init__(
        self,
        service: Service,
        logged: Logged,
        more: Mapping[str, Any],
        receive: Receive = _nothing,
        send: Send = _nowhere,
    ) -> None:
        """``more``: of its scope."""
        head = logged.head
        scope = {
            "type": "http",
            "method": head.method,
            "path": head.path,
            "query_string": head.query,
            "headers": head.headers,
            "path_params": {},
            "client": None,
            **more,
        }
        super().__init__(service, scope, receive, send)
        self.id, self.key = head.call_id, head.key
        self.birth = Birth(head.answer_id, head.created, head.seed)
        self.logged = self.continued = logged
        self._body = head.body
        self.trace.id, self.trace.n_taken = head.call_id, logged.n_taken_at_all + 1
        self.trace.begun_at(head.at)
        self.trace.called_by(head.key)

    async def body(self) -> bytes:
        return self._body

    def counted(self) -> AbstractAsyncContextManager[None]:
        """It was allowed when it came."""
        return self._counted(is_checked=False)

    async def model(self, asked: str | None, *, is_exact: bool = False) -> str:
        """As it was when the answer began, whatever the name means now."""
        fixed = None if self.logged is None else self.logged.model
        return fixed or await super().model(asked, is_exact=is_exact)


class ContinuedCall(LoggedCall):
    """A request whose answer was begun by a worker that is gone."""

    def __init__(
        self,
        service: Service,
        taken: TakenSocket,
        logged: Logged,
        log: StreamLog,
        path_params: dict[str, Any],
    ) -> None:
        connection = Connection(taken.tap, taken.is_paused, writer=taken.writer)
        more = {"path_params": path_params, CONNECTION: connection}
        super().__init__(service, logged, more, taken.receive, taken.send)
        self.has_begun = taken.has_begun
        self.log = log


class TakenSocket(asyncio.Protocol):
    """The socket of a connection whose worker is gone: written to, and closed after the answer."""

    def __init__(self, stalled_s: float) -> None:
        self._stalled_s = stalled_s
        self._gone = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.has_begun = self.is_chunked = False
        self.writer = Writer(self._is_open, self._write_part)
        self.tap: Tap

    # ── the loop's calls ────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("not a stream")
        self.tap = Tap(transport, self._stalled_s)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.tap.lost()
        self._gone.set()
        self._writable.set()
        with contextlib.suppress(OSError):  # the shelf may still have it open
            self.tap.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def is_paused(self) -> bool:
        return not self._writable.is_set()

    def _is_open(self) -> bool:
        return (
            self.has_begun
            and self.is_chunked
            and self._writable.is_set()
            and not self._gone.is_set()
        )

    def _write_part(self, body: bytes) -> None:
        self.tap.write(b"%x\r\n%b\r\n" % (len(body), body))

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
        lines = [STATUS_LINE[message["status"]].rstrip()]
        headers = list(message["headers"])
        self.is_chunked = not any(name == b"content-length" for name, _ in headers)
        headers += [(b"transfer-encoding", b"chunked")] if self.is_chunked else []
        lines += [name + b": " + value for name, value in (*headers, (b"connection", b"close"))]
        self.has_begun = True
        self.tap.write(b"\r\n".join(lines) + b"\r\n\r\n")
