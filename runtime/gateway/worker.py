"""An HTTP worker: an actor whose engine thread is an event loop with a server.

Owns: the requests of its connections. Asks: inflight, the registry, models, the ledger, over a
connection of its own, as a client of the node does. Answers other workers: ``EndResponse``,
``ReadWhy``. Dies when its loop hangs; the listening sockets are on the launcher's shelf, so clients
that are not accepted yet wait for its next incarnation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import Final

from runtime import errors
from runtime.client.transport import Transport
from runtime.gateway.ledger_messages import EndResponse, ResponseEnding
from runtime.gateway.watch_messages import ReadWhy, WhyRead
from runtime.settings.gateway import LISTENER, HttpWorkerArgs
from supervision import Address, EngineWorker, ExitReason
from supervision.errors import NodeNotRunning
from supervision.messages import Entry
from supervision.node_file import RuntimeDir
from supervision.shelf import ShelfClient

BEAT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Listening:
    n_sockets: int


@dataclass(frozen=True, slots=True)
class _Reply:
    to: Address
    message: WhyRead


class HttpWorker(EngineWorker):
    """Serves HTTP on the sockets of the shelf."""

    def init(self, args: object) -> None:
        if not isinstance(args, HttpWorkerArgs):
            raise TypeError(f"an HTTP worker is started with HttpWorkerArgs, not {args!r}")
        self._args_given = args
        self._stop: Callable[[], None] | None = None
        self._end_response: Callable[[EndResponse], None] | None = None
        self._read_why: Callable[[ReadWhy, Callable[[WhyRead], None]], None] | None = None
        self._why: ExitReason | None = None
        self.defer_ready()
        self.start_engine(self._serve)

    # ── engine thread ───────────────────────────────────────────────────────────────────────────

    def _serve(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        from runtime.gateway.server import GatewayServer  # here: no other actor needs a web server

        args = self._args_given
        folder = Path(args.node_dir)
        shelf = ShelfClient(folder, RuntimeDir(folder).cookie() or b"")
        server = GatewayServer(args, self._connect, self._states, self.log, shelf)
        sockets = self._sockets(shelf)
        loop = asyncio.get_running_loop()

        def stop() -> None:
            loop.call_soon_threadsafe(server.stop)

        def end_response(asked: EndResponse) -> None:
            loop.call_soon_threadsafe(server.end_response, asked)

        def read_why(asked: ReadWhy, reply: Callable[[WhyRead], None]) -> None:
            loop.call_soon_threadsafe(server.read_why, asked, reply)

        self._stop = stop
        self._read_why = read_why
        self._end_response = end_response
        with self.engine_step():
            beats = asyncio.create_task(self._beat(shelf))
            try:
                await server.run(sockets, lambda: self.post(_Listening(len(sockets))))
            finally:
                beats.cancel()

    async def _beat(self, shelf: ShelfClient) -> None:
        """Show that the loop turns."""
        while True:
            self.beat()
            shelf.flush()
            await asyncio.sleep(BEAT_S)

    def _sockets(self, shelf: ShelfClient) -> list[socket]:
        found = [shelf.get(name) for name in sorted(shelf.names(LISTENER))]
        return [socket(fileno=fd) for one in found if one is not None for fd in one.fds]

    def _connect(self) -> Transport:
        from runtime.client.loop_transport import LoopTransport

        try:
            return LoopTransport(Path(self._args_given.node_dir))
        except NodeNotRunning as error:
            raise errors.NodeNotRunning(0, str(error)) from error

    def _states(self) -> dict[str, str]:
        """States of models by their ids, from the directory that the root keeps up to date."""
        from actors.messages.actor_ids import model_of

        entries: list[Entry] = list(self.directory.values())
        return {model: entry.state for entry in entries if (model := model_of(entry.id))}

    # ── mailbox ─────────────────────────────────────────────────────────────────────────────────

    def handle(self, message: object, sender: Address) -> None:
        if isinstance(message, EndResponse) and self._end_response is not None:
            self._end_response(message)
            self.tell(sender, ResponseEnding(message.ref))
        elif isinstance(message, ReadWhy) and self._read_why is not None:
            self._read_why(message, lambda answer: self.post(_Reply(sender, answer)))
        else:
            self.log.warning("dropped a %s from %s", type(message).__name__, sender)

    def handle_events(self, events: list[object]) -> None:
        for event in events:
            if isinstance(event, _Listening):
                self.ready()
            elif isinstance(event, _Reply):
                self.tell(event.to, event.message)

    def stop_asked(self, reason: ExitReason) -> None:
        """Accept no more, and give what runs its time."""
        self._why = reason
        if self._stop is None:
            self.stop(reason)
        else:
            self._stop()

    def engine_ended(self) -> None:
        if self._why is not None:
            self.stop(self._why)
        else:
            self.fail("the server ended by itself")

    def status(self) -> dict[str, object]:
        settings = self._args_given.settings
        listen = [str(one) for one in settings.listen]
        return {"listen": listen, "tls": settings.tls_certificate is not None}
