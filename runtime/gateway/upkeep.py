"""Work that reads files, or fetches some, and waits, on threads: the loop goes on meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from runtime.gateway.wire.failure import Failure, Fault, Refused

if TYPE_CHECKING:
    from runtime.client.cache.admin import OnlineCacheAdmin
    from runtime.client.client import Client
    from runtime.gateway.service import Service

AT_ONCE: Final = 2
"""Works of one worker at the same time; others wait."""
REPORT_EVERY_S: Final = 0.1

T = TypeVar("T")
GoOn = Callable[[float], None]
"""To be called between two steps, with the share that is done. Raises once nothing waits for it."""


class Slots:
    """Of the works of one worker."""

    def __init__(self) -> None:
        self.free = asyncio.Semaphore(AT_ONCE)


class _Left(Exception):
    """The result is not waited for."""


async def on_cache(
    service: Service,
    work: Callable[[OnlineCacheAdmin, GoOn], T],
    report: Callable[[float], None] | None = None,
) -> T:
    """The result of work on the cache. ``report`` takes shares, on the loop."""
    from runtime.client.cache.admin import OnlineCacheAdmin  # here: few requests need it

    def with_admin(client: Client, go_on: GoOn) -> T:
        with contextlib.closing(OnlineCacheAdmin(client)) as cache:
            return work(cache, go_on)

    return await on_client(service, with_admin, report)


async def on_client(
    service: Service,
    work: Callable[[Client, GoOn], T],
    report: Callable[[float], None] | None = None,
) -> T:
    """The same for work that needs a client that blocks."""

    def with_client(go_on: GoOn) -> T:
        client = service.attach()
        try:
            return work(client, go_on)
        finally:
            client.connection.close()

    return await on_thread(service, with_client, report)


async def on_thread(
    service: Service, work: Callable[[GoOn], T], report: Callable[[float], None] | None = None
) -> T:
    """The same for work that asks the node nothing."""
    is_left = threading.Event()
    loop = asyncio.get_running_loop()
    last = 0.0

    def go_on(share: float) -> None:
        nonlocal last
        if is_left.is_set():
            raise _Left
        if service.is_draining:
            raise Refused(Failure(Fault.UNAVAILABLE, "this gateway is being stopped"))
        if report is not None and time.monotonic() - last >= REPORT_EVERY_S:
            last = time.monotonic()
            loop.call_soon_threadsafe(report, round(share, 4))

    async with service.own(Slots).free:
        try:
            return await asyncio.to_thread(work, go_on)
        finally:
            is_left.set()
