"""The clock of a reply that is read as it comes: what it makes of a late, or a silent, node."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from actors.messages.completion import CacheReport, HitKind, Timings, Usage
from runtime import errors
from runtime.client.results import (
    Completion,
    CompletionEvent,
    Event,
    PrefillEvent,
    SpanEvent,
    TokenEvent,
    ToolCallEvent,
)
from runtime.gateway.time_limit import NODE_S, LimitedStream, TimeLimit, time_limit_of
from runtime.gateway.wire.wanted import Wanted

pytestmark = pytest.mark.pure

PROMPT = PrefillEvent(10, 10, 4)
TOKEN = TokenEvent(0, (1, 2), "Once")


def completion(reason: str, **more: Any) -> CompletionEvent:
    return CompletionEvent(
        Completion(
            text="Once", tokens=(1, 2), finish_reason=reason, finish_key=None, stop_sequence=None,
            usage=Usage(10, 4, 2), cache=CacheReport(HitKind.PARTIAL, "ram", 1.5, None),
            timings=Timings(0.5, 20.0, 12.0, 40.0, 100.0), **more,
        )
    )  # fmt: skip


class Node:
    """Stands for ``AsyncStream``: yields events, then waits for a cancel, or fails."""

    def __init__(self, events: Iterable[Event], failure: Exception | None = None) -> None:
        self.events = list(events)
        self.failure = failure
        self.known: list[Event] = []
        self.is_left = False
        self.cancelled = asyncio.Event()

    def cancel(self) -> None:
        self.cancelled.set()

    def continue_after(self, events: Iterable[Event]) -> None:
        self.known = list(events)

    def __aiter__(self) -> Node:
        return self

    async def __anext__(self) -> Event:
        if self.events:
            return self.events.pop(0)
        if self.failure is not None:
            raise self.failure
        await self.cancelled.wait()
        return completion("cancelled", note="a note")

    async def __aexit__(self, *_: object) -> None:
        self.is_left = True


def read(node: Node, limit: TimeLimit, known: Iterable[Event] = ()) -> list[Event]:
    """All events of a limited stream."""

    async def all_of() -> list[Event]:
        stream = LimitedStream(node, limit)  # type: ignore[arg-type]
        if known:
            stream.continue_after(known)
        async with stream:
            return [event async for event in stream]

    return asyncio.run(all_of())


def last(events: list[Event]) -> Completion:
    assert isinstance(events[-1], CompletionEvent)
    return events[-1].completion


def test_a_reply_that_was_shown_ends_by_its_limit() -> None:
    node = Node([PROMPT, TOKEN])
    done = last(read(node, TimeLimit(0.01)))
    assert (done.finish_reason, done.text, done.usage) == ("length", "Once", Usage(10, 4, 2))
    assert done.note == "a note; the reply was ended by timeout_s = 0.01"
    assert node.is_left


def test_nothing_shown_is_a_failure() -> None:
    node = Node([PROMPT])
    with pytest.raises(errors.DeadlineExceeded, match="nothing was generated within timeout_s"):
        read(node, TimeLimit(0.01))
    assert node.is_left
    assert not node.cancelled.is_set(), "it is left, which cancels it"


def test_what_is_over_of_the_time_stays_over() -> None:
    limit = TimeLimit(60.0, gone_s=59.99)
    assert limit.of_node == pytest.approx(0.01 + NODE_S)
    done = last(read(Node([PROMPT, TOKEN]), limit))
    assert (done.finish_reason, done.note) == (
        "length", "a note; the reply was ended by timeout_s = 60"
    )  # fmt: skip
    assert TimeLimit(1.0, gone_s=9.0).left_s == 0.0


def test_another_reply_of_the_request_was_shown() -> None:
    limit = TimeLimit(0.01)
    limit.has_shown = True
    assert last(read(Node([PROMPT]), limit)).finish_reason == "length"


def test_what_was_shown_by_a_process_that_is_gone_counts() -> None:
    node = Node([])
    done = last(read(node, TimeLimit(0.01), [PROMPT, TOKEN]))
    assert done.finish_reason == "length"
    assert node.known == [PROMPT, TOKEN]


def test_a_node_that_does_not_answer_leaves_what_has_come() -> None:
    call = ToolCallEvent(0, "call_1", "f", '{"a":')
    thought = SpanEvent("thinking", b"<t>hm</t>", b"hm", (5,), True, b"s")
    parts = [PROMPT, TokenEvent(0, (5,), "hm", kind="thinking"), thought, TokenEvent(1, (6,), "So")]
    node = Node([*parts, call], errors.DeadlineExceeded("late"))
    done = last(read(node, TimeLimit(60.0)))
    assert (done.text, done.thinking, done.tokens) == ("So", "hm", (5, 6))
    assert done.calls == (call,)
    assert done.finish_reason == "length"
    assert done.usage == Usage(10, 4, 2)
    with pytest.raises(errors.DeadlineExceeded, match="late"):
        read(Node([PROMPT], errors.DeadlineExceeded("late")), TimeLimit(60.0))


@pytest.mark.parametrize("reason", ["stop", "length", "cancelled"])
def test_an_end_in_time_stays(reason: str) -> None:
    assert last(read(Node([TOKEN, completion(reason)]), TimeLimit(60.0))).finish_reason == reason


def test_which_requests_have_a_clock_here() -> None:
    def limit(seconds: object, *, is_shown: bool = True) -> TimeLimit | None:
        options = {} if seconds is None else {"timeout_s": seconds}
        wanted = Wanted(model="", kind="chat", inputs=([],), options=options)
        return time_limit_of(wanted, is_shown=is_shown)

    found = limit(2)
    assert found is not None
    assert (found.seconds, found.of_node) == (2.0, 2.0 + NODE_S)
    for seconds in (None, 0, -1, "soon", 1e9, float("nan"), float("inf")):
        assert limit(seconds) is None
    assert limit(2, is_shown=False) is None
