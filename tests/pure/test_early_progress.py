"""What a caller receives before the first token: how much is warm, and its place in the queue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors import messages as m
from actors.engine import turn
from actors.engine.turn import PLACE_EVERY_S, Turn
from cache import tokens as token_bytes
from cache.policy import SAVE_ALL, LivePolicy
from native.params import ModelParams
from native.stub import UNCUTTABLE, StubBackend
from runtime.cli import progress as progress_line
from runtime.cli.progress import ProgressLine
from tests.support.cached_engine import Cache, CachedEngine, checked_cache
from tests.support.engine_runs import EngineRun, Outcome, Script, ask, run

pytestmark = pytest.mark.pure

N_BATCH = 64
PROMPT = [32 + (i * 7 + i * i) % 90 for i in range(150)]
APART = LivePolicy(max_idle=0)
Shown = list[tuple[int, int, int]]


def stub(name: str = "stub", **params: int) -> StubBackend:
    given = {"n_ctx": 1024, "n_batch": N_BATCH, "n_ubatch": N_BATCH} | params
    return StubBackend.load(name, ModelParams(**given))  # type: ignore[arg-type]


def shown(outcome: Outcome) -> Shown:
    return [(one.done, one.total, one.reused) for one in outcome.progress]


def played(*runs: m.Run, backend: StubBackend | None = None) -> dict[str, Outcome]:
    """One after the other; the order of progress and tokens is checked for each."""
    begun: set[str] = set()

    def on_event(_: EngineRun, message: object) -> None:
        if isinstance(message, m.TokensDelivered):
            begun.add(message.ref)
        assert not isinstance(message, m.PrefillProgress) or message.ref not in begun

    def script() -> Script:
        for one in runs:
            yield [one]

    return EngineRun(backend or stub(), on_event=on_event).play(script())


# ── how much is warm ─────────────────────────────────────────────────────────────────────────────


def test_a_cold_prompt_of_one_step_is_announced_once() -> None:
    (outcome,) = played(ask("r", PROMPT[:40])).values()
    assert shown(outcome) == [(0, 40, 0)]


def test_a_cold_prompt_of_several_steps_is_announced_and_then_followed() -> None:
    (outcome,) = played(ask("r", PROMPT)).values()
    assert shown(outcome) == [(0, 150, 0), (64, 150, 0), (128, 150, 0)]


def test_an_exact_hit_is_announced_once() -> None:
    outcomes = played(ask("cold", PROMPT), ask("warm", PROMPT))
    assert outcomes["warm"].cache.hit is m.HitKind.EXACT
    assert shown(outcomes["warm"]) == [(150, 150, 150)]


def test_a_partial_hit_is_announced_with_what_is_warm() -> None:
    outcomes = played(
        ask("cold", PROMPT), ask("short", [*PROMPT[:100], *[31] * 9]),
        ask("long", [*PROMPT[:100], *[30] * 99]),
    )  # fmt: skip
    assert shown(outcomes["short"]) == [(100, 109, 100)]
    assert shown(outcomes["long"]) == [(100, 199, 100), (164, 199, 100)]


def test_what_is_announced_is_what_the_result_reports() -> None:
    outcomes = played(ask("a", PROMPT), ask("b", PROMPT), ask("c", [*PROMPT[:70], 31, 31]))
    for outcome in outcomes.values():
        assert outcome.progress[0].reused == outcome.reused


@pytest.mark.parametrize(("n", "steps"), [(40, [0, 40]), (150, [0, 64, 128, 150])])
def test_a_prompt_that_is_only_read_is_announced_and_followed_to_its_end(
    n: int, steps: list[int]
) -> None:
    outcomes = played(run("r", PROMPT[:n], max_tokens=0), run("again", PROMPT[:n], max_tokens=0))
    assert shown(outcomes["r"]) == [(done, n, 0) for done in steps]
    assert shown(outcomes["again"]) == [(n, n, n)]


def test_a_follower_is_announced_once_and_then_follows() -> None:
    def script() -> Script:
        yield [ask("leader", PROMPT), ask("follower", PROMPT)]

    outcomes = EngineRun(stub()).play(script())
    assert shown(outcomes["leader"])[0] == (0, 150, 0)
    assert shown(outcomes["follower"])[0] == (0, 150, 0)
    done = [one.done for one in outcomes["follower"].progress]
    assert done == sorted(set(done))
    assert outcomes["follower"].progress[-1].reused == outcomes["follower"].reused


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with checked_cache(tmp_path) as cache:
        yield cache


@pytest.mark.parametrize("name", ["stub", UNCUTTABLE])
def test_what_is_restored_is_announced_before_anything_is_computed(cache: Cache, name: str) -> None:
    rows: list[int] = []
    announced: list[tuple[m.PrefillProgress, int]] = []

    def on_event(engine: CachedEngine, message: object) -> None:
        if isinstance(message, m.PrefillProgress):
            announced.append((message, sum(rows)))

    backend = stub(name)
    decode = backend.decode

    def counted(batch: object) -> None:
        decode(batch)  # type: ignore[arg-type]
        rows.append(len(batch))  # type: ignore[arg-type]

    backend.decode = counted  # type: ignore[method-assign]
    with CachedEngine(
        cache, save=SAVE_ALL, live=APART, backend=backend, on_event=on_event
    ) as engine:
        engine.ask("cold", PROMPT)
        announced.clear()
        computed = sum(rows)
        done = engine.ask("warm", [*PROMPT, 33, 34, 35])
    assert done.usage.cached_tokens
    (first, n_rows), *_ = announced
    assert (first.ref, first.total, first.reused) == ("warm", 153, done.usage.cached_tokens)
    assert first.done == first.reused
    assert n_rows == computed


def test_a_request_that_steps_aside_is_announced_once(cache: Cache) -> None:
    seen: dict[str, Shown] = {}

    def on_event(_: CachedEngine, message: object) -> None:
        if isinstance(message, m.PrefillProgress):
            seen.setdefault(message.ref, []).append((message.done, message.total, message.reused))

    with CachedEngine(
        cache, save=SAVE_ALL, live=APART, backend=stub(n_ctx=256, n_batch=256, n_ubatch=256),
        on_event=on_event,
    ) as engine:  # fmt: skip
        for name in ("first", "second"):
            engine.commands.put(ask(name, [ord(name[0]), *PROMPT[:19]], 150))
        engine.ends(2)
        assert engine.engine.counts()["steps_aside"]
    assert seen == {"first": [(0, 20, 0)], "second": [(0, 20, 0)]}


def test_a_reply_that_continues_is_not_announced_again() -> None:
    (whole,) = played(ask("r", PROMPT[:40], 9)).values()
    left = run("r", PROMPT[:40], max_tokens=9, delivered=token_bytes.pack(whole.tokens[:4]))

    def script() -> Script:
        yield [left]

    (outcome,) = EngineRun(stub()).play(script()).values()
    assert outcome.tokens == whole.tokens
    assert shown(outcome) == [(40, 44, 0)]  # of a step


def test_a_bar_is_shown_only_for_what_takes_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for the announcement of an exact hit, however long its request had waited."""

    class Bar:
        task_ids = (0,)

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_, **__: bars.append(name)

    now, bars = 100.0, list[str]()
    monkeypatch.setattr(progress_line.time, "monotonic", lambda: now)
    monkeypatch.setattr(progress_line, "_bar", Bar)
    line = ProgressLine("reading")
    line._enabled = True
    now += 60.0  # in the queue
    line.share(1.0)
    assert bars == []
    now += progress_line.SHOW_AFTER_S
    line.share(0.5)
    assert bars == ["start", "add_task", "update"]


