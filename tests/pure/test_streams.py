"""Streams as their callers hold them: cancelled from any thread, left at any moment, never lost."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import pytest

from runtime import AsyncNode, Event, Node, PrefillEvent, errors
from runtime.client.aio_stream import BUFFERED, AsyncStream, Feed
from runtime.client.stream import CompletionStream, RequestHandle
from supervision.errors import NodeRestarted

pytestmark = pytest.mark.pure


# ── handles ──────────────────────────────────────────────────────────────────────────────────────


def test_a_request_is_cancelled_once_however_often_and_by_whichever_caller() -> None:
    told: list[str] = []
    handle = RequestHandle(told.append)
    handle.accepted("one")
    threads = [threading.Thread(target=handle.cancel) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == ["one"]


def test_a_request_that_is_not_accepted_yet_is_cancelled_when_it_is() -> None:
    told: list[str] = []
    handle = RequestHandle(told.append)
    handle.cancel()
    assert told == []
    handle.accepted("first")
    handle.accepted("second")  # it was sent again, because whoever had accepted it died
    assert told == ["first", "second"]
    assert handle.request_id == "second"


def test_closing_a_stream_of_a_node_that_is_gone_raises_nothing() -> None:
    def tell(_: str) -> None:
        raise NodeRestarted("node")

    handle = RequestHandle(tell)
    handle.accepted("one")
    handle.cancel()
    assert handle.is_cancelled


# ── on a loop ────────────────────────────────────────────────────────────────────────────────────


class Source:
    """A stream of ``n`` events; ``steps`` counts those taken, ``closed`` tells its end."""

    def __init__(self, n: int, error: Exception | None = None, wait: bool = False) -> None:
        self.steps = 0
        self.closed = threading.Event()
        self.cancelled = threading.Event()
        self.stream = CompletionStream(
            self._events(n, error, wait), RequestHandle(lambda _: self.cancelled.set())
        )

    def _events(self, n: int, error: Exception | None, wait: bool) -> Generator[Event, None, None]:
        self.stream._handle.accepted("one")
        try:
            for index in range(n):
                self.steps += 1
                yield PrefillEvent(index, n, 0)
            if wait:
                assert self.cancelled.wait(10)
            if error is not None:
                raise error
        finally:
            self.closed.set()


class Pools:
    """Threads for streams and for cancels; all must end."""

    def __init__(self, n_streams: int = 4) -> None:
        self.streams = ThreadPoolExecutor(n_streams)
        self.cancels = ThreadPoolExecutor(1)
        self.open: set[Feed] = set()

    def stream(self, source: Source) -> AsyncStream:
        return AsyncStream(source.stream, self.streams, self.cancels, self.open)

    def __enter__(self) -> Pools:
        return self

    def __exit__(self, *_: object) -> None:
        self.streams.shutdown()
        self.cancels.shutdown()


def test_all_events_come_in_order_and_an_error_after_them() -> None:
    async def read(pools: Pools) -> tuple[list[Event], list[Event]]:
        whole = [event async for event in pools.stream(Source(1000))]
        broken = pools.stream(Source(3, errors.ModelDown("x", "gone")))
        part = [await anext(broken) for _ in range(3)]
        with pytest.raises(errors.ModelDown):
            await anext(broken)
        return whole, part

    with Pools() as pools:
        whole, part = asyncio.run(read(pools))
    assert whole == [PrefillEvent(index, 1000, 0) for index in range(1000)]
    assert len(part) == 3


def test_a_reader_that_does_not_read_holds_the_stream_up() -> None:
    source = Source(10 * BUFFERED)

    async def read(pools: Pools) -> int:
        stream = pools.stream(source)
        await anext(stream)
        (feed,) = pools.open
        while not feed._changed._waiters:  # type: ignore[attr-defined]
            await asyncio.sleep(0.001)
        ahead = source.steps
        rest = [event async for event in stream]
        assert len(rest) == 10 * BUFFERED - 1
        return ahead

    with Pools() as pools:
        ahead = asyncio.run(read(pools))
    assert BUFFERED < ahead <= BUFFERED + 3


@pytest.mark.parametrize("how", ["break", "close", "cancel"])
def test_leaving_a_stream_cancels_its_request_and_ends_its_thread(how: str) -> None:
    source = Source(2, wait=True)

    async def leave(pools: Pools) -> None:
        async def read() -> None:
            stream = pools.stream(source)
            async for event in stream:
                assert event
                if how == "break":
                    break
                if how == "close":
                    await stream.aclose()

        task = asyncio.create_task(read())
        while source.steps < 2:
            await asyncio.sleep(0.001)
        if how == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await task
        await asyncio.to_thread(source.closed.wait, 5)

    with Pools() as pools:
        asyncio.run(leave(pools))
        assert source.closed.is_set()
        assert source.cancelled.is_set()
    assert not pools.open


def test_a_stream_that_waits_for_a_thread_can_be_left_and_is_never_begun() -> None:
    busy, late = Source(1, wait=True), Source(1)

    async def play(pools: Pools) -> None:
        first = pools.stream(busy)
        await anext(first)
        second = asyncio.create_task(anext(pools.stream(late)))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        await first.aclose()

    with Pools(n_streams=1) as pools:
        asyncio.run(play(pools))
    assert late.steps == 0


def test_the_loop_is_never_blocked_by_a_stream() -> None:
    source = Source(3, wait=True)

    async def play(pools: Pools) -> int:
        stream = pools.stream(source)
        reader = asyncio.create_task(_all(stream))
        turns = 0
        while source.steps < 3:
            await asyncio.sleep(0)
            turns += 1
        for _ in range(100):
            await asyncio.sleep(0)  # the source waits for its cancel, and the loop goes round
        stream.cancel()
        assert len(await reader) == 3
        return turns

    with Pools() as pools:
        asyncio.run(play(pools))


async def _all(stream: AsyncStream) -> list[Event]:
    return [event async for event in stream]


# ── twins ────────────────────────────────────────────────────────────────────────────────────────

NOT_TWINNED = {"client", "is_own"}
"""The half that blocks is there as ``node``."""
ITERATED = {"stream", "stream_chat"}
OPENED = {"start", "attach"}


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_whatever_a_node_can_its_asyncio_twin_can_too() -> None:
    assert public(Node) - public(AsyncNode) == NOT_TWINNED
    assert public(AsyncNode) - public(Node) == {"node", "port"}  # Node sets its port
    for name in public(Node) - NOT_TWINNED:
        blocking, twin = getattr(Node, name), getattr(AsyncNode, name)
        if isinstance(blocking, property):
            assert isinstance(twin, property), name
        elif name not in ITERATED | OPENED:
            assert inspect.iscoroutinefunction(twin), name


@pytest.mark.parametrize("name", sorted(public(Node) - NOT_TWINNED - OPENED))
def test_both_take_the_same_arguments(name: str) -> None:
    blocking, twin = getattr(Node, name), getattr(AsyncNode, name)
    if not isinstance(blocking, property):
        assert [*inspect.signature(blocking).parameters] == [*inspect.signature(twin).parameters]
