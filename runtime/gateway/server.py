"""The server of one HTTP worker: uvicorn on sockets that are open already, with our protocol."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from socket import socket
from typing import Any, Final

import uvicorn

from runtime.client.async_client import AsyncClient
from runtime.gateway.app import build_app, find_route
from runtime.gateway.keys import BadKeys, Keys, keys_from
from runtime.gateway.protocol import GuardedProtocol
from runtime.gateway.service import Service
from runtime.gateway.successor import Successor
from runtime.settings.gateway import HttpWorkerArgs
from supervision.node_file import RuntimeDir
from supervision.shelf import ShelfClient

_STARTED_EVERY_S: Final = 0.001


class GatewayServer:
    """One worker's server."""

    def __init__(
        self,
        args: HttpWorkerArgs,
        connect: Callable[[], AsyncClient],
        loaded: Callable[[], Iterable[str]],
        log: logging.Logger,
        shelf: ShelfClient,
    ) -> None:
        quiet_uvicorn()
        settings = args.settings
        cookie = RuntimeDir(Path(args.node_dir)).cookie() or b""
        secret = hashlib.blake2b(b"gateway namespaces", key=cookie).digest()
        self.service = Service(settings, connect, loaded, secret)
        self._keys = KeysFile(settings.keys_file, log)
        facts = {
            "settings": settings,
            "per_address": Counter(),
            "shelf": shelf,
            "worker": args.number,
        }
        self._protocol: Any = type("Protocol", (GuardedProtocol,), facts)
        self._successor = Successor(
            self.service, shelf, args.number, find_route, self._new_protocol
        )
        self._continued: set[asyncio.Future[None]] = set()
        self._server = uvicorn.Server(
            uvicorn.Config(
                build_app(self.service, self._keys.now),
                http=self._protocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=int(settings.idle_s),
                timeout_graceful_shutdown=int(settings.drain_s),
                ssl_certfile=settings.tls_certificate,
                ssl_keyfile=settings.tls_key,
            )
        )

    async def run(self, sockets: list[socket], on_listening: Callable[[], None]) -> None:
        """Serve until ``stop``; ``on_listening`` is called once it does."""
        serving = asyncio.create_task(self._server._serve(sockets))
        while not (self._server.started or serving.done()):
            await asyncio.sleep(_STARTED_EVERY_S)
        if not serving.done():
            on_listening()
            self._continued = {asyncio.ensure_future(one) for one in self._successor.begin()}
        await serving
        if self._continued:
            await asyncio.wait(self._continued, timeout=self.service.settings.drain_s)

    def _new_protocol(self) -> asyncio.Protocol:
        config, state = self._server.config, self._server.server_state
        made: asyncio.Protocol = self._protocol(config=config, server_state=state, app_state={})
        return made

    def stop(self) -> None:
        """Accept no more; end when what runs has ended, at the latest after ``drain_s``."""
        self.service.is_draining = True
        self._server.should_exit = True


class KeysFile:
    """The keys in a file, read again when it changes. One that cannot be read changes nothing."""

    def __init__(self, path: str | None, log: logging.Logger) -> None:
        self._path = path
        self._log = log
        self._seen: tuple[int, int] | None = None
        self._keys = Keys()

    def now(self) -> Keys | None:
        """The keys that count; None: there is no file, and no key is needed."""
        if self._path is None:
            return None
        with contextlib.suppress(OSError):
            found = os.stat(self._path)
            seen = (found.st_mtime_ns, found.st_size)
            if seen != self._seen:
                self._seen = seen
                self._read(self._path)
        return self._keys

    def _read(self, path: str) -> None:
        try:
            self._keys = keys_from(Path(path).read_text(encoding="utf-8"))
        except (BadKeys, UnicodeDecodeError) as error:
            self._log.error("%s is not used: %s; the keys from before count", path, error)


def quiet_uvicorn() -> None:
    """Its lines are about connections that are ended on purpose; what fails is logged by us."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL + 1)
        logger.propagate = False
