"""Sessions, continuing, and reading a prompt ahead: what is kept, and what is answered."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors import messages as m
from actors.engine.commands import Asked
from actors.messages.journal import JournalKeeper, JournalWriter
from cache import tokens as token_bytes
from cache.policy import LivePolicy
from native.backend import Backend
from native.llama import LlamaBackend
from native.params import ModelParams, SamplingParams
from native.stub import StubBackend
from tests.support.engine_runs import HOST, EngineRun, Outcome, Script, run
from tests.support.gguf_files import tiny_llama

pytestmark = pytest.mark.model
Load = Callable[..., Backend]


@pytest.fixture(params=["stub", "llama"])
def load(request: pytest.FixtureRequest, tiny_gguf: Path) -> Load:
    def loaded(**options: int) -> Backend:
        params = ModelParams(**({"n_ctx": 1024, "n_threads": 1} | options))  # type: ignore[arg-type]
        if request.param == "stub":
            return StubBackend.load("stub", params)
        return LlamaBackend.load(tiny_gguf, params)

    return loaded


def prompt(seed: int, n_tokens: int) -> list[int]:
    return random.Random(seed).choices(range(5, 200), k=n_tokens)


def hit(outcome: Outcome) -> tuple[m.HitKind, int]:
    return outcome.cache.hit, outcome.reused


def play(backend: Backend, *turns: Any, **options: Any) -> EngineRun:
    """Run one turn after another; a turn may be a function of what came before."""

    def script() -> Script:
        got: dict[str, Outcome] = {}
        for turn in turns:
            made = turn(got) if callable(turn) else turn
            got = yield made if isinstance(made, list) else [made]

    engine = EngineRun(backend, **options)
    engine.play(script())
    return engine


def test_a_session_continues_in_its_own_sequence(load: Load) -> None:
    base = prompt(1, 100)
    engine = play(
        load(),
        run("one", base, max_tokens=10, session="s"),
        lambda got: run("two", [*base, *got["one"].tokens, *prompt(2, 5)], session="s"),
        lambda got: run("other", [*base, 7, 8], max_tokens=4),
    )
    assert hit(engine.outcomes["one"]) == (m.HitKind.COLD, 0)
    assert hit(engine.outcomes["two"]) == (m.HitKind.STICKY, 109)
    assert hit(engine.outcomes["other"]) == (m.HitKind.PARTIAL, 100)  # others may share it


def test_a_session_is_continued_without_sending_its_text_again(load: Load) -> None:
    """Also with nothing to add; and the reply is that of the whole prompt."""
    base, more = prompt(3, 90), prompt(4, 7)
    whole = play(
        load(),
        run("one", base, max_tokens=10),
        lambda got: run("two", [*base, *got["one"].tokens, *more], max_tokens=6),
        lambda got: run(
            "three", [*base, *got["one"].tokens, *more, *got["two"].tokens], max_tokens=6
        ),
    ).outcomes
    engine = play(
        load(),
        run("one", base, max_tokens=10, session="s"),
        run("two", more, max_tokens=6, session="s", continues=True),
        run("three", [], max_tokens=6, session="s", continues=True),
    )
    for name in ("one", "two", "three"):
        assert engine.outcomes[name].tokens == whole[name].tokens, name
        assert engine.outcomes[name].done is not None
    said = {name: len(one.tokens) for name, one in engine.outcomes.items()}
    two, three = engine.outcomes["two"], engine.outcomes["three"]
    assert two.cache.hit is three.cache.hit is m.HitKind.STICKY
    assert two.done is not None
    assert two.done.usage.prompt_tokens == 90 + said["one"] + 7
    assert (
        two.reused >= 90 + said["one"] - 1
    )  # the last token of the reply need not have been decoded
    assert three.reused >= 90 + said["one"] + 7 + said["two"] - 1


def test_a_session_that_diverges_keeps_what_is_common(load: Load) -> None:
    base = prompt(5, 120)
    engine = play(
        load(),
        run("one", base, max_tokens=10, session="s"),
        run("two", [*base[:80], 9, 9, 9], max_tokens=5, session="s"),
        run("three", [], max_tokens=5, session="s", continues=True),
    )
    assert hit(engine.outcomes["two"]) == (m.HitKind.STICKY, 80)
    usage = engine.outcomes["three"].done.usage  # type: ignore[union-attr]
    assert usage.prompt_tokens == 83 + 5  # from the second turn, not the first


def test_one_request_of_a_session_runs_at_a_time(load: Load) -> None:
    """Nothing leaks: the second is refused, and afterwards the session is free."""
    engine = play(
        load(),
        [run("one", prompt(6, 60), session="s"), run("two", prompt(6, 60), session="s")],
        run("three", [5, 6], session="s", continues=True, max_tokens=2),
    )
    failed = engine.outcomes["two"].failed
    assert failed is not None
    assert failed.reason is m.FailReason.SESSION_BUSY
    assert "cancel" in failed.detail
    assert engine.outcomes["three"].done is not None


def test_what_cannot_be_continued_is_refused_with_what_to_do(load: Load) -> None:
    engine = play(
        load(),
        run("nothing", [5], continues=True),
        run("unknown", [5], continues=True, session="never"),
        run("one", prompt(7, 40), session="s"),
        Ask(m.EndSession("end", "s"), then=run("ended", [5], continues=True, session="s")),
    )
    for name in ("nothing", "unknown", "ended"):
        failed = engine.outcomes[name].failed
        assert failed is not None
        assert failed.reason is m.FailReason.INVALID_REQUEST
        assert "nothing to continue" in failed.detail
    assert engine.answers["end"] == m.SessionEnded("end", was_known=True)


class Ask(list[object]):
    """A question, and a request so that the script continues when it has been answered."""

    def __init__(self, question: object, then: m.Run) -> None:
        super().__init__([Asked(question, HOST), then])


def test_sessions_are_listed_latest_first(load: Load) -> None:
    engine = play(
        load(),
        run("one", prompt(8, 40), session="s", max_tokens=2),
        run("other", prompt(9, 30), session="t", max_tokens=2),
        Ask(m.ListSessions("list"), then=run("more", [5], session="s", continues=True)),
    )
    listed = engine.answers["list"]
    assert isinstance(listed, m.SessionsListed)
    assert [(one.name, one.salt, one.is_running) for one in listed.sessions] == [
        ("t", b"", False), ("s", b"", False),
    ]  # fmt: skip
    assert [one.n_tokens for one in listed.sessions] == [32, 42]
    assert listed.n_known == 2


def test_ending_is_idempotent_and_takes_effect_after_a_running_request(load: Load) -> None:
    engine = play(
        load(),
        [run("one", prompt(8, 40), session="s"), Asked(m.EndSession("a", "s"), HOST)],
        Ask(m.EndSession("b", "s"), then=run("two", [5], continues=True, session="s")),
    )
    assert engine.outcomes["one"].done is not None
    assert engine.answers["a"].was_known
    assert not engine.answers["b"].was_known
    assert engine.outcomes["two"].failed is not None


def test_sessions_give_way_longest_unused_first(load: Load) -> None:
    """Idle sessions never exhaust the sequences, of which there are fewer."""
    n, turns = 12, []
    for i in range(n):
        turns.append(run(f"{i}", prompt(10 + i, 40), max_tokens=3, session=f"s{i}"))
    turns += [
        run(f"again {i}", [7], max_tokens=3, session=f"s{i}", continues=True) for i in (n - 1, 0)
    ]
    engine = play(load(n_seq_max=3), *turns)
    assert all(one.done is not None for one in engine.outcomes.values())
    assert hit(engine.outcomes[f"again {n - 1}"]) == (m.HitKind.STICKY, 42)
    assert hit(engine.outcomes["again 0"])[0] is m.HitKind.COLD  # its ids are known all the same
    assert engine.outcomes["again 0"].done.usage.prompt_tokens == 44  # type: ignore[union-attr]


def test_a_session_survives_steps_that_wear_out_other_sequences(load: Load) -> None:
    policy = LivePolicy(idle_steps_stored=4, idle_steps_unstored=4)
    engine = play(
        load(),
        [run("s", prompt(20, 60), session="s"), run("other", prompt(21, 60))],
        run("busy", prompt(22, 60), max_tokens=30),
        run("s2", [9], session="s", continues=True),
        run("other2", prompt(21, 60)),
        policy=policy,
    )
    assert engine.outcomes["s2"].cache.hit is m.HitKind.STICKY
    assert engine.outcomes["other2"].cache.hit is m.HitKind.COLD


def test_reading_ahead_makes_the_next_request_warm(load: Load) -> None:
    base = prompt(30, 130)
    engine = play(
        load(),
        run("ahead", base, max_tokens=0),
        run("again", base, max_tokens=0),
        run("now", base, max_tokens=5),
        run("cut", base[:100], max_tokens=0),
    )
    ahead, again = engine.outcomes["ahead"], engine.outcomes["again"]
    assert ahead.done is not None
    assert ahead.done.finish_reason is m.FinishReason.PREFILLED
    assert ahead.done.usage == m.Usage(130, 0, 0)
    assert ahead.progress[-1].done == 130
    assert (again.reused, again.tokens) == (130, [])
    assert hit(engine.outcomes["now"]) == (m.HitKind.EXACT, 130)  # its logits were kept, too
    assert engine.outcomes["cut"].reused == 100
    alone = play(load(), run("now", base, max_tokens=5)).outcomes["now"]
    assert engine.outcomes["now"].tokens == alone.tokens


def test_a_prompt_of_the_whole_context_can_be_read_but_not_answered(load: Load) -> None:
    base = prompt(31, 1024)
    engine = play(load(), run("read", base, max_tokens=0), run("answer", base, max_tokens=1))
    assert engine.outcomes["read"].done is not None
    failed = engine.outcomes["answer"].failed
    assert failed is not None
    assert failed.reason is m.FailReason.PROMPT_TOO_LONG


def test_how_much_of_a_prompt_is_live_can_be_asked_and_taken_away(load: Load) -> None:
    base = prompt(40, 100)
    packed = token_bytes.pack([*base[:70], 3, 3])
    engine = play(
        load(),
        run("one", base, max_tokens=4),
        Ask(m.MatchPrefix("before", packed), then=run("x", [5, 6], max_tokens=1)),
        Ask(m.EvictLive("evict"), then=run("y", [5, 6], max_tokens=1)),
        Ask(m.MatchPrefix("after", packed), then=run("z", [5, 6], max_tokens=1)),
    )
    assert engine.answers["before"] == m.PrefixMatched("before", live=70, stored=0)
    assert engine.answers["evict"] == m.LiveEvicted("evict", sequences=1, cells=103)
    assert engine.answers["after"].live == 0


@pytest.mark.parametrize("arch", ["mamba", "jamba"])
def test_a_session_of_a_model_that_cannot_be_cut_continues_where_it_stopped(
    tmp_path: Path, arch: str
) -> None:
    path = tiny_llama(tmp_path / f"{arch}.gguf", arch=arch)
    base, more = prompt(50, 90), prompt(51, 6)

    def loaded() -> Backend:
        return LlamaBackend.load(path, ModelParams(n_ctx=1024, n_threads=1))

    greedy = SamplingParams()
    engine = play(
        loaded(),
        run("one", base, max_tokens=9, session="s", sampling=greedy),
        run("two", more, max_tokens=9, session="s", continues=True),
        run("elsewhere", prompt(52, 30), max_tokens=3, session="s"),
    )
    whole = play(
        loaded(),
        run("one", base, max_tokens=9),
        lambda got: run("two", [*base, *got["one"].tokens, *more], max_tokens=9),
    ).outcomes
    assert hit(engine.outcomes["two"]) == (m.HitKind.STICKY, 98)
    assert engine.outcomes["two"].tokens == whole["two"].tokens
    assert engine.outcomes["elsewhere"].cache.hit is m.HitKind.COLD


def test_a_continued_request_outlives_the_session_it_continues(load: Load) -> None:
    """A model's process loses its sessions when it is killed, also while a request waits."""
    base, more = prompt(60, 80), [11, 12, 13]
    keeper = JournalKeeper()
    try:
        next_turn = replace(
            run("two", more, max_tokens=6, session="s", continues=True), journal=keeper.path
        )
        first = play(load(), run("one", base, max_tokens=5, session="s"), next_turn)
        two = first.outcomes["two"]
        noted = keeper.read()
        assert list(noted.prompt) == [*base, *first.outcomes["one"].tokens, *more]
    finally:
        keeper.close()
    keeper = JournalKeeper()  # as it was before the first token of the reply
    try:
        JournalWriter.open(keeper.path).begin(noted.prompt, ())
        again = play(load(), replace(next_turn, journal=keeper.path)).outcomes["two"]
    finally:
        keeper.close()
    assert again.failed is None
    assert again.tokens == two.tokens