# ── places ───────────────────────────────────────────────────────────────────────────────────────


def test_a_place_is_reported_once_and_another_one_after_a_second() -> None:
    waiting = Turn()
    assert waiting.moves_to(3, 100.0)
    assert not waiting.moves_to(3, 500.0)
    assert waiting.moves_to(2, 500.0)
    assert not waiting.moves_to(1, 500.0 + PLACE_EVERY_S / 2)
    assert waiting.moves_to(0, 500.0 + PLACE_EVERY_S)


def places(*requests: m.Run, then: Callable[[EngineRun], None] = lambda _: None) -> list[object]:
    """What is sent of the queue in which these wait behind a request that generates."""
    sent: list[object] = []
    is_asked: list[bool] = []

    def on_event(engine: EngineRun, message: object) -> None:
        if isinstance(message, m.Queued):
            sent.append((message.ref, message.place))
        if isinstance(message, m.TokensDelivered):
            if message.ref != "first" and message.index == 0:
                sent.append(message.ref)
            if not is_asked:
                is_asked.append(True)
                engine._advance(requests)
            elif message.index >= 20 and len(is_asked) == 1:
                is_asked.append(True)
                then(engine)

    def script() -> Script:
        yield [run("first", PROMPT[:9], max_tokens=60, queue_events=True)]

    EngineRun(stub(n_seq_max=1), on_event=on_event).play(script())
    return sent


def waiting(name: str, **fields: object) -> m.Run:
    return run(name, [65, 66, 67], max_tokens=3, **({"queue_events": True} | fields))


def test_a_request_that_waits_has_its_place_reported_where_that_was_asked_for() -> None:
    sent = places(waiting("a"), waiting("b", queue_events=False), waiting("c"))
    assert sent == [("a", 0), ("c", 2), "a", "b", "c"]


def test_places_change_when_requests_start_or_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "PLACE_EVERY_S", 0.0)
    sent = places(
        waiting("a"), waiting("b"), waiting("c"),
        then=lambda engine: engine.commands.put(m.CancelRun("b")),
    )  # fmt: skip
    assert sent == [("a", 0), ("b", 1), ("c", 2), ("c", 1), ("c", 0), "a", "c"]


def test_a_more_urgent_request_comes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "PLACE_EVERY_S", 0.0)
    sent = places(
        waiting("slow", priority=m.Priority.BACKGROUND),
        then=lambda engine: engine._advance([waiting("quick")]),
    )
    assert sent == [("slow", 0), ("quick", 0), ("slow", 1), ("slow", 0), "quick", "slow"]
