"""An engine whose requests want more cells than there are: they step aside, and nothing is lost.

The stub counts cells as llama.cpp does, and its next token depends on all that a sequence holds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import messages as m
from actors.engine.commands import Asked
from cache import tokens as token_bytes
from cache.policy import SAVE_ALL, LivePolicy
from native.params import ModelParams, SamplingParams
from native.stub import UNCUTTABLE, StubBackend
from tests.support.cached_engine import CALLER, Cache, CachedEngine, checked_cache
from tests.support.engine_runs import EngineRun, Outcome, Script
from tests.support.waiting import eventually

pytestmark = pytest.mark.pure

N_CTX = 512
APART = LivePolicy(max_idle=0)
OnEvent = Callable[[CachedEngine, object], None]


def prompt(number: int, n_tokens: int = 60) -> list[int]:
    return [32 + (number * 31 + i * 7 + i * i) % 90 for i in range(n_tokens)]


def asked(name: str, number: int, *, n_prompt: int = 60, **fields: Any) -> m.Run:
    fields.setdefault("sampling", SamplingParams(temperature=1.0, seed=number))
    text = m.TokenPrompt(token_bytes.pack(prompt(number, n_prompt)))
    return m.Run(name, CALLER, m.Complete(name, "m", text, **fields))


def stub(name: str = "stub", n_ctx: int = N_CTX, n_seq_max: int = 8) -> StubBackend:
    return StubBackend.load(name, ModelParams(n_ctx=n_ctx, n_seq_max=n_seq_max))


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with checked_cache(tmp_path) as cache:
        yield cache


def alone(runs: list[m.Run], name: str = "stub", n_ctx: int = N_CTX) -> dict[str, list[int]]:
    """What each of them generates when it has the context to itself."""

    def script() -> Script:
        for one in runs:
            yield [one]

    outcomes = EngineRun(stub(name, n_ctx), policy=APART).play(script())
    return {name: outcome.tokens for name, outcome in outcomes.items()}


def together(
    cache: Cache | None, runs: list[m.Run], name: str = "stub", n_ctx: int = N_CTX, **options: Any
) -> tuple[dict[str, list[int]], dict[str, m.Completed], dict[str, float]]:
    """Tokens, results and counts of requests that come at once."""
    if cache is None:

        def script() -> Script:
            yield runs

        engine = EngineRun(stub(name, n_ctx), policy=APART)
        outcomes: dict[str, Outcome] = engine.play(script())
        done = {ref: one.done for ref, one in outcomes.items() if one.done is not None}
        tokens = {ref: one.tokens for ref, one in outcomes.items()}
        return tokens, done, engine.engine.counts()
    backend = stub(name, n_ctx)
    with CachedEngine(cache, save=SAVE_ALL, live=APART, backend=backend, **options) as engine:
        for one in runs:
            engine.commands.put(one)
        ends = engine.ends(len(runs))
        eventually(  # a request is forgotten just after its end was sent
            lambda: not engine.engine.counts()["running"], within_s=10, what="all are forgotten"
        )
        counts = engine.engine.counts()
    failed = [one for one in ends.values() if isinstance(one, m.CompletionFailed)]
    assert not failed
    done = {ref: one for ref, one in ends.items() if isinstance(one, m.Completed)}
    return engine.said, done, counts


@pytest.mark.parametrize("name", ["stub", UNCUTTABLE])
@pytest.mark.parametrize("has_cache", [True, False])
def test_replies_that_stepped_aside_are_those_of_requests_alone(
    cache: Cache, name: str, has_cache: bool
) -> None:
    runs = [asked(f"{n}", n, max_tokens=100 + 20 * n) for n in range(5)]
    told, done, counts = together(cache if has_cache else None, runs, name)
    assert told == alone(runs, name)
    assert counts["steps_aside"]
    assert counts["running"] == counts["waiting"] == counts["aside"] == 0
    aside = [one.timings.aside_ms for one in done.values()]
    assert not aside[0]
    assert any(aside)
    assert {one.finish_reason for one in done.values()} == {m.FinishReason.LENGTH}
    assert {one.limit for one in done.values()} == {m.Limit.MAX_TOKENS}


def test_what_stepped_aside_is_restored_and_not_computed_again(cache: Cache) -> None:
    runs = [asked(f"{n}", n, max_tokens=300) for n in range(4)]
    rows = 0

    def count(engine: CachedEngine) -> None:
        decode = engine.backend.decode

        def counted(batch: Any) -> None:
            nonlocal rows
            decode(batch)
            rows += len(batch)

        engine.backend.decode = counted  # type: ignore[method-assign]

    with CachedEngine(cache, save=SAVE_ALL, live=APART, backend=stub()) as engine:
        count(engine)
        for one in runs:
            engine.commands.put(one)
        ends = engine.ends(4).values()
        assert engine.engine.counts()["steps_aside"] >= 2
    done = [one for one in ends if isinstance(one, m.Completed)]
    # The last token of a reply that has as many as it may have is not computed.
    n_last = sum(one.finish_reason is m.FinishReason.LENGTH for one in done)
    assert rows == sum(60 + one.usage.completion_tokens for one in done) - n_last
    assert {one.usage.cached_tokens for one in done} == {0}
    assert {one.cache.hit for one in done} == {m.HitKind.COLD}


def test_a_reply_without_max_tokens_ends_where_the_context_does(cache: Cache) -> None:
    runs = [asked("all", 1, max_tokens=None), asked("big", 2, max_tokens=32_000)]
    told, done, _ = together(cache, [*runs, asked("few", 3, max_tokens=20)])
    assert {ref: len(tokens) for ref, tokens in told.items()} == {
        "all": N_CTX - 60,
        "big": N_CTX - 60,
        "few": 20,
    }
    assert {one.finish_reason for one in done.values()} == {m.FinishReason.LENGTH}
    assert done["all"].limit is done["big"].limit is m.Limit.CONTEXT
    assert done["few"].limit is m.Limit.MAX_TOKENS


def test_sixteen_requests_share_what_is_too_small_for_two(cache: Cache) -> None:
    runs = [asked(f"{n}", n, max_tokens=32_000) for n in range(16)]
    told, _, _ = together(cache, runs, n_ctx=256)
    assert told == alone(runs, n_ctx=256)
    assert max(map(len, told.values())) == 256 - 60


def test_followers_continue_where_their_leader_stepped_aside(cache: Cache) -> None:
    """The prompts are equal: one is read, the others take it over."""
    first = asked("0", 1, n_prompt=150, max_tokens=250)
    runs = [first] + [
        m.Run(f"{n}", CALLER, m.Complete(f"{n}", "m", first.request.prompt, max_tokens=250,
              sampling=SamplingParams(temperature=1.0, seed=n)))
        for n in range(1, 4)
    ]  # fmt: skip
    told, _, counts = together(cache, runs)
    assert told == alone(runs)
    assert counts["steps_aside"]


def test_guesses_grammars_and_sessions_are_as_they_were_when_a_request_comes_back(
    cache: Cache,
) -> None:
    greedy = SamplingParams(temperature=0.0)
    runs = [
        asked("guesses", 1, max_tokens=250, speculation=m.Speculation.NGRAM, sampling=greedy),
        asked("mirostat", 2, max_tokens=250, sampling=SamplingParams(mirostat=2, seed=3)),
        asked("penalties", 3, max_tokens=250, session="s",
              sampling=SamplingParams(temperature=1.0, seed=4, repetition_penalty=1.3)),
        asked("read", 4, n_prompt=300, max_tokens=0),
        asked("late", 5, max_tokens=250, speculation=m.Speculation.NGRAM),
    ]  # fmt: skip
    told, done, counts = together(cache, runs)
    assert told == {ref: tokens for ref, tokens in alone(runs).items() if tokens}
    assert done["read"].finish_reason is m.FinishReason.PREFILLED
    assert counts["steps_aside"]


def test_one_too_long_for_the_context_is_refused_at_once(cache: Cache) -> None:
    with CachedEngine(cache, save=SAVE_ALL, backend=stub()) as engine:
        engine.commands.put(asked("long", 1, n_prompt=N_CTX, max_tokens=None))
        failed = engine.ends(1)["long"]
    assert isinstance(failed, m.CompletionFailed)
    assert failed.reason is m.FailReason.PROMPT_TOO_LONG


# ── ends while it is aside ───────────────────────────────────────────────────────────────────────


def when_aside(name: str, then: Callable[[CachedEngine], None]) -> OnEvent:
    """Do something once the request of this name waits without a sequence."""
    is_done = False

    def on_event(engine: CachedEngine, message: object) -> None:
        nonlocal is_done
        if is_done or not isinstance(message, m.TokensDelivered):
            return
        if engine.engine.counts()["aside"] and message.ref != name:
            is_done = True
            then(engine)

    return on_event


def test_a_request_that_is_aside_can_be_cancelled_and_keeps_its_tokens(cache: Cache) -> None:
    runs = [asked("first", 1, max_tokens=400), asked("second", 2, max_tokens=400)]
    cancel = when_aside("second", lambda engine: engine.commands.put(m.CancelRun("second")))
    told, done, counts = together(cache, runs, on_event=cancel)
    assert done["second"].finish_reason is m.FinishReason.CANCELLED
    assert done["second"].usage.completion_tokens == len(told["second"]) > 0
    assert done["second"].timings.aside_ms > 0
    expected = alone(runs)
    assert told["first"] == expected["first"]
    assert told["second"] == expected["second"][: len(told["second"])]
    assert counts["steps_aside"] == 1


def test_the_deadline_of_a_request_holds_while_it_is_aside(cache: Cache) -> None:
    slow = stub()

    def slower(engine: CachedEngine) -> None:
        slow.seconds_per_token = 0.01

    with CachedEngine(
        cache, save=SAVE_ALL, live=APART, backend=slow, on_event=when_aside("second", slower)
    ) as engine:
        engine.commands.put(asked("first", 1, max_tokens=400))
        engine.commands.put(asked("second", 2, max_tokens=400, timeout_s=1.0))
        ends = engine.ends(2)
    assert isinstance(ends["first"], m.Completed)
    second = ends["second"]
    assert isinstance(second, m.CompletionFailed)
    assert second.reason is m.FailReason.DEADLINE


def test_a_cache_that_ends_meanwhile_costs_no_reply(cache: Cache) -> None:
    runs = [asked(f"{n}", n, max_tokens=250) for n in range(4)]
    told, _, counts = together(cache, runs, on_event=when_aside("3", cache.die))
    assert told == alone(runs)
    assert counts["steps_aside"]


def test_adapters_change_only_when_requests_that_are_aside_have_ended(cache: Cache) -> None:
    """And those may start again meanwhile, unlike new ones: else neither would ever happen."""
    order: list[str] = []
    change = Asked(m.LoadAdapter("change", "/nowhere"), CALLER)

    def ask(engine: CachedEngine) -> None:
        engine.commands.put(change)
        engine.commands.put(asked("new", 7, max_tokens=4))

    begin = when_aside("second", ask)

    def on_event(engine: CachedEngine, message: object) -> None:
        begin(engine, message)
        if isinstance(message, m.Completed | m.AdapterNotChanged):
            order.append(message.ref)

    runs = [asked("first", 1, max_tokens=300), asked("second", 2, max_tokens=300)]
    with CachedEngine(
        cache, save=SAVE_ALL, live=APART, backend=stub(), on_event=on_event
    ) as engine:
        for one in runs:
            engine.commands.put(one)
        engine.ends(3)
    assert order == ["first", "second", "change", "new"]
    assert engine.said["second"] == alone(runs)["second"]


# ── classes ──────────────────────────────────────────────────────────────────────────────────────


def test_background_steps_aside_for_an_interactive_request(cache: Cache) -> None:
    """Four long replies fill the context; who comes then has its first token before they go on."""
    slow = [asked(f"{n}", n, max_tokens=200, priority=m.Priority.BACKGROUND) for n in range(4)]
    quick = asked("quick", 9, n_prompt=300, max_tokens=8)
    seen: list[tuple[str, int]] = []
    is_asked: list[bool] = []

    def on_event(engine: CachedEngine, message: object) -> None:
        if not isinstance(message, m.TokensDelivered):
            return
        seen.append((message.ref, message.index))
        if not is_asked and message.ref == "0" and message.index >= 30:
            is_asked.append(True)
            seen.clear()
            engine.commands.put(quick)

    with CachedEngine(
        cache, save=SAVE_ALL, live=APART, backend=stub(), on_event=on_event
    ) as engine:
        for one in slow:
            engine.commands.put(one)
        engine.ends(5)
        told, counts = engine.said, engine.engine.counts()
    first = next(at for at, (ref, _) in enumerate(seen) if ref == "quick")
    assert first <= 12, "a step may have been under way, and its tokens held back"
    assert told == alone([*slow, quick])
    assert counts["steps_aside"]


def test_a_step_of_background_alone_is_given_up_for_an_interactive_request(cache: Cache) -> None:
    slow = [asked(f"{n}", n, max_tokens=60, priority=m.Priority.BACKGROUND) for n in range(2)]
    quick = asked("quick", 9, n_prompt=60, max_tokens=8)
    backend = stub()
    decode = backend.decode
    n_of_both = 0

    def slowly(batch: Any) -> None:
        nonlocal n_of_both
        n_of_both += len(batch) == 2
        if len(batch) == 2 and n_of_both == 5:
            threading.Event().wait(0.5)  # such a step takes so long
        elif len(batch) == 2 and n_of_both == 6:
            engine.commands.put(quick)
            engine.engine.give_way()
        decode(batch)

    backend.decode = slowly  # type: ignore[method-assign]
    with CachedEngine(cache, save=SAVE_ALL, live=APART, backend=backend) as engine:
        for one in slow:
            engine.commands.put(one)
        engine.ends(3)
        told, counts = engine.said, engine.engine.counts()
    assert counts["steps_given_up"] == 1
    assert told == alone([*slow, quick])


def test_background_keeps_its_cells_where_there_is_room(cache: Cache) -> None:
    slow = [asked(f"{n}", n, max_tokens=60, priority=m.Priority.BACKGROUND) for n in range(2)]
    quick = asked("quick", 9, n_prompt=100, max_tokens=8)
    told, done, counts = together(cache, [*slow, quick])
    assert told == alone([*slow, quick])
    assert counts["steps_aside"] == 0
    assert not any(one.timings.aside_ms for one in done.values())


def test_an_interactive_request_gets_the_sequence_of_a_background_one(cache: Cache) -> None:
    slow = [asked(f"{n}", n, max_tokens=200, priority=m.Priority.BACKGROUND) for n in range(2)]
    order: list[str] = []
    is_asked: list[bool] = []

    def on_event(engine: CachedEngine, message: object) -> None:
        is_slow = isinstance(message, m.TokensDelivered) and message.ref == "0"
        if is_slow and message.index >= 20 and not is_asked:
            is_asked.append(True)
            engine.commands.put(asked("quick", 9, max_tokens=8))
        if isinstance(message, m.Completed):
            order.append(message.ref)

    two = stub(n_ctx=2048, n_seq_max=2)
    with CachedEngine(cache, save=SAVE_ALL, live=APART, backend=two, on_event=on_event) as engine:
        for one in slow:
            engine.commands.put(one)
        engine.ends(3)
        assert engine.engine.counts()["steps_aside"] == 1
    assert order[0] == "quick"
    assert engine.said["1"] == alone(slow)["1"]


def test_an_interactive_request_does_not_wait_for_a_background_leader_that_rests(
    cache: Cache,
) -> None:
    """It shares the prompt that the other one reads, so that one reads on for it."""
    leader = asked("slow", 1, n_prompt=400, max_tokens=4, priority=m.Priority.BACKGROUND)
    follower = m.Run("quick", CALLER, m.Complete("quick", "m", leader.request.prompt, max_tokens=4))
    with CachedEngine(cache, save=SAVE_ALL, backend=stub(n_ctx=2048)) as engine:
        engine.commands.put(leader)
        engine.commands.put(follower)
        ends = engine.ends(2)
    assert all(isinstance(one, m.Completed) for one in ends.values())