def test_a_refused_request_leaves_no_file_open(load: Load) -> None:
    backend, keeper = load(), JournalKeeper()
    try:
        open_before = len(os.listdir("/proc/self/fd"))
        bad = [
            replace(run(f"{i}", [999_999], **more), journal=keeper.path)
            for i, more in enumerate(
                [
                    {},
                    {"max_tokens": -1},
                    {"session": "never", "continues": True},
                    {"continues": True},
                ]
            )
        ]
        got = play(backend, bad, [run("fine", [5, 6], max_tokens=1)]).outcomes
        assert all(one.failed is not None for name, one in got.items() if name != "fine")
        assert len(os.listdir("/proc/self/fd")) <= open_before
    finally:
        keeper.close()


def test_bytes_that_are_no_tokens_are_refused_without_harm(load: Load) -> None:
    broken = run("broken", [5, 6, 7])
    broken = replace(broken, request=replace(broken.request, prompt=m.TokenPrompt(b"abc")))
    asked = Asked(m.MatchPrefix("match", b"abcde"), HOST)
    engine = play(load(), [broken, asked, run("fine", [5, 6, 7], max_tokens=2)])
    failed = engine.outcomes["broken"].failed
    assert failed is not None
    assert failed.reason is m.FailReason.INVALID_REQUEST
    assert "no list of token ids" in failed.detail
    assert engine.answers["match"].reason is m.FailReason.INVALID_REQUEST
    assert engine.outcomes["fine"].done is not None
