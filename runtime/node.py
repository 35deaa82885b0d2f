"""A node as host code holds it: started, or attached to one that runs. For threads and asyncio.

``Node.start`` runs the launcher as a child process and attaches to it; it never forks the host,
which may hold threads, sockets or a GPU. When the host dies, by whatever signal, the node ends too:
the launcher holds the other end of a pipe.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from runtime import errors
from runtime.client.async_client import AsyncClient
from runtime.client.client import Client
from runtime.settings import arguments
from runtime.settings.ports import node_dir, resolve_port
from runtime.settings.user_paths import user_path
from supervision import Connection, forks
from supervision.errors import MachineUnfit, NodeNotRunning, PortInUse
from supervision.machine import require_machine
from supervision.ports import free_port

if TYPE_CHECKING:
    from runtime.client.loop_transport import LoopTransport
    from runtime.settings.config import ModelConfig, RuntimeConfig
    from supervision.launched import LaunchedNode

MAX_PORT: Final = 65_535
PORT_TRIES: Final = 5  # a free port may be taken between choosing and binding it


class Node(Client):
    """A running node, and the questions to it: a ``Client`` that starts and stops it.

    Safe to use from several threads; close it, or use it in a ``with``. In a process that is forked
    from this one (multiprocessing, gunicorn, Celery) it opens a connection of its own at its first
    use there, and ends nothing of its parent's.

    >>> with Node.start() as node:                                          # doctest: +SKIP
    ...     print(node.complete("demo", "Once upon a time", max_tokens=40).text)
    """

    def __init__(
        self,
        port: int,
        connection: Connection,
        directory: Path,
        child: LaunchedNode | None = None,
    ) -> None:
        """For ``start`` and ``attach``; ``directory`` is the node's own folder."""
        super().__init__(connection)
        self._port = port
        self._directory = directory
        self._child = child
        self._process = forks.here()

    # ── getting one ─────────────────────────────────────────────────────────────────────────────

    @classmethod
    def start(  # noqa: PLR0913 - keywords, each with a default
        cls,
        models: Mapping[str, str | Path | ModelConfig | None] | None = None,
        *,
        cache_dir: str | Path | None = None,
        cache_ram: str | int | None = None,
        cache_ram_file: str | int | None = None,
        cache_disk: str | int | None = None,
        cache_disks: Mapping[str | Path, str | int] | None = None,
        port: int | None = None,
        runtime_dir: str | Path | None = None,
        log_file: str | Path | None = None,
        config: RuntimeConfig | None = None,
    ) -> Self:
        """Start a node and load ``models``: by id a path, or a ``ModelConfig``.

        ``{"demo": None}`` loads the embedded model, which is loaded at its first use otherwise.
        Without ``port`` a free one is chosen. Sizes are bytes or texts like ``512MiB`` or ``25%``
        of what is free; 0 turns a tier off. ``cache_disks`` names several directories, each with
        its size, in place of ``cache_dir`` and ``cache_disk``. The node ends with ``stop``, with
        the context manager, or with this process.
        """
        from runtime.client.load_request import config_of_start
        from runtime.settings.config import (
            RuntimeConfig,
            from_mapping,
            model_mapping,
            to_mapping,
        )

        try:
            require_machine()
        except MachineUnfit as error:
            raise errors.MachineUnfit(str(error)) from error
        if config is not None and not isinstance(config, RuntimeConfig):
            raise arguments.wrong("config", config, "a RuntimeConfig")
        base = to_mapping(config or RuntimeConfig())
        base |= _settings(
            paths={"cache_dir": cache_dir, "runtime_dir": runtime_dir, "log_file": log_file},
            sizes={
                "cache_ram": cache_ram,
                "cache_ram_file": cache_ram_file,
                "cache_disk": cache_disk,
            },
            disks=cache_disks,
        )
        chosen = None if port is None else arguments.whole("port", port, 1, MAX_PORT)
        wanted = dict(from_mapping(base).models)
        if models is not None:
            given = arguments.table("models", models, "ids of models and their paths")
            wanted |= {model: config_of_start(model, value) for model, value in given.items()}
        presets = {name: one for name, one in base["models"].items() if "path" not in one}
        later = {name: model_mapping(one) for name, one in wanted.items() if one.autoload}
        base["models"] = presets | later
        node = cls._launch(base, chosen, config is not None)
        try:
            for model, model_config in wanted.items():
                if model not in later:
                    node.load(model, model_config)
        except BaseException:
            node.stop()
            raise
        return node

    @classmethod
    def _launch(cls, settings: dict[str, Any], port: int | None, port_is_configured: bool) -> Self:
        from runtime.launch import start as launch
        from runtime.settings.config import from_mapping

        fixed = port if port is not None else settings["admin_port"] if port_is_configured else None
        last: errors.NodeStartFailed | None = None
        for _ in range(1 if fixed is not None else PORT_TRIES):
            chosen = fixed if fixed is not None else free_port()
            node_settings = from_mapping({**settings, "admin_port": chosen})
            try:
                child = launch.spawn(node_settings)
            except errors.NodeStartFailed as failed:
                if failed.kind != PortInUse.__name__:
                    raise
                last = failed
                continue
            try:
                directory = node_settings.node_dir
                return cls(chosen, Connection.attach(directory), directory, child)
            except NodeNotRunning as error:
                child.end()
                raise errors.NodeStartFailed(str(error), type(error).__name__) from error
        raise last or errors.NodeStartFailed("no free port was found")

    @classmethod
    def attach(cls, port: int | None = None, *, runtime_dir: str | Path | None = None) -> Self:
        """Use a running node: on ``port``, else ``LLAMA_ACTORS_PORT``, else the default port."""
        resolved = resolve_port(
            None if port is None else arguments.whole("port", port, 1, MAX_PORT)
        )
        base = None
        if runtime_dir is not None:
            base = user_path(arguments.path("runtime_dir", runtime_dir), "runtime_dir")
        directory = node_dir(resolved, base)
        try:
            return cls(resolved, Connection.attach(directory), directory)
        except MachineUnfit as error:
            raise errors.MachineUnfit(str(error)) from error
        except NodeNotRunning as error:
            raise errors.NodeNotRunning(resolved, str(error)) from error

    # ── using it ────────────────────────────────────────────────────────────────────────────────

    @property
    def client(self) -> Client:
        """The same questions, for code that must not stop the node."""
        return Client(self._connection)

    @property
    def port(self) -> int:
        """The admin port, by which other processes ``attach``."""
        return self._port

    @property
    def launcher_pid(self) -> int:
        """The process at the top of the tree."""
        return self._connection.record.pid

    @property
    def is_own(self) -> bool:
        """Whether this object started the node, and so ends it; never in a forked process."""
        return self._child is not None and forks.is_here(self._process)

    # ── ending it ───────────────────────────────────────────────────────────────────────────────

    def stop(self) -> None:
        """Stop the node, also one that another process started; wait until nothing of it is left.

        ``ForkedProcess`` in a process that was forked from the one that opened this: a child does
        not stop what its parent uses. To stop it from there, ``Node.attach`` first.
        """
        if not forks.is_here(self._process):
            raise errors.ForkedProcess(
                f"this node was opened in process {self._process[0]}, from which this one was "
                f"forked; stop it there, or with Node.attach({self.port}).stop()"
            )
        pid = self.launcher_pid
        self.close()
        if self._child is not None:
            self._child.end()
            self._child = None
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        _wait_gone(pid)

    def close(self) -> None:
        """Close the connection; the node continues, one of this host until the host ends."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.is_own:
            self.stop()
        else:
            self.close()


class AsyncNode(AsyncClient):
    """A running node, for code on an event loop: an ``AsyncClient`` that starts and stops it.

    Get one with ``start`` or ``attach``. All its requests wait at one descriptor of the loop,
    without threads. It may be used on several loops; in a forked process it opens a connection of
    its own when it is used.

    >>> async with AsyncNode.start() as node:                               # doctest: +SKIP
    ...     async for event in node.stream("demo", "Once upon a time"):
    ...         ...
    """

    def __init__(self, node: Node, transport: LoopTransport) -> None:
        """For ``start`` and ``attach``."""
        super().__init__(transport)
        self._node = node
        self._loop_transport = transport

    @classmethod
    def start(  # noqa: PLR0913 - keywords, each with a default
        cls,
        models: Mapping[str, str | Path | ModelConfig | None] | None = None,
        *,
        cache_dir: str | Path | None = None,
        cache_ram: str | int | None = None,
        cache_ram_file: str | int | None = None,
        cache_disk: str | int | None = None,
        cache_disks: Mapping[str | Path, str | int] | None = None,
        port: int | None = None,
        runtime_dir: str | Path | None = None,
        log_file: str | Path | None = None,
        config: RuntimeConfig | None = None,
    ) -> Opening:
        """As ``Node.start``; to be awaited, or used in an ``async with``."""
        return Opening(
            functools.partial(
                Node.start,
                models,
                cache_dir=cache_dir,
                cache_ram=cache_ram,
                cache_ram_file=cache_ram_file,
                cache_disk=cache_disk,
                cache_disks=cache_disks,
                port=port,
                runtime_dir=runtime_dir,
                log_file=log_file,
                config=config,
            )
        )

    @classmethod
    def attach(cls, port: int | None = None, *, runtime_dir: str | Path | None = None) -> Opening:
        """As ``Node.attach``; to be awaited, or used in an ``async with``."""
        return Opening(functools.partial(Node.attach, port, runtime_dir=runtime_dir))

    @property
    def port(self) -> int:
        """The admin port, by which other processes ``attach``."""
        return self._node.port

    @property
    def launcher_pid(self) -> int:
        """The process at the top of the tree."""
        return self._node.launcher_pid

    @property
    def connection(self) -> Connection:
        """The connection for threads; its methods block."""
        return self._node.connection

    @property
    def node(self) -> Node:
        """The same node for threads; its methods block."""
        return self._node

    async def stop(self) -> None:
        """Stop the node, whichever process started it, and wait until nothing of it is left."""
        await self._end(self._node.stop)

    async def close(self) -> None:
        """Cancel what runs, and close the connection; the node itself continues."""
        await self._end(self._node.close)

    async def _end(self, end: Callable[[], None]) -> None:
        import asyncio

        await self._loop_transport.close(self._leave_all)
        await asyncio.shield(asyncio.to_thread(end))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await (self.stop() if self._node.is_own else self.close())


class Opening:
    """A node that is being started or attached to: await it, or use it in an ``async with``."""

    def __init__(self, open_node: Callable[[], Node]) -> None:
        self._open_node = open_node
        self._node: AsyncNode | None = None

    def __await__(self) -> Generator[Any, None, AsyncNode]:
        return self._opened().__await__()

    async def _opened(self) -> AsyncNode:
        import asyncio

        from runtime.client.loop_transport import LoopTransport

        node = await asyncio.to_thread(self._open_node)  # to start one takes a second or two
        return AsyncNode(node, LoopTransport(node._directory))

    async def __aenter__(self) -> AsyncNode:
        self._node = await self
        return self._node

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._node is not None:
            await self._node.__aexit__(kind, error, trace)


def _settings(
    paths: Mapping[str, object], sizes: Mapping[str, object], disks: object
) -> dict[str, Any]:
    """What is given of them, checked."""
    found: dict[str, Any] = {}
    for key, value in paths.items():
        if value is not None:
            found[key] = arguments.path(key, value)
    for key, value in sizes.items():
        if value is not None:
            found[key] = arguments.size(key, value)
    if disks is not None:
        table = arguments.table("cache_disks", disks, "directories and their sizes")
        found["cache_disks"] = {
            arguments.path("a directory of cache_disks", at): arguments.size(
                f"cache_disks[{at}]", one
            )
            for at, one in table.items()
        }
    return {key: value for key, value in found.items() if value != {}}


def _wait_gone(pid: int) -> None:
    """Wait until another process's launcher has ended."""
    from supervision.launched import STOP_TIMEOUT_S

    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        gone, _, _ = select.select([fd], [], [], STOP_TIMEOUT_S)
    finally:
        os.close(fd)
    if not gone:
        raise errors.NoReply(f"the node with pid {pid} did not stop within {STOP_TIMEOUT_S:.0f} s")
