"""Requests with different salts: what one has left is neither used for another nor reported."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors import messages as m
from actors.engine.commands import Asked
from actors.kv.cache_client import PARENT_UNKNOWN
from actors.kv.namespace import Namespace
from cache import tokens as token_bytes
from cache.policy import SAVE_ALL, LivePolicy
from native.backend import Backend
from native.llama import LlamaBackend
from native.params import ModelParams
from native.stub import StubBackend
from tests.support.cached_engine import ROOT, Cache, CachedEngine, checked_cache
from tests.support.engine_runs import HOST, EngineRun, Outcome, Script, run
from tests.support.gguf_files import tiny_llama

pytestmark = pytest.mark.model
Load = Callable[..., Backend]

A, B, NONE = b"tenant a", b"tenant b", b""
PARAMS = ModelParams(n_ctx=4096, n_threads=1, n_seq_max=8)
NO_LIVE = LivePolicy(max_idle=0)
NEVER = replace(SAVE_ALL, tail_delay_ms=30_000)


@pytest.fixture(params=["stub", "llama"])
def load(request: pytest.FixtureRequest, tiny_gguf: Path) -> Load:
    def loaded() -> Backend:
        if request.param == "stub":
            return StubBackend.load("stub", PARAMS)
        return LlamaBackend.load(tiny_gguf, PARAMS)

    return loaded


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with checked_cache(tmp_path) as cache:
        yield cache


def prompt(seed: int, n_tokens: int) -> list[int]:
    return random.Random(seed).choices(range(5, 200), k=n_tokens)


def play(backend: Backend, *turns: list[object]) -> EngineRun:
    def script() -> Script:
        for turn in turns:
            got = yield turn
            assert all(one.done or one.failed for one in got.values())

    engine = EngineRun(backend)
    engine.play(script())
    return engine


def refused(outcome: Outcome) -> tuple[m.FailReason, str]:
    assert outcome.failed is not None
    return outcome.failed.reason, outcome.failed.detail


# ── in one process ──────────────────────────────────────────────────────────────────────────────


def test_a_live_prompt_is_warm_with_its_own_salt_only(load: Load) -> None:
    base = prompt(1, 200)
    order = [("a", A), ("b", B), ("n", NONE), ("a2", A), ("n2", NONE), ("b2", B)]
    engine = play(load(), *([run(name, base, max_tokens=4, salt=salt)] for name, salt in order))
    got = engine.outcomes
    assert [got[name].reused for name, _ in order] == [0, 0, 0, 200, 200, 200]
    assert [got[name].cache.hit for name in ("b", "n")] == [m.HitKind.COLD] * 2
    assert len({got[name].cache.miss_reason for name in ("a", "b", "n")}) == 1
    assert len({tuple(one.tokens) for one in got.values()}) == 1


def test_requests_of_different_salts_do_not_follow_each_other(load: Load) -> None:
    long = prompt(2, 600)
    order = [("a", A), ("b", B), ("a2", A), ("n", NONE), ("b2", B), ("n2", NONE)]
    engine = play(load(), [run(name, long, max_tokens=4, salt=salt) for name, salt in order])
    got = engine.outcomes
    assert [got[name].reused for name in ("a", "b", "n")] == [0, 0, 0]
    assert all(got[name].reused >= 599 for name in ("a2", "b2", "n2"))
    assert engine.rows_decoded >= 3 * 600
    assert all(one.reused == 0 for name in ("a", "b", "n") for one in got[name].progress)


def test_a_session_of_the_same_name_and_another_salt_is_another_one(load: Load) -> None:
    more: dict[str, Any] = {"session": "s", "continues": True, "max_tokens": 4}
    engine = play(
        load(),
        [
            run("a", prompt(3, 90), max_tokens=4, session="s", salt=A),
            run("b", prompt(3, 120), max_tokens=4, session="s", salt=B),  # and is not busy
        ],
        [run("none", [7], **more)],
        [run("a2", [7], **more, salt=A)],
        [Asked(m.EndSession("wrong", "s"), HOST), run("b2", [7], **more, salt=B)],
        [Asked(m.EndSession("end a", "s", A), HOST), run("a3", [7], **more, salt=A)],
        [run("b3", [7], **more, salt=B)],
    )
    got = engine.outcomes
    for name in ("none", "a3"):
        reason, detail = refused(got[name])
        assert reason is m.FailReason.INVALID_REQUEST
        assert "nothing to continue" in detail
    for name, n_before in (("a2", 90), ("b2", 120)):
        done = got[name].done
        assert done is not None
        assert n_before < done.usage.prompt_tokens <= n_before + 5
        assert done.cache.hit is m.HitKind.STICKY
    assert got["b3"].cache.hit is m.HitKind.STICKY
    assert not engine.answers["wrong"].was_known
    assert engine.answers["end a"].was_known


def test_what_is_warm_is_answered_for_one_salt(load: Load) -> None:
    base = prompt(4, 100)
    packed = token_bytes.pack([*base[:70], 3, 3])
    asked = [Asked(m.MatchPrefix(repr(salt), packed, salt), HOST) for salt in (A, B, NONE)]
    engine = play(
        load(), [run("a", base, max_tokens=4, salt=A)], [*asked, run("x", [5, 6], max_tokens=1)]
    )
    assert [engine.answers[repr(salt)].live for salt in (A, B, NONE)] == [70, 0, 0]


def test_a_salt_that_is_too_long_is_refused_everywhere(load: Load) -> None:
    long = b"s" * 65
    engine = play(
        load(),
        [
            Asked(m.MatchPrefix("match", b"\1\0\0\0", long), HOST),
            Asked(m.EndSession("end", "s", long), HOST),
            run("long", [5, 6], salt=long),
            run("whole", [5, 6], max_tokens=1, salt=long[:64]),
        ],
    )
    assert refused(engine.outcomes["long"])[0] is m.FailReason.INVALID_REQUEST
    assert engine.outcomes["whole"].done is not None
    for ref in ("match", "end"):
        answer = engine.answers[ref]
        assert isinstance(answer, m.TextRefused)
        assert answer.reason is m.FailReason.INVALID_REQUEST
        assert "65 bytes" in answer.detail


# ── with a cache ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("arch", ["llama", "mamba"])
def test_stored_rows_are_found_with_their_own_salt_only(
    cache: Cache, tmp_path: Path, arch: str
) -> None:
    """Blocks, and the states of a memory that cannot be cut; also in a later process."""
    path, text = tiny_llama(tmp_path / "model.gguf", arch=arch), prompt(5, 300)

    def opened(name: str) -> CachedEngine:
        backend = LlamaBackend.load(path, PARAMS)
        return CachedEngine(cache, save=SAVE_ALL, live=NO_LIVE, name=name, backend=backend)

    with opened("model:m") as engine:
        for salt in (A, B, NONE):
            done = engine.ask(repr(salt), text, salt=salt)
            assert (done.usage.cached_tokens, done.cache.hit) == (0, m.HitKind.COLD)
        again = engine.ask("again", text, salt=A)
        assert again.usage.cached_tokens >= 299
        assert again.cache.source == "ram"
    expected = {Namespace(salt=salt).root_in(ROOT) for salt in (A, B, NONE)}
    assert {header.id.root for header in cache.headers()} == expected
    with opened("model:m2") as later:
        assert later.ask("b", text, salt=B).usage.cached_tokens >= 299
        assert later.ask("c", text, salt=b"another").usage.cached_tokens == 0


@pytest.mark.parametrize("live", [LivePolicy(), NO_LIVE], ids=["live", "stored"])
def test_a_finish_key_is_unknown_with_another_salt(cache: Cache, live: LivePolicy) -> None:
    """In the process that returned it, and in a later one."""
    text, keys = prompt(6, 150), dict[bytes, bytes | None]()
    for name in ("model:m", "model:m2"):
        with CachedEngine(cache, save=SAVE_ALL, live=live, name=name) as engine:
            for salt in (A, NONE):
                if salt not in keys:
                    keys[salt] = engine.ask(f"{salt!r}", text, 20, salt=salt).finish_key
                key = keys[salt]
                for other in (A, B, NONE):
                    done = engine.ask(f"{salt!r} {other!r}", text, parent_key=key, salt=other)
                    assert done.cache.note == (None if other == salt else PARENT_UNKNOWN)
                more = engine.ask(f"{salt!r} on", [7], parent_key=key, continues=True, salt=salt)
                assert more.usage.prompt_tokens in (170, 171)
    assert len({*keys.values(), None}) == 3


def test_a_tail_is_written_although_another_salt_has_extended_the_same_text(cache: Cache) -> None:
    """It would not be if the other request had the same salt."""
    for name, salts, is_written in (("model:m", (A, B), True), ("model:m2", (A, A), False)):
        with CachedEngine(cache, save=NEVER, name=name) as engine:
            text = prompt(len(name), 150)
            done = engine.ask("one", text, max_tokens=10, salt=salts[0])
            key = Namespace(salt=A).exchanged(done.finish_key)
            text += engine.said["one"]
            engine.ask("two", [*text, *prompt(7, 90)], max_tokens=4, salt=salts[1])
        assert (key in engine.published()) is is_written
