"""The connection of asyncio code to a node, as a client's transport. See ``transport``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from runtime.client.transport import Gate, Work
from supervision import Address, Entry
from supervision.loop_connection import LoopConnection, Replies
from supervision.node_file import NodeRecord

R = TypeVar("R")


class _LoopGate:
    def __init__(self) -> None:
        self._event = asyncio.Event()

    def open(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()


class LoopTransport:
    """A ``LoopConnection``; all requests of a loop share one socket to each process."""

    def __init__(self, node_dir: Path) -> None:
        """Raises NodeNotRunning of ``supervision`` if no node lives in this folder."""
        self._connection = LoopConnection(node_dir)

    @property
    def record(self) -> NodeRecord:
        return self._connection.record

    async def ask(self, target: str | Address, message: object, *, timeout_s: float) -> object:
        return await self._connection.ask(target, message, timeout_s=timeout_s)

    def stream(
        self,
        target: str,
        message: object,
        *,
        idle_timeout_s: float,
        ends_at: float | None,
        any_sign: bool = False,
        on_full: Callable[[], None] | None = None,
    ) -> Replies:
        return self._connection.stream(
            target,
            message,
            idle_timeout_s=idle_timeout_s,
            ends_at=ends_at,
            any_sign=any_sign,
            on_full=on_full,
        )

    def notify(self, target: str, message: object, *, timeout_s: float) -> None:
        self._connection.notify(target, message, timeout_s=timeout_s)

    async def where(self, child_id: str, *, timeout_s: float) -> Entry | None:
        return await self._connection.where(child_id, timeout_s=timeout_s)

    async def directory(self) -> tuple[Entry, ...]:
        return await self._connection.directory()

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def run(self, call: Callable[[], R]) -> R:
        return await asyncio.to_thread(call)

    def gate(self) -> Gate:
        return _LoopGate()

    async def together(self, works: Sequence[Work[R]], *, at_once: int) -> list[R]:
        """Each as a task."""
        free = asyncio.Semaphore(at_once)

        async def in_turn(work: Work[R]) -> R:
            async with free:
                return await work.run()

        tasks = [asyncio.create_task(in_turn(work)) for work in works]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def close(self, leave: Callable[[], None]) -> None:
        """Close the sockets; what still waits raises. ``leave`` is called before, to cancel it."""
        await self._connection.close(leave)
