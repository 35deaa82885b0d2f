"""How exact a reply is: how its rows are computed, and whose KV it may use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import messages as m
from actors.engine.exactness import (
    FREE_S,
    FREE_SHARE,
    Work,
    is_computed_singly,
    level_in_effect,
    level_of,
    rows_needed,
    rows_of_step,
)
from actors.kv.namespace import apart_from
from actors.kv.restore_cost import Rates, Speeds
from actors.messages.exact import Exact
from actors.messages.journal import Noted
from cache.policy import SAVE_ALL, LivePolicy
from native.backend import Batch, Rows
from native.errors import DecodeFailed
from native.params import ModelParams
from native.stub import EOT, StubBackend
from tests.support.cached_engine import ROOT, Cache, CachedEngine
from tests.support.engine_runs import EngineRun, Script, run
from tests.support.resume_runs import journals

pytestmark = pytest.mark.pure

REPEAT, PREFIX, ALWAYS = Exact.REPEAT, Exact.PREFIX, Exact.ALWAYS
PROMPT = [66] * 200
levels = st.sampled_from(list(Exact))


# ── levels ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("asked", "model", "level"),
    [
        (None, REPEAT, REPEAT),
        (None, PREFIX, PREFIX),
        (None, ALWAYS, ALWAYS),
        (ALWAYS, REPEAT, ALWAYS),
        (REPEAT, PREFIX, REPEAT),
        (REPEAT, ALWAYS, ALWAYS),  # no request of such a model may be otherwise
    ],
)
def test_a_request_has_the_level_it_names_or_that_of_its_model(
    asked: Exact | None, model: Exact, level: Exact
) -> None:
    assert level_of(asked, model) is level


works = st.builds(Work, st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 10_000))
speeds = st.builds(Speeds, st.floats(1e-6, 1.0), st.floats(1e-6, 1.0))


@given(works, speeds)
def test_prefix_comes_by_itself_only_where_it_costs_next_to_nothing(
    work: Work, known: Speeds
) -> None:
    extra = work.n_again * (known.row_s - known.prompt_token_s)
    whole = work.n_prompt * known.prompt_token_s + work.n_reply * known.row_s
    is_free = extra <= FREE_S and extra <= FREE_SHARE * whole
    assert level_in_effect(None, REPEAT, work, known) is (PREFIX if is_free else REPEAT)


@given(works, st.none() | speeds, st.none() | levels, levels)
def test_nothing_else_changes_a_level(
    work: Work, known: Speeds | None, asked: Exact | None, model: Exact
) -> None:
    level = level_of(asked, model)
    effect = level_in_effect(asked, level, work, known)
    assert effect is level or (asked, level, effect) == (None, REPEAT, PREFIX)
    assert known is not None or effect is level


def test_speeds_are_known_once_both_were_measured_a_few_times() -> None:
    rates = Rates()
    for _ in range(3):
        assert rates.speeds() is None
        rates.record_step(100, 0.1)
    for _ in range(3):
        assert rates.speeds() is None
        rates.record_step(4, 0.2, singly=True)
    assert rates.speeds() == Speeds(pytest.approx(0.001), pytest.approx(0.05))


# ── the rows of a step ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("exact", "n_kv", "n_tokens", "rows"),
    [
        (REPEAT, 0, 100, "many"),
        (REPEAT, 99, 100, "many"),  # the last token of a prompt, alone in its step
        (REPEAT, 100, 101, "any"),
        (REPEAT, 100, 120, "many"),
        (PREFIX, 0, 100, "many"),
        (PREFIX, 50, 120, "many"),
        (PREFIX, 100, 120, "alone"),
        (PREFIX, 119, 120, "any"),
        (ALWAYS, 0, 100, "many"),
        (ALWAYS, 100, 101, "many"),
        (ALWAYS, 100, 120, "many"),
    ],
)
def test_rows_are_computed_by_what_they_are(
    exact: Exact, n_kv: int, n_tokens: int, rows: Rows
) -> None:
    assert rows_needed(exact, n_kv=n_kv, n_prompt=100, n_tokens=n_tokens) == rows


@pytest.mark.parametrize(
    ("needed", "rows"),
    [
        (["any"], "any"),
        (["any", "any"], "any"),
        (["any", "many"], "many"),
        (["alone", "alone"], "alone"),
    ],
)
def test_one_row_that_must_be_among_many_makes_a_step_of_many(
    needed: list[Rows], rows: Rows
) -> None:
    assert rows_of_step(needed) == rows


def test_what_takes_the_time_of_single_rows() -> None:
    kinds: list[tuple[Rows, int]] = [("alone", 5), ("any", 1), ("any", 2), ("many", 1)]
    assert [is_computed_singly(*one) for one in kinds] == [True, True, False, False]


def stub(**params: int) -> StubBackend:
    return StubBackend.load("stub", ModelParams(**({"n_ctx": 2048, "n_batch": 512} | params)))


def batches(*asked: m.Run, **engine: Any) -> EngineRun:
    """Each request alone, one after the other."""

    def script() -> Iterator[list[m.Run]]:
        for one in asked:
            yield [one]

    played = EngineRun(stub(), **engine)
    played.play(script())  # type: ignore[arg-type]
    return played


def test_a_prompt_is_computed_among_many_and_a_reply_as_it_comes() -> None:
    played = batches(run("a", PROMPT, max_tokens=4, exact=REPEAT))
    assert played.batches == ["many", "any", "any", "any"]
    assert [len(rows) for rows in played.placed] == [200, 1, 1, 1]


def test_a_prompt_that_is_warm_but_for_its_last_token_is_computed_like_a_cold_one() -> None:
    forgetful = replace(SAVE_ALL.logits, memory_bytes=0)
    asked = [run(name, PROMPT, max_tokens=2, exact=REPEAT) for name in ("cold", "warm")]
    played = batches(*asked, logits=forgetful)
    assert [len(rows) for rows in played.placed] == [200, 1, 1, 1]
    assert played.batches == ["many", "any", "many", "any"]
    assert played.outcomes["warm"].reused == 199


def test_every_step_of_a_request_that_is_always_exact_is_one_of_many() -> None:
    def script() -> Script:
        yield [
            run("a", PROMPT, max_tokens=8, exact=ALWAYS),
            run("b", [67] * 150, max_tokens=20, exact=REPEAT),
        ]

    played = EngineRun(stub())
    got = played.play(script())
    assert got["a"].cache.exact is ALWAYS
    assert got["b"].cache.exact is REPEAT
    seqs = [{seq for seq, _ in rows} for rows in played.placed]
    both = [rows for rows, present in zip(played.batches, seqs, strict=True) if len(present) > 1]
    assert set(both) == {"many"}
    assert played.batches[-1] == "any"  # b, once a has ended


def test_a_model_that_is_always_exact_is_so_for_every_request() -> None:
    asked = [
        run("a", PROMPT, max_tokens=4),
        run("b", PROMPT, max_tokens=4, exact=REPEAT),
    ]
    played = batches(*asked, exact=ALWAYS)
    assert set(played.batches) == {"many"}
    assert [one.cache.exact for one in played.outcomes.values()] == [ALWAYS, ALWAYS]
    assert played.outcomes["b"].reused == 200


def test_prefix_is_reported_where_it_came_by_itself() -> None:
    def script() -> Script:
        for name, exact in (("a", None), ("b", REPEAT), ("c", ALWAYS)):
            yield [run(name, PROMPT, max_tokens=4, exact=exact)]

    played = EngineRun(stub())
    played.engine._cache.speeds = lambda: Speeds(1e-6, 1e-6)  # type: ignore[method-assign]
    got = played.play(script())
    assert [got[name].cache.exact for name in "abc"] == [PREFIX, REPEAT, ALWAYS]


def test_a_context_that_was_replaced_has_its_replies_computed_again_alone() -> None:
    """And no slice holds rows of the prompt and of the reply."""

    class Failing(StubBackend):
        has_failed = False

        def decode(self, batch: Batch) -> None:
            if min(batch.positions) == 210 and not self.has_failed:
                self.has_failed = True
                raise DecodeFailed(-1, "once")
            super().decode(batch)

    def script() -> Script:
        yield [run(name, [at] * 200, max_tokens=20, exact=PREFIX) for name, at in twins]

    twins = (("a", 66), ("b", 67))
    played = EngineRun(Failing.load("stub", ModelParams(n_ctx=2048, n_batch=512)))
    got = played.play(script())
    assert [len(one.tokens) for one in got.values()] == [20, 20]
    steps = list(zip(played.batches, played.placed, strict=True))
    again = [(rows, [at for _, at in placed]) for rows, placed in steps if len(placed) > 2]
    assert again == [
        ("many", [*range(200), *range(200)]),
        ("many", [*range(200)]),  # each by itself: the other may have made the step fail
        ("many", [*range(200)]),
        ("alone", [*range(200, 211), *range(200, 211)]),
    ]


def test_a_reply_that_is_computed_again_takes_turns_with_a_stream() -> None:
    said = batches(run("a", PROMPT, max_tokens=60)).outcomes["a"].tokens
    with journals([Noted(PROMPT, said[:50])]) as keepers:
        interrupted = replace(
            run("a", PROMPT, max_tokens=60, exact=PREFIX), journal=keepers[0].path
        )
        played = EngineRun(stub())

        def script() -> Script:
            yield [run("b", [67] * 100, max_tokens=80, exact=ALWAYS), interrupted]

        got = played.play(script())
    assert got["a"].tokens == said
    alone = [at for at, rows in enumerate(played.batches) if rows == "alone"]
    assert len(alone) > 1
    assert all(later - sooner == 2 for sooner, later in pairwise(alone))


# ── whose KV a request may use ───────────────────────────────────────────────────────────────────


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "arena")


def roots(cache: Cache) -> set[bytes]:
    return {header.id.root for header in cache.headers()}


TEXT = [66, *([67, 68] * 150), EOT]
NO_LIVE = LivePolicy(max_idle=0)


def test_rows_of_requests_that_are_always_exact_lie_apart(cache: Cache) -> None:
    assert apart_from(ROOT) != ROOT
    with CachedEngine(cache, save=SAVE_ALL, live=NO_LIVE) as engine:
        plain = engine.ask("a", TEXT, exact=REPEAT)
        assert roots(cache) == {ROOT}
        first = engine.ask("b", TEXT, exact=ALWAYS)
        assert roots(cache) == {ROOT, apart_from(ROOT)}
        assert (plain.usage.cached_tokens, first.usage.cached_tokens) == (0, 0)
        assert engine.ask("c", TEXT, exact=ALWAYS).cache.source == "ram"
        assert engine.ask("d", TEXT, exact=PREFIX).cache.source == "ram"
        assert len({plain.finish_key, first.finish_key}) == 2


def test_rows_of_one_kind_are_found_again_by_a_later_process(cache: Cache) -> None:
    for incarnation, cached in ((1, 0), (2, len(TEXT))):
        with CachedEngine(
            cache, save=SAVE_ALL, incarnation=incarnation, name=f"model:{incarnation}"
        ) as engine:
            done = engine.ask("a", TEXT, exact=ALWAYS)
            assert done.usage.cached_tokens >= cached - 1 if cached else not cached


@pytest.mark.parametrize("live", [LivePolicy(), NO_LIVE], ids=["live", "stored"])
def test_the_finish_key_of_the_other_kind_continues_by_its_tokens(
    cache: Cache, live: LivePolicy
) -> None:
    with CachedEngine(cache, save=SAVE_ALL, live=live) as engine:
        plain = engine.ask("a", TEXT[:-1], 40, exact=REPEAT)
        tip = [*TEXT[:-1], *engine.said["a"]]
        key = plain.finish_key
        done = engine.ask("b", [70, 71], parent_key=key, continues=True, exact=ALWAYS)
        assert done.usage.prompt_tokens == len(tip) + 2
        assert done.usage.cached_tokens == 0  # KV of the other kind is not used
        assert done.cache.note is None
        again = engine.ask("c", [70, 71], parent_key=key, continues=True, exact=ALWAYS)
        assert again.usage.cached_tokens >= len(tip)


def test_live_sequences_are_shared_with_their_like_only() -> None:
    def script() -> Script:
        yield [run("a", PROMPT, max_tokens=4, exact=REPEAT)]
        yield [run("b", PROMPT, max_tokens=4, exact=ALWAYS)]
        yield [run("c", PROMPT, max_tokens=4, exact=ALWAYS)]
        yield [run("d", PROMPT, max_tokens=4, exact=PREFIX)]
        # Together: the second of each kind follows the first one.
        long = [67] * 300
        yield [
            run(name, long, max_tokens=4, exact=exact)
            for name, exact in (("e", REPEAT), ("f", ALWAYS), ("g", REPEAT), ("h", ALWAYS))
        ]

    got = EngineRun(stub()).play(script())
    assert [got[name].reused for name in "abcd"] == [0, 0, 200, 200]
    assert [got[name].reused for name in "ef"] == [0, 0]
    assert min(got[name].reused for name in "gh") >= 299
    assert len({tuple(got[name].tokens) for name in "abcd"}) == 1


def test_a_session_continues_in_its_own_kind_of_kv() -> None:
    def script() -> Script:
        yield [run("a", PROMPT, max_tokens=4, session="s", exact=REPEAT)]
        for name in ("b", "c"):
            more = {"session": "s", "continues": True, "exact": ALWAYS}
            yield [run(name, [70, 71], max_tokens=4, **more)]

    got = EngineRun(stub()).play(script())
    assert got["b"].done is not None
    assert got["b"].done.usage.prompt_tokens == 206
    assert got["b"].reused == 0
    assert got["c"].cache.hit is m.HitKind.STICKY


def test_an_engine_refuses_a_level_that_does_not_exist() -> None:
    def script() -> Script:
        yield [run("a", PROMPT, exact="sometimes")]

    failed = EngineRun(stub()).play(script())["a"].failed
    assert failed is not None
    assert failed.reason is m.FailReason.INVALID_REQUEST
    assert "repeat, prefix, always" in failed.detail
