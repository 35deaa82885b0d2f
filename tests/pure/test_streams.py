"""Streams as their callers hold them: cancelled from any thread, left at any moment, never lost."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import TypeVar, cast

import pytest

from actors import messages as m
from cache import tokens as token_bytes
from runtime import AsyncNode, Event, Node, PrefillEvent, TokenEvent, errors
from runtime.client.async_client import AsyncClient
from runtime.client.async_stream import AsyncStream
from runtime.client.stream import RequestHandle
from runtime.client.transport import Transport
from supervision.errors import NodeRestarted

pytestmark = pytest.mark.pure


# ── handles ──────────────────────────────────────────────────────────────────────────────────────


def test_a_request_is_cancelled_once_however_often_and_by_whichever_caller() -> None:
    sent: list[str] = []
    handle = RequestHandle(sent.append)
    handle.accepted("one")
    threads = [threading.Thread(target=handle.cancel) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sent == ["one"]


def test_a_request_that_is_not_accepted_yet_is_cancelled_when_it_is() -> None:
    sent: list[str] = []
    handle = RequestHandle(sent.append)
    handle.cancel()
    assert sent == []
    handle.accepted("first")
    handle.accepted("second")  # it was sent again, because the process that had accepted it died
    assert sent == ["first", "second"]
    assert handle.request_id == "second"


def test_closing_a_stream_of_a_node_that_is_gone_raises_nothing() -> None:
    def send(_: str) -> None:
        raise NodeRestarted("node")

    handle = RequestHandle(send)
    handle.accepted("one")
    handle.cancel()
    assert handle.is_cancelled


T = TypeVar("T")


# ── on a loop ────────────────────────────────────────────────────────────────────────────────────


class Replies:
    """Messages that come when the test lets them."""

    def __init__(self, script: list[object]) -> None:
        self.waiting = list(script)
        self.more = asyncio.Event()
        self.closed = False
        self.on_late: Callable[[object], None] | None = None

    async def next(self) -> object:
        while not self.waiting:
            self.more.clear()
            await self.more.wait()
        message = self.waiting.pop(0)
        if isinstance(message, Exception):
            raise message
        return message

    def ready(self, kind: type[T]) -> list[T]:
        found: list[T] = []
        while self.waiting and isinstance(self.waiting[0], kind):
            found.append(self.waiting.pop(0))  # type: ignore[arg-type]
        return found

    def close(self, on_late: Callable[[object], None] | None = None) -> None:
        self.closed, self.on_late = True, on_late


class Wire:
    """A transport whose every stream is ``replies``; notes what is sent."""

    def __init__(self, *script: object) -> None:
        self.replies = Replies(list(script))
        self.sent: list[object] = []
        self.notified: list[object] = []

    def stream(self, target: str, message: object, **_: object) -> Replies:
        self.sent.append((target, message))
        return self.replies

    def notify(self, target: str, message: object, *, timeout_s: float) -> None:
        assert target == "inflight"
        assert timeout_s > 0
        self.notified.append(message)

    def events(self) -> AsyncStream:
        return AsyncClient(cast(Transport, self)).stream("x", "abc")


ACCEPTED = m.Accepted("r", "id")
FAILED = m.CompletionFailed("r", m.FailReason.MODEL_DOWN, "gone")


def progress(done: int) -> m.PrefillProgress:
    return m.PrefillProgress("r", done, 1000, 0)


def tokens(index: int, text: str) -> m.TokensDelivered:
    return m.TokensDelivered("r", index, token_bytes.pack(map(ord, text)), text, index)


def test_all_events_come_in_order_and_an_error_after_them() -> None:
    async def read() -> list[Event]:
        wire = Wire(ACCEPTED, *map(progress, range(1000)), tokens(0, "ab"), FAILED)
        events = wire.events()
        got = [await anext(events) for _ in range(1001)]
        with pytest.raises(errors.ModelDown):
            await anext(events)
        assert wire.replies.closed
        assert wire.notified == []
        with pytest.raises(StopAsyncIteration):
            await anext(events)
        return got

    got = asyncio.run(read())
    assert got[:-1] == [PrefillEvent(index, 1000, 0) for index in range(1000)]
    assert isinstance(got[-1], TokenEvent)


def test_nothing_is_sent_before_the_first_step() -> None:
    async def play() -> None:
        wire = Wire(ACCEPTED, progress(1))
        events = wire.events()
        assert wire.sent == []
        await anext(events)
        assert len(wire.sent) == 1

    asyncio.run(play())


@pytest.mark.parametrize("how", ["break", "close", "cancel", "drop"])
def test_leaving_a_stream_cancels_its_request(how: str) -> None:
    async def leave() -> None:
        wire = Wire(ACCEPTED, progress(1))

        async def read() -> None:
            stream = wire.events()
            async for event in stream:
                assert event
                if how == "break":
                    break
                if how == "close":
                    await stream.aclose()
                if how == "drop":
                    del stream
                    return

        task = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        if how == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await asyncio.wait_for(task, 5)
        del task
        assert wire.replies.closed
        assert wire.notified == [m.Cancel("id", awaits_end=False)]

    asyncio.run(leave())


def test_a_request_that_is_left_before_it_is_accepted_is_cancelled_when_it_is() -> None:
    async def play() -> None:
        wire = Wire()
        task = asyncio.create_task(anext(wire.events()))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert wire.notified == []
        assert wire.replies.on_late is not None
        wire.replies.on_late(ACCEPTED)
        assert wire.notified == [m.Cancel("id", awaits_end=False)]

    asyncio.run(play())


def test_a_cancelled_stream_still_yields_what_there_is() -> None:
    async def play() -> None:
        wire = Wire(ACCEPTED, progress(1))
        events = wire.events()
        await anext(events)
        events.cancel()
        assert wire.notified == [m.Cancel("id")]
        wire.replies.waiting.append(tokens(0, "a"))
        wire.replies.more.set()
        assert isinstance(await anext(events), TokenEvent)
        await events.aclose()

    asyncio.run(play())


# ── both kinds ───────────────────────────────────────────────────────────────────────────────────

BLOCKING_ONLY = {"client", "is_own"}
"""The node for threads is there as ``node``."""
ITERATED = {"stream", "stream_chat", "stream_infill"}
OPENED = {"start", "attach"}


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_an_async_node_has_every_method_of_a_node() -> None:
    assert public(Node) - public(AsyncNode) == BLOCKING_ONLY
    assert public(AsyncNode) - public(Node) == {"node"}
    for name in public(Node) - BLOCKING_ONLY:
        blocking, other = getattr(Node, name), getattr(AsyncNode, name)
        if isinstance(blocking, property):
            assert isinstance(other, property), name
        elif name not in ITERATED | OPENED:
            assert inspect.iscoroutinefunction(other), name


@pytest.mark.parametrize("name", sorted(public(Node) - BLOCKING_ONLY))
def test_both_take_the_same_arguments(name: str) -> None:
    blocking, other = getattr(Node, name), getattr(AsyncNode, name)
    if not isinstance(blocking, property):
        ours, theirs = inspect.signature(blocking), inspect.signature(other)
        assert list(ours.parameters.values()) == list(theirs.parameters.values())
