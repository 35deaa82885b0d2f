"""The server of one HTTP worker: uvicorn on sockets that are open already, with our protocol."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_TCP,
    SO_SNDBUF,
    SOL_SOCKET,
    TCP_NODELAY,
    socket,
)
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from runtime import errors
from runtime.client.transport import Transport
from runtime.gateway.acceptor import Acceptor
from runtime.gateway.app import App, find_route
from runtime.gateway.connection import Arrival
from runtime.gateway.keys import BadKeys, Keys, keys_from
from runtime.gateway.ledger_messages import EndResponse
from runtime.gateway.protocol import Bodies, GuardedProtocol
from runtime.gateway.routes.responses import resume
from runtime.gateway.service import Service
from runtime.gateway.stream_log import Received
from runtime.gateway.successor import Successor
from runtime.gateway.telemetry import from_environment
from runtime.gateway.watch_messages import ReadWhy, WhyRead
from runtime.gateway.why import answer_to, why_here
from runtime.settings.gateway import HttpWorkerArgs
from supervision import Connection
from supervision.errors import NodeNotRunning
from supervision.shelf import ShelfClient

if TYPE_CHECKING:
    from runtime.client.client import Client

SEND_BUFFER_BYTES: Final = 128 << 10
"""Of the kernel, which would let it grow to megabytes for each client that reads nothing."""
REFUSED_PER_TAKEN: Final = 2
"""Connections that are open, those that are being refused included, for each that may be there."""
_STARTED_EVERY_S: Final = 0.001


class GatewayServer:
    """One worker's server."""

    def __init__(
        self,
        args: HttpWorkerArgs,
        connect: Callable[[], Transport],
        states: Callable[[], Mapping[str, str]],
        log: logging.Logger,
        shelf: ShelfClient,
    ) -> None:
        quiet_uvicorn()
        settings = args.settings
        self.service = Service(
            settings,
            connect,
            states,
            args.secret,
            partial(attached, Path(args.node_dir)),
            number=args.number,
        )
        self._telemetry = from_environment(os.environ)
        if self._telemetry is not None:
            self.service.traces.on_reply.append(self._telemetry.begin)
            self.service.traces.on_end.append(self._telemetry.ended)
        self.service.expect(args.expected, args.expected_until)
        self._shelf, self._worker, self._log = shelf, args.number, log
        self._acceptor: Acceptor | None = None
        self._connecting: set[asyncio.Future[None]] = set()
        self._ending: set[asyncio.Future[None]] = set()
        self._keys = KeysFile(settings.keys_file, log)
        facts = {
            "settings": settings,
            "per_address": Counter(),
            "bodies": Bodies(),
            "shelf": shelf,
            "worker": args.number,
            "refused": staticmethod(self.service.measures.refused),
        }
        self._protocol: Any = type("Protocol", (GuardedProtocol,), facts)
        self.service.responses.shelf = shelf
        self._successor = Successor(
            self.service, shelf, args.number, find_route, self.adopt, resume
        )
        self.service.connections = lambda: len(self._server.server_state.connections)
        self._drained_at = 0.0
        self._continued: set[asyncio.Future[None]] = set()
        self._server = uvicorn.Server(
            uvicorn.Config(
                App(self.service, self._keys.now),
                http=self._protocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=math.ceil(settings.idle_s),
                timeout_graceful_shutdown=math.ceil(settings.drain_s) + 1,  # after ``_leave``
                ssl_certfile=settings.tls_certificate,
                ssl_keyfile=settings.tls_key,
            )
        )

    async def run(self, sockets: list[socket], on_listening: Callable[[], None]) -> None:
        """Serve until ``stop``; ``on_listening`` is called once it does."""
        serving = asyncio.create_task(self._server._serve([]))
        while not (self._server.started or serving.done()):
            await asyncio.sleep(_STARTED_EVERY_S)
        if not serving.done():
            self._acceptor = Acceptor(sockets, self._arrival, self._accepted)
            on_listening()
            self._continued = {asyncio.ensure_future(one) for one in self._successor.begin()}
        reports = asyncio.create_task(self.service.ledger.run())
        await serving
        if self._continued:
            left_s = max(0.0, self._drained_at - time.monotonic())
            await asyncio.wait(self._continued, timeout=left_s)
        reports.cancel()
        await asyncio.gather(reports, return_exceptions=True)
        await self.service.ledger.leave()
        if self._telemetry is not None:
            self._telemetry.close()

    def _accepted(self, sock: socket, arrival: Arrival) -> None:
        too_many = len(self._connecting) >= self.service.settings.max_connections
        if too_many and self._server.config.ssl is not None:
            arrival.drop()
            sock.close()  # of peers that begin TLS and send no more
            return
        n_open = len(self._server.server_state.connections) + len(self._connecting)
        if n_open >= REFUSED_PER_TAKEN * self.service.settings.max_connections:
            arrival.drop()
            sock.close()  # so many are being refused already that one more gets no answer
            return
        if n_open >= self.service.settings.max_connections:
            arrival.drop()
        self._begin(self._connect(sock, arrival, b""))

    def adopt(self, sock: socket, received: Received, forget: Callable[[], object]) -> None:
        """Go on with a connection of a predecessor; ``received`` is what had come on it."""
        arrival = self._arrival(received.n_taken + 1 if received.data else 0)
        arrival.keep(sock)
        if arrival.received is not None:
            arrival.received.add(received.data)
        forget()
        self._begin(self._connect(sock, arrival, received.data))

    def _arrival(self, n_taken: int = 0) -> Arrival:
        if self._server.config.ssl is not None:
            return Arrival()
        return Arrival.prepare(self._shelf, self._worker, n_taken)

    def _begin(self, connecting: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(connecting)
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, sock: socket, arrival: Arrival, received: bytes) -> None:
        config, state = self._server.config, self._server.server_state
        if sock.family in (AF_INET, AF_INET6):
            with contextlib.suppress(OSError):
                sock.setsockopt(SOL_SOCKET, SO_SNDBUF, SEND_BUFFER_BYTES)
                sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)

        def protocol() -> GuardedProtocol:
            made: GuardedProtocol = self._protocol(
                config=config, server_state=state, app_state={}, arrival=arrival
            )
            return made

        try:
            _, made = await asyncio.get_running_loop().connect_accepted_socket(
                protocol,
                sock,
                ssl=config.ssl,
                ssl_handshake_timeout=None if config.ssl is None else self.service.settings.head_s,
            )
        except OSError:  # the client is gone, or no TLS came
            sock.close()
            if arrival.received is not None:
                arrival.received.drop()
            return
        if received:
            made.feed(received)
        if self.service.is_draining:
            made.shutdown()

    def end_response(self, asked: EndResponse) -> None:
        """Another worker was asked to end a response that runs here."""
        task = asyncio.ensure_future(self.service.responses.end(asked))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def read_why(self, asked: ReadWhy, reply: Callable[[WhyRead], None]) -> None:
        """Another worker was asked for a prompt that may be kept here."""

        async def read() -> None:
            found = None
            with contextlib.suppress(errors.LlamaActorsError):
                found = await why_here(self.service, asked.name)
            reply(answer_to(asked, found))

        task = asyncio.ensure_future(read())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def stop(self) -> None:
        """Accept no more; end when what runs has ended, at the latest after ``drain_s``."""
        self.service.is_draining = True
        self._drained_at = time.monotonic() + self.service.settings.drain_s
        asyncio.get_running_loop().call_later(self.service.settings.drain_s, self._leave)
        if self._acceptor is not None:
            self._acceptor.close()
        self._server.should_exit = True

    def _leave(self) -> None:
        """End at once, as a process that is killed: what still runs lies on the shelf.

        If the launcher goes on, with another boot of the node, the next worker continues it there.
        An orderly end would break it, and take it from the shelf.
        """
        count = len(self._server.server_state.tasks) + sum(
            not one.done() for one in self._continued
        )
        if not count and not self.service.running:
            return
        self._log.warning(
            "%d requests still run %g s after this worker was to stop; they are left to the next "
            "one, if there is any",
            *(max(count, self.service.running), self.service.settings.drain_s),
        )
        for handler in logging.getLogger().handlers:
            handler.flush()
        os._exit(0)


