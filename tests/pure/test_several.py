"""Several replies in one call: their requests, which waits for which, and what an error ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from actors import messages as m
from cache import tokens as token_bytes
from native.sampling_params import SamplingParams
from runtime import errors
from runtime.client.client import Client
from runtime.client.loop_transport import LoopTransport
from runtime.client.request_options import (
    MAX_PROMPTS,
    MAX_REPLIES,
    chat_request,
    prompt_request,
    several_of_chat,
    several_of_prompts,
)
from runtime.client.transport import BlockingTransport, finished
from supervision import Connection
from tests.support.waiting import eventually

pytestmark = pytest.mark.pure

TALK = [{"role": "user", "content": "Hi"}]


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


def test_each_reply_has_the_next_seed_and_is_the_same_request_otherwise() -> None:
    first, second = several_of_prompts("x", ["a", [1, 2]], 3, seed=(1 << 64) - 2, temperature=0.5)
    assert [one.request.sampling.seed for one in first] == [(1 << 64) - 2, (1 << 64) - 1, 0]
    assert first[0] == prompt_request("x", "a", seed=(1 << 64) - 2, temperature=0.5)
    assert [one.request.sampling.seed for one in second] == [(1 << 64) - 2, (1 << 64) - 1, 0]
    assert isinstance(second[2].request.prompt, m.TokenPrompt)
    ready = several_of_chat("x", TALK, 2, sampling=SamplingParams(temperature=1.0, seed=7))
    assert [one.request.sampling.seed for one in ready] == [7, 8]
    assert ready[0] == chat_request("x", TALK, temperature=1.0, seed=7)


def test_any_seed_is_drawn_once_for_the_replies_of_a_prompt() -> None:
    ((first, second),) = several_of_prompts("x", "a", 2, seed=-1)
    drawn = first.request.sampling.seed
    assert second.request.sampling.seed == (drawn + 1) % (1 << 64)


@pytest.mark.parametrize(
    ("prompts", "found"),
    [
        ("a", [b"a"]),
        (b"a", [b"a"]),
        ([1, 2], [token_bytes.pack([1, 2])]),
        (["a", "b"], [b"a", b"b"]),
        ([[1], "b"], [token_bytes.pack([1]), b"b"]),
        (("a",), [b"a"]),
    ],
)
def test_one_prompt_is_a_text_or_ids_and_several_are_a_list_of_them(
    prompts: Any, found: list[bytes]
) -> None:
    assert [one.prompt for (one,) in several_of_prompts("x", prompts, None)] == found


@pytest.mark.parametrize(
    ("prompts", "n", "options", "says"),
    [
        ([], 1, {}, "prompts"),
        (None, 1, {}, "prompts"),
        ({"a": 1}, 1, {}, "prompts"),
        (["a", ""], 1, {}, "the prompt is empty"),
        (["a", None], 1, {}, "the prompt"),
        ([1, "a"], 1, {}, "the prompt"),
        (["a"] * (MAX_PROMPTS + 1), 1, {}, "at most 2048"),
        ("a", 0, {}, "n is 0"),
        ("a", MAX_REPLIES + 1, {}, "n is 129"),
        ("a", True, {}, "n is True"),
        ("a", 2, {"session": "s"}, "a session has one reply at a time"),
        (["a", "b"], None, {"session": "s"}, "a session has one reply at a time"),
        ("a", 2, {"temperature": "hot"}, "temperature"),
    ],
)
def test_what_makes_no_sense_is_named(
    prompts: Any, n: Any, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        several_of_prompts("x", prompts, n, **options)
    assert says in str(caught.value)


def test_a_session_may_have_its_one_reply() -> None:
    ((one,),) = several_of_prompts("x", ["a"], 1, session="s")
    assert one.request.session == "s"


def test_one_reply_is_not_asked_for_several() -> None:
    with pytest.raises(errors.InvalidRequest, match="use complete_many or chat_many"):
        prompt_request("x", "a", n=2)


def test_only_a_whole_prompt_is_echoed() -> None:
    assert prompt_request("x", "a", echo=True).echo
    assert not prompt_request("x", "a").echo
    with pytest.raises(errors.InvalidRequest, match="apply_chat_template"):
        chat_request("x", TALK, echo=True)
    with pytest.raises(errors.InvalidRequest, match="with continues this is a part"):
        prompt_request("x", "a", echo=True, continues=True, session="s")
    with pytest.raises(errors.InvalidRequest, match="echo"):
        prompt_request("x", "a", echo="yes")


# ── which waits for which ────────────────────────────────────────────────────────────────────────


def completed(text: str) -> m.Completed:
    return m.Completed(
        ref="r",
        request_id="id",
        finish_reason=m.FinishReason.LENGTH,
        finish_key=None,
        stop_sequence=None,
        usage=m.Usage(1, 0, len(text)),
        cache=m.CacheReport(m.HitKind.COLD, "none", 0.0, None),
        timings=m.Timings(0.0, 0.0, 0.0, 0.0, 0.0),
    )


def said(text: str) -> m.TokensDelivered:
    return m.TokensDelivered("r", 0, token_bytes.pack(map(ord, text)), text)


class OneModel:
    """A connection to a model that reads the prompt for its first request only."""

    def __init__(self, *, fails: bool = False) -> None:
        self.seeds: list[int] = []
        self.before_first_token: list[int] = []
        self.cancelled: list[object] = []
        self._fails = fails

    def stream(self, target: str, message: m.Complete, **_: object) -> Iterator[object]:
        assert target == "inflight"
        seed = message.sampling.seed
        self.seeds.append(seed)
        yield m.Accepted("r", str(seed))
        if seed:
            yield said(str(seed))
            yield completed(str(seed))
            return
        yield m.PrefillProgress("r", 1, 2, 0)
        self.before_first_token = list(self.seeds)
        if self._fails:
            yield m.CompletionFailed("r", m.FailReason.PROMPT_TOO_LONG, "too long")
        yield said("0")
        eventually(lambda: len(self.seeds) == 4, what="the others begin while the first one runs")
        yield completed("0")

    def tell(self, target: str, message: object, **_: object) -> None:
        self.cancelled.append((target, message))


def test_the_others_begin_with_the_first_token_and_come_in_order() -> None:
    model = OneModel()
    done = Client(cast(Connection, model)).complete_many("x", "a", n=4, temperature=1.0)
    assert [one.text for one in done] == ["0", "1", "2", "3"]
    assert model.before_first_token == [0]
    assert sorted(model.seeds) == [0, 1, 2, 3]
    assert model.cancelled == []


def test_when_the_first_one_fails_the_others_are_not_sent() -> None:
    model = OneModel(fails=True)
    with pytest.raises(errors.PromptTooLong, match="too long"):
        Client(cast(Connection, model)).complete_many("x", "a", n=4)
    assert model.seeds == [0]


# ── works beside each other ──────────────────────────────────────────────────────────────────────


class Waiting:
    """Runs until it is cancelled."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self._over = threading.Event()

    async def run(self) -> str:
        self.has_begun.set()
        assert self._over.wait(30)
        return "cancelled"

    def cancel(self) -> None:
        self._over.set()


