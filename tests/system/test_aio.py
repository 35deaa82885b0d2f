"""Asyncio code on a real node: nothing blocks the loop, and what is left stops."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from runtime import (
    AsyncNode,
    Completion,
    CompletionEvent,
    Event,
    PrefillEvent,
    TokenEvent,
    errors,
)
from tests.support.runtime_nodes import LeakCheck, one_thread, started

pytestmark = pytest.mark.system

STORY = "Once upon a time there was a small fox"
LONG = list(range(5, 205)) * 30
"""The slow model reads it for seconds."""

Work = Callable[[AsyncNode], Awaitable[None]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("aio")


@pytest.fixture(scope="module")
def port(folder: Path, slow_gguf: Path) -> Iterator[int]:
    with LeakCheck() as leaks, started(folder) as node:
        node.load("demo", n_threads=1)
        node.client.load("slow", one_thread(slow_gguf, n_ctx=8192, n_seq_max=1))
        leaks.watch(node)
        yield node.port
        leaks.watch(node)


@pytest.fixture
def run(folder: Path, port: int) -> Callable[[Work], None]:
    """Do something on a loop with the node; no thread of it may be left afterwards."""

    def play(work: Work) -> None:
        async def whole() -> None:
            async with AsyncNode.attach(port, runtime_dir=folder / "run") as node:
                await asyncio.wait_for(work(node), 60)

        before = set(threading.enumerate())
        asyncio.run(whole())
        assert set(threading.enumerate()) <= before

    return play


async def idle(node: AsyncNode, model: str, within_s: float = 30.0) -> float:
    """Seconds until the model has nothing to do."""
    began = time.monotonic()
    while await node.queue_depth(model):
        assert time.monotonic() - began < within_s, "it still works"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


async def said(node: AsyncNode) -> int:
    """Tokens that the slow model ever generated."""
    return int((await node.model_info("slow")).details["tokens_generated"])


async def pulse(gaps: list[float]) -> None:
    """Note the longest times the loop was away."""
    last = time.monotonic()
    while True:
        await asyncio.sleep(0.002)
        now = time.monotonic()
        gaps.append(now - last - 0.002)
        last = now


def test_many_completions_at_once_are_each_the_right_one(run: Callable[[Work], None]) -> None:
    async def work(node: AsyncNode) -> None:
        prompts = [f"{STORY} and {n} owls" for n in range(80)]
        gaps: list[float] = []
        beat = asyncio.create_task(pulse(gaps))
        done = await asyncio.gather(*(node.complete("demo", p, max_tokens=4) for p in prompts))
        beat.cancel()
        assert all(len(one.tokens) == 4 for one in done)
        for index in (0, 7, len(prompts) - 1):
            assert (await node.complete("demo", prompts[index], max_tokens=4)).text == done[
                index
            ].text
        assert len(gaps) >= 2  # a loop that completions block does not tick before the last one

    run(work)


def test_several_replies_come_in_order_and_one_error_ends_them(
    run: Callable[[Work], None],
) -> None:
    async def work(node: AsyncNode) -> None:
        hot = {"max_tokens": 5, "temperature": 1.0}
        prompts = [STORY, f"{STORY} again"]
        done = await node.complete_many("demo", prompts, n=3, seed=2, **hot)
        alone = [
            await node.complete("demo", prompt, seed=2 + i, **hot)
            for prompt in prompts
            for i in range(3)
        ]
        assert [one.tokens for one in done] == [one.tokens for one in alone]
        n_prompt = done[0].usage.prompt_tokens
        assert all(one.usage.cached_tokens >= n_prompt - 1 for one in done[1:3])
        talk = [{"role": "user", "content": "Tell me a story about a fox."}]
        answers = await node.chat_many("demo", talk, n=2, seed=5, **hot)
        first = await node.chat("demo", talk, seed=5, **hot)
        assert answers[0].text == first.text
        with pytest.raises(errors.PromptTooLong):
            await node.complete_many("demo", [STORY, "fox " * 9000], n=2, max_tokens=5)
        task = asyncio.create_task(node.complete_many("slow", [LONG, STORY], n=2))
        while not await node.queue_depth("slow"):
            await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await idle(node, "slow")

    run(work)


def test_a_stream_gives_the_events_of_a_node(run: Callable[[Work], None]) -> None:
    async def work(node: AsyncNode) -> None:
        whole = await node.complete("demo", STORY, max_tokens=12)
        text, ends = "", list[Completion]()
        async with node.stream("demo", STORY, max_tokens=12) as stream:
            async for event in stream:
                assert stream.request_id
                match event:
                    case TokenEvent():
                        text += event.text
                    case CompletionEvent(completion):
                        ends.append(completion)
        assert text == whole.text == ends[0].text
        assert len(ends) == 1
        talk = [{"role": "user", "content": "Tell me a story about a fox."}]
        said = [e async for e in node.stream_chat("demo", talk, max_tokens=5)]
        assert isinstance(said[-1], CompletionEvent)
        assert said[-1].completion.text == (await node.chat("demo", talk, max_tokens=5)).text

    run(work)


@pytest.mark.parametrize("how", ["cancel the task", "break", "cancel"])
def test_what_is_left_in_mid_prefill_stops(run: Callable[[Work], None], how: str) -> None:
    async def work(node: AsyncNode) -> None:
        reading = asyncio.Event()
        ends: list[Completion] = []

        async def read() -> None:
            stream = node.stream("slow", LONG, max_tokens=50)
            async for event in stream:
                if isinstance(event, CompletionEvent):
                    ends.append(event.completion)
                elif isinstance(event, PrefillEvent) and not reading.is_set():
                    reading.set()
                    if how == "break":
                        break
                    if how == "cancel":
                        stream.cancel()

        before = await said(node)
        task = asyncio.create_task(read())
        while not reading.is_set():
            assert not task.done(), task
            await asyncio.sleep(0.002)
        if how == "cancel the task":
            began = time.monotonic()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert time.monotonic() - began < 2.0  # it does not wait for the prompt to be read
        else:
            await task
        assert await idle(node, "slow") < 20.0  # 12 to 36 ms on a machine with nothing else to do
        assert await said(node) == before  # it did not get to the end of its prompt
        assert [end.finish_reason for end in ends] == (["cancelled"] if how == "cancel" else [])

    run(work)


def test_what_still_runs_when_the_node_is_closed_stops(run: Callable[[Work], None]) -> None:
    left: list[asyncio.Task[Completion]] = []

    async def work(node: AsyncNode) -> None:
        left.append(asyncio.create_task(node.complete("slow", LONG[1:], max_tokens=50)))
        while not await node.queue_depth("slow"):
            await asyncio.sleep(0.005)

    run(work)
    assert left[0].done()

    async def look(node: AsyncNode) -> None:
        await idle(node, "slow")

    run(look)


def test_questions_are_coroutines_with_the_answers_of_a_node(run: Callable[[Work], None]) -> None:
    async def work(node: AsyncNode) -> None:
        ids = await node.tokenize("demo", STORY)
        assert await node.detokenize("demo", ids) == STORY
        found = await node.embed("demo", ["a fox", "an owl"])
        assert found.rows == (1, 1)
        read = await node.prefill_only("demo", STORY, session="aio")
        assert read.finish_reason == "prefilled"
        more = await node.continue_session("demo", "aio", " named Pip", max_tokens=3)
        assert len(more.tokens) == 3
        assert await node.end_session("demo", "aio")
        assert len(await node.draft_tokens("demo", ids, 3)) == 3
        assert (await node.apply_chat_template("demo", [{"role": "user", "content": "x"}])).tokens
        assert {one.id for one in await node.models()} == {"demo", "slow"}
        await node.load("second", "second", backend="stub")
        await node.unload("second", drain_s=1.0)
        with pytest.raises(errors.ModelUnknown):
            await node.complete("nobody", "x")
        with pytest.raises(errors.InvalidRequest, match="did you mean"):
            node.stream("demo", "x", temprature=1)

    run(work)


def test_a_thousand_streams_are_open_at_once_on_one_thread(
    tmp_path: Path,
) -> None:
    """Four models run 250 requests each; every stream is held open until all have begun."""
    n_models, n_streams = 4, 1000

    async def play(node: AsyncNode) -> None:
        begun = asyncio.Barrier(n_streams + 1)
        read = asyncio.Event()

        async def one(number: int) -> int:
            n_tokens = 0
            async with node.stream(
                f"stub{number % n_models}", f"story {number}", max_tokens=3
            ) as events:
                n_tokens += count(await anext(events))
                await begun.wait()
                await read.wait()
                async for event in events:
                    n_tokens += count(event)
            return n_tokens

        def count(event: Event) -> int:
            return len(event.tokens) if isinstance(event, TokenEvent) else 0

        before = threading.active_count()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number)) for number in range(n_streams)]
            await begun.wait()
            assert threading.active_count() == before
            read.set()
        assert [task.result() for task in tasks] == [3] * n_streams

    with LeakCheck() as leaks, started(tmp_path) as node:
        for index in range(n_models):
            node.load(f"stub{index}", "stub", backend="stub", n_seq_max=250, n_ctx=65_536)
        leaks.watch(node)

        async def whole() -> None:
            async with AsyncNode.attach(node.port, runtime_dir=tmp_path / "run") as other:
                await asyncio.wait_for(play(other), 120)

        asyncio.run(whole())


def test_a_node_of_its_own_is_started_and_stopped(tmp_path: Path) -> None:
    async def work() -> None:
        options = {"runtime_dir": tmp_path / "run", "log_file": tmp_path / "log"}
        async with AsyncNode.start(cache_ram=0, cache_disk=0, **options) as node:
            assert node.port
            assert (await node.tree()).pid == node.launcher_pid
        with pytest.raises(errors.NodeNotRunning):
            await node.models()
        with pytest.raises(errors.NodeNotRunning):
            await AsyncNode.attach(node.port, runtime_dir=tmp_path / "run")

    asyncio.run(work())
