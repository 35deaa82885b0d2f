"""Processes die or hang under asyncio requests: each gets its reply, or an error in time."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from runtime import AsyncNode, CompletionEvent, Node, ResumedEvent, TokenEvent, errors
from supervision import loop_endpoint
from tests.support.runtime_nodes import LeakCheck, kill, pid_of, started, status_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.fault

N_STREAMS = 6
N_TOKENS = 1500

Work = Callable[[AsyncNode], Awaitable[None]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("async")


@pytest.fixture(scope="module")
def node(folder: Path) -> Iterator[Node]:
    with LeakCheck() as leaks, started(folder) as node:
        node.load("stub", "stub", backend="stub", n_seq_max=32, n_ctx=65_536)
        leaks.watch(node)
        yield node
        leaks.watch(node)


@pytest.fixture
def run(folder: Path, node: Node) -> Callable[[Work], None]:
    """Do something on a loop with the node."""

    def play(work: Work) -> None:
        async def whole() -> None:
            async with AsyncNode.attach(node.port, runtime_dir=folder / "run") as other:
                await asyncio.wait_for(work(other), 100)

        asyncio.run(whole())

    return play


async def read(node: AsyncNode, number: int, begun: asyncio.Barrier) -> tuple[str, int]:
    """The text of a long stream that was begun when the others were, and its pauses."""
    text, n_pauses = "", 0
    async with node.stream(
        "stub", f"story {number}", max_tokens=N_TOKENS, resumed_events=True
    ) as events:
        is_first = True
        async for event in events:
            match event:
                case TokenEvent():
                    text += event.text
                    if is_first:
                        is_first = False
                        await begun.wait()
                case ResumedEvent():
                    n_pauses += 1
                case CompletionEvent(completion):
                    assert completion.text == text
                    assert len(completion.tokens) == N_TOKENS
    return text, n_pauses


@pytest.mark.parametrize("victim", ["inflight", "model:stub", "registry", "root"])
def test_streams_on_a_loop_outlive_a_process(
    node: Node, run: Callable[[Work], None], victim: str
) -> None:
    expected = [
        node.complete("stub", f"story {n}", max_tokens=N_TOKENS).text for n in range(N_STREAMS)
    ]
    pid = node.connection.record.root_pid if victim == "root" else pid_of(node, victim)

    async def work(other: AsyncNode) -> None:
        begun = asyncio.Barrier(N_STREAMS + 1)
        tasks = [asyncio.create_task(read(other, n, begun)) for n in range(N_STREAMS)]
        await begun.wait()
        kill(pid)
        done = await asyncio.gather(*tasks)
        assert [text for text, _ in done] == expected
        if victim in ("inflight", "model:stub"):
            assert any(n_pauses for _, n_pauses in done)

    run(work)
    eventually(lambda: not node.queue_depth(), within_s=30, what="nothing is in flight")


def test_a_process_that_hangs_ends_a_request_at_its_deadline(
    node: Node, run: Callable[[Work], None]
) -> None:
    pid = pid_of(node, "inflight")

    async def work(other: AsyncNode) -> None:
        await other.complete("stub", "x", max_tokens=1)
        began = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        try:
            calls = [
                other.complete("stub", "x", max_tokens=5, timeout_s=0.5),
                other.draft_tokens("stub", [65, 66], 3, timeout_s=0.5),
                other.verify("stub", [65, 66], [67], timeout_s=0.5),
            ]
            found = await asyncio.gather(*calls, return_exceptions=True)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert [type(one) for one in found] == [errors.DeadlineExceeded] * 3
        assert time.monotonic() - began < 4
        assert len((await other.complete("stub", "x", max_tokens=5)).tokens) == 5

    run(work)


def test_a_request_that_is_left_before_it_is_accepted_is_cancelled(
    node: Node, run: Callable[[Work], None]
) -> None:
    pid = pid_of(node, "inflight")

    async def work(other: AsyncNode) -> None:
        await other.complete("stub", "x", max_tokens=1)
        os.kill(pid, signal.SIGSTOP)
        try:
            task = asyncio.create_task(other.complete("stub", "y", max_tokens=60_000))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        finally:
            os.kill(pid, signal.SIGCONT)
        began = time.monotonic()
        while await other.queue_depth():
            assert time.monotonic() - began < 20, "it still runs"
            await asyncio.sleep(0.01)

    run(work)


def test_a_stream_that_is_never_read_is_cancelled_and_loses_nothing(
    run: Callable[[Work], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_endpoint, "MAX_UNREAD", 20)

    async def work(other: AsyncNode) -> None:
        async with other.stream("stub", "z", max_tokens=60_000) as events:
            tokens: list[int] = []
            while not tokens:
                event = await anext(events)
                tokens += event.tokens if isinstance(event, TokenEvent) else ()
            began = time.monotonic()
            while await other.queue_depth():
                assert time.monotonic() - began < 20, "it still runs"
                await asyncio.sleep(0.01)
            async for event in events:
                if isinstance(event, TokenEvent):
                    assert event.index == len(tokens)
                    tokens += event.tokens
            assert isinstance(event, CompletionEvent)
            assert event.completion.finish_reason == "cancelled"
            assert list(event.completion.tokens) == tokens

    run(work)


def test_one_node_serves_one_loop_after_another(node: Node, folder: Path) -> None:
    async def opened() -> AsyncNode:
        other = await AsyncNode.attach(node.port, runtime_dir=folder / "run")
        await other.tokenize("stub", "x")
        return other

    async def used(other: AsyncNode) -> list[int]:
        return await other.tokenize("stub", "abc")

    other = asyncio.run(opened())
    assert asyncio.run(used(other)) == node.tokenize("stub", "abc")
    asyncio.run(other.close())


@pytest.mark.parametrize("n_before", range(4))
def test_one_node_serves_the_loops_of_several_threads(
    node: Node, folder: Path, n_before: int
) -> None:
    """And closing it on one of them ends what waits on the others, also what is being sent."""
    raised: list[BaseException] = []

    async def work() -> None:
        other = await AsyncNode.attach(node.port, runtime_dir=folder / "run")

        def elsewhere() -> None:
            try:
                asyncio.run(ask())
            except errors.LlamaActorsError as error:
                raised.append(error)

        async def ask() -> None:
            assert len((await other.complete("stub", "x", max_tokens=3)).tokens) == 3
            await other.complete("stub", "long", max_tokens=60_000)

        threads = [threading.Thread(target=elsewhere) for _ in range(3)]
        for thread in threads:
            thread.start()
        while await other.queue_depth() < n_before:
            await asyncio.sleep(0.005)
        await other.close()
        for thread in threads:
            await asyncio.to_thread(thread.join, 20)
            assert not thread.is_alive()

    asyncio.run(work())
    assert [type(one) for one in raised] == [errors.NodeNotRunning] * 3
    eventually(lambda: not node.queue_depth(), within_s=30, what="nothing is in flight")


def test_what_waits_when_the_node_is_stopped_raises(tmp_path: Path) -> None:
    async def work() -> None:
        options = {"runtime_dir": tmp_path / "run", "log_file": tmp_path / "log"}
        node = await AsyncNode.start(cache_ram=0, cache_disk=0, **options)
        try:
            await node.load("stub", "stub", backend="stub", n_ctx=65_536)
            task = asyncio.create_task(node.complete("stub", "x", max_tokens=60_000))
            while not await node.queue_depth():
                await asyncio.sleep(0.005)
        finally:
            await node.stop()
        with pytest.raises(errors.LlamaActorsError):
            await asyncio.wait_for(task, 10)

    asyncio.run(work())


def test_the_life_signs_of_inflight_count_for_every_request_of_a_loop(
    node: Node, run: Callable[[Work], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends one to each caller, which names only one of the caller's requests."""
    monkeypatch.setattr("runtime.client.reply.LOST_TIMEOUT_S", 4.0)
    pid = pid_of(node, "model:stub")

    async def work(other: AsyncNode) -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            calls = [
                asyncio.create_task(other.complete("stub", f"quiet {n}", max_tokens=2))
                for n in range(3)
            ]
            await asyncio.sleep(6.0)
            assert not any(one.done() for one in calls)
        finally:
            os.kill(pid, signal.SIGCONT)
        done = await asyncio.gather(*calls)
        assert all(len(one.tokens) == 2 for one in done)

    run(work)
    assert status_of(node, "inflight")["in_flight"] == 0
