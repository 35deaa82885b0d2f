"""The end of a reply is stored when nothing has extended it for some time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actors import messages as m
from cache.policy import SAVE_ALL, LivePolicy
from cache.rows import SaveReason
from tests.support.cached_engine import Cache, CachedEngine, checked_cache
from tests.support.waiting import eventually

pytestmark = pytest.mark.pure

NEVER = replace(SAVE_ALL, tail_delay_ms=30_000)
SOON = replace(SAVE_ALL, tail_delay_ms=20)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with checked_cache(tmp_path) as cache:
        yield cache


def ids(n: int, seed: int = 1) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(10, 200) for _ in range(n)]


def talk(engine: CachedEngine, n_turns: int, tokens: list[int]) -> list[int]:
    """A conversation without pauses; all its tokens."""
    for turn in range(n_turns):
        tokens = [*tokens, *ids(60, seed=turn)]
        engine.ask(f"turn {turn}", tokens, max_tokens=40)
        tokens = [*tokens, *engine.said[f"turn {turn}"]]
    return tokens


def test_a_conversation_without_pauses_writes_every_token_once(cache: Cache) -> None:
    engine = CachedEngine(cache, save=NEVER)
    tokens = talk(engine, 12, ids(300))
    engine.close()
    n_written = sum(header.id.n_tokens for header in cache.headers())
    assert n_written == len(tokens) - 1  # the last token of the reply was never decoded
    assert len(engine.published()) == len(set(engine.published()))
    assert cache.status()["tails_not_written"] >= 9  # the others ended with a block
    assert sum(header.id.n_tokens < 64 for header in cache.headers()) == 1
    assert cache.status()["saves"]["shutdown"] == 1


def test_a_conversation_with_pauses_keeps_every_token_once_and_every_key(cache: Cache) -> None:
    engine = CachedEngine(cache, save=NEVER)
    tokens = ids(300)
    ends: dict[bytes, list[int]] = {}
    for turn in range(12):
        prompt = [*tokens, *ids(rng_length(turn), seed=turn)]
        done = engine.ask(f"turn {turn}", prompt, max_tokens=rng_length(turn + 50))
        tokens = [*prompt, *engine.said[f"turn {turn}"]]
        assert done.finish_key is not None
        ends[done.finish_key] = tokens[:-1]
        engine.commands.put(m.WriteTails())  # as after a pause
    engine.close()
    assert sum(header.id.n_tokens for header in cache.headers()) == len(tokens) - 1
    assert sum(header.id.n_tokens < 64 for header in cache.headers()) <= 1
    removed = cache.status()["tails_removed"]
    assert removed >= 9
    for name in ("model:m2", "model:m3"):  # the same cache_meta, and one that reads the rows
        with CachedEngine(cache, save=NEVER, name=name) as other:
            for key, before in ends.items():
                late = other.ask(key.hex(), [*before, 9, 9, 9], parent_key=key)
                assert late.cache.note is None, "the key of a tail that went is unknown"
                assert late.usage.cached_tokens >= len(before)
            cache.die(other)
            other.ask("after", ids(10))


def rng_length(turn: int) -> int:
    """Tokens of a question or a reply, short and long ones."""
    return random.Random(turn).randrange(5, 90)


def test_a_pause_stores_the_end_and_a_new_process_finds_all_of_it(cache: Cache) -> None:
    first = CachedEngine(cache, save=SOON)
    done = first.ask("one", ids(150), max_tokens=20)
    eventually(lambda: done.finish_key in first.published(), what="the tail is written")
    assert first.written[-1].reason == SaveReason.FINISH
    tokens = [*ids(150), *first.said["one"]]
    with CachedEngine(cache, save=SOON, name="model:m2") as second:
        again = second.ask("two", [*tokens, 7, 8], max_tokens=2)
        assert again.usage.cached_tokens == len(tokens) - 1
        assert again.cache.source == "ram"


def test_a_finish_key_is_a_parent_key_at_once_and_after_it_was_extended(cache: Cache) -> None:
    engine = CachedEngine(cache, save=NEVER)
    one = engine.ask("one", ids(150), max_tokens=20)
    tokens = [*ids(150), *engine.said["one"]]
    assert one.finish_key is not None
    assert one.finish_key not in engine.published()
    two = engine.ask("two", [*tokens, *ids(80, 5)], max_tokens=4, parent_key=one.finish_key)
    assert two.cache.note is None
    engine.ask("three", [*tokens, *ids(90, 6)], max_tokens=4, parent_key=one.finish_key)
    assert one.finish_key not in engine.published()
    # A process that never saw it: cache_meta has the row with those tokens.
    with CachedEngine(cache, save=NEVER, name="model:m2") as other:
        late = other.ask("four", [*tokens, 9, 9, 9], parent_key=one.finish_key)
        assert late.cache.note is None
        assert late.usage.cached_tokens >= len(tokens) - 1


def test_an_end_that_a_longer_row_contains_has_a_key_that_can_be_continued(cache: Cache) -> None:
    with CachedEngine(cache, save=NEVER) as engine:
        engine.ask("long", ids(150), max_tokens=60)
    with CachedEngine(cache, save=NEVER, name="model:m2") as other:
        short = other.ask("short", ids(150), max_tokens=10)
        assert short.finish_key is not None
        assert short.finish_key not in other.published()
    with CachedEngine(cache, save=NEVER, name="model:m3") as third:
        said = [*ids(150), *other.said["short"]]
        late = third.ask("late", [*said, 9, 9], parent_key=short.finish_key)
        assert late.cache.note is None
        assert late.usage.cached_tokens >= len(said) - 1


def test_another_process_that_waits_for_the_end_gets_it(cache: Cache) -> None:
    engine = CachedEngine(cache, save=NEVER)
    one = engine.ask("one", ids(150), max_tokens=20)
    tokens = [*ids(150), *engine.said["one"]]
    with CachedEngine(cache, save=NEVER, name="model:m2") as other:
        late = other.ask("two", [*tokens, 9, 9, 9], parent_key=one.finish_key)
        assert late.cache.note is None
        assert late.usage.cached_tokens >= len(tokens) - 1
    assert one.finish_key in engine.published()


def test_an_end_is_stored_before_its_cells_are_given_up(cache: Cache) -> None:
    live = LivePolicy(max_idle=1)
    engine = CachedEngine(cache, save=NEVER, live=live)
    one = engine.ask("one", ids(150), max_tokens=20)
    engine.ask("two", ids(150, 2), max_tokens=20)
    eventually(lambda: one.finish_key in engine.published(), what="the tail is written")
    assert cache.status()["saves"]["evict"] == 1


def test_a_turn_that_parts_inside_the_end_leaves_the_end_stored(cache: Cache) -> None:
    engine = CachedEngine(cache, save=NEVER, n_ctx=256)
    one = engine.ask("one", ids(150), max_tokens=20)
    said = [*ids(150), *engine.said["one"]]
    engine.ask("two", [*said[:160], 3, 3, *ids(60, 3)], max_tokens=20)  # there is no room for both
    assert one.finish_key in engine.published()


def test_without_idle_sequences_the_end_is_stored_at_once(cache: Cache) -> None:
    engine = CachedEngine(cache, save=NEVER, live=LivePolicy(max_idle=0))
    one = engine.ask("one", ids(150), max_tokens=20)
    eventually(lambda: one.finish_key in engine.published(), what="the tail is written")


def test_a_new_cache_meta_is_asked_again(cache: Cache) -> None:
    engine = CachedEngine(cache, save=replace(SAVE_ALL, tail_delay_ms=300))
    one = engine.ask("one", ids(150), max_tokens=20)
    cache.die(engine)
    eventually(lambda: one.finish_key in engine.published(), what="the tail is written")
    assert cache.status()["saves"]["finish"] == 1


def test_what_is_forgotten_is_stored_nowhere(cache: Cache) -> None:
    engine = CachedEngine(cache, save=NEVER)
    one = engine.ask("one", ids(150), max_tokens=20)
    engine.commands.put(m.ForgetLive())
    eventually(lambda: cache.status()["reservations"] == 0, what="its room is given back")
    assert one.finish_key not in engine.published()
    assert not engine.engine.counts()["idle_sequences"]


def test_a_repeat_from_the_store_needs_no_decode_although_the_prompt_ends_inside_a_row(
    cache: Cache,
) -> None:
    save = replace(NEVER, logits=replace(NEVER.logits, row_share=1.0))
    with CachedEngine(cache, save=save) as engine:
        engine.ask("one", ids(150), max_tokens=30)
    with CachedEngine(cache, save=save, name="model:m2") as other:
        again = other.ask("two", ids(150), max_tokens=30)
        assert again.usage.cached_tokens == 150
        assert other.said["two"] == engine.said["one"]


def test_logits_move_to_the_row_that_contains_their_tail(cache: Cache) -> None:
    """An exact repeat needs no decode although the row it ended in has gone."""
    share = replace(NEVER.logits, row_share=0.1)  # not for a repeat, which stores a few new tokens
    save = replace(NEVER, logits=share)
    prompt = ids(1500)
    rows = [0]
    for name, n_said in (("m1", 4), ("m2", 9), ("m3", 80), ("m4", 4)):
        with CachedEngine(cache, save=save, name=f"model:{name}") as engine:
            done = engine.ask(name, prompt, max_tokens=n_said)
            assert done.usage.cached_tokens == (1500 if rows[-1] else 0)
        ends = [header for header in cache.headers() if header.id.start == 1472]
        rows.append(max(header.id.n_tokens for header in ends))
        assert len(ends) == 1
    assert rows == [0, 31, 36, 64, 64]


def test_logits_too_large_for_their_row_are_not_stored_with_a_longer_row_either(
    cache: Cache,
) -> None:
    save = replace(NEVER, logits=replace(NEVER.logits, row_share=0.0))
    for name, n_said in (("m1", 4), ("m2", 9)):
        with CachedEngine(cache, save=save, name=f"model:{name}") as engine:
            engine.ask(name, ids(150), max_tokens=n_said)
            again = engine.ask("again", ids(150), max_tokens=n_said + 20)
            assert again.usage.cached_tokens == 150  # from memory
    with CachedEngine(cache, save=save, name="model:m3") as engine:
        assert engine.ask("three", ids(150), max_tokens=4).usage.cached_tokens == 149


@pytest.mark.parametrize("seed", range(6))
def test_no_order_of_turns_forks_and_forgetting_loses_or_repeats_a_row(
    cache: Cache, seed: int
) -> None:
    rng = random.Random(seed)
    live = LivePolicy(max_idle=rng.choice((1, 2, 4)), idle_steps_stored=rng.choice((0, 8, 32)))
    save = replace(SAVE_ALL, tail_delay_ms=rng.choice((1, 10, 30_000)))
    engine = CachedEngine(cache, save=save, live=live, n_ctx=rng.choice((512, 1024)))
    histories = [ids(rng.randrange(20, 200), seed=10 + seed)]
    for turn in range(25):
        base = rng.choice(histories)
        prompt = [*base[: rng.randrange(1, len(base) + 1)], *ids(rng.randrange(1, 50), turn)]
        prompt = prompt[:350]
        engine.ask(str(turn), prompt, max_tokens=rng.randrange(1, 60))
        histories = [*histories[-3:], [*prompt, *engine.said.get(str(turn), [])]]
        if rng.random() < 0.1:
            engine.commands.put(m.WriteTails())
        if rng.random() < 0.1:
            cache.die(engine)
    engine.close()
    keys = [header.key for header in cache.headers()]
    assert len(keys) == len(set(keys))
    assert cache.status()["reservations"] == 0