def attached(node_dir: Path) -> Client:
    """A client that blocks, for a thread that works on the cache."""
    from runtime.client.client import Client  # here: few requests need it

    try:
        return Client(Connection.attach(node_dir))
    except NodeNotRunning as error:
        raise errors.NodeNotRunning(0, str(error)) from error


class KeysFile:
    """The keys in a file, read again when it changes. One that cannot be read changes nothing."""

    def __init__(self, path: str | None, log: logging.Logger) -> None:
        self._path = path
        self._log = log
        self._seen: tuple[int, int, int] | None = None
        self._trouble = ""
        self._keys = Keys()

    def now(self) -> Keys | None:
        """The keys that count; None: there is no file, and no key is needed."""
        if self._path is None:
            return None
        try:
            found = os.stat(self._path)
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
            if seen != self._seen:
                self._keys = keys_from(Path(self._path).read_text(encoding="utf-8"))
                self._seen = seen
                self._trouble = ""
        except (BadKeys, OSError, UnicodeDecodeError) as error:
            if str(error) != self._trouble:  # it is read at every request
                self._trouble = str(error)
                self._log.error("%s is not used: %s; the keys from before count", self._path, error)
        return self._keys


def quiet_uvicorn() -> None:
    """Its lines are about connections that are ended on purpose; what fails is logged by us."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL + 1)
        logger.propagate = False