class Failing:
    def __init__(self, other: Waiting | None = None) -> None:
        self._other = other

    async def run(self) -> str:
        if self._other is not None:
            assert self._other.has_begun.wait(30)
        raise ValueError("broken")

    def cancel(self) -> None:
        """It is over."""


def test_an_error_ends_the_threads_of_the_others() -> None:
    transport = BlockingTransport(cast(Connection, None))
    waiting, late = Waiting(), Waiting()
    before = set(threading.enumerate())
    works = [waiting, Failing(waiting), late]
    with pytest.raises(ValueError, match="broken"):
        finished(transport.together(works, at_once=2))
    assert set(threading.enumerate()) <= before


def test_an_error_ends_the_tasks_of_the_others() -> None:
    transport = LoopTransport.__new__(LoopTransport)
    ended: list[str] = []

    class Task:
        def __init__(self, name: str) -> None:
            self.name = name

        async def run(self) -> str:
            try:
                if self.name == "broken":
                    raise ValueError(self.name)
                await asyncio.Event().wait()
            finally:
                ended.append(self.name)
            return self.name

        def cancel(self) -> None:
            raise AssertionError("a task is cancelled by its loop")

    async def play() -> None:
        with pytest.raises(ValueError, match="broken"):
            await transport.together([Task("a"), Task("broken"), Task("b")], at_once=2)

    asyncio.run(play())
    assert ended[0] == "broken"
    assert "a" in ended


def test_results_come_in_the_order_of_the_works_however_few_run_at_once() -> None:
    class Number:
        def __init__(self, number: int) -> None:
            self.number = number

        async def run(self) -> int:
            return self.number

        def cancel(self) -> None:
            """It never waits."""

    numbers = [Number(number) for number in range(9)]
    threads = BlockingTransport(cast(Connection, None))
    assert finished(threads.together(numbers, at_once=2)) == list(range(9))
    assert finished(threads.together(numbers[:1], at_once=2)) == [0]
    loop = LoopTransport.__new__(LoopTransport)
    assert asyncio.run(loop.together(numbers, at_once=2)) == list(range(9))
