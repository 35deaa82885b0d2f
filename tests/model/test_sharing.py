"""The live tier: prefixes shared inside one context, and what must never come of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from actors import messages as m
from cache.policy import LivePolicy, LogitsPolicy
from native.backend import Backend
from native.llama import LlamaBackend
from native.params import ModelParams
from native.stub import StubBackend
from tests.support.engine_runs import EngineRun, Outcome, Script, ask

pytestmark = pytest.mark.model

N_CTX = 1024
ALONE = LivePolicy(max_idle=0, min_tokens=100_000)
"""Nothing is shared and nothing stays: what every answer is compared with."""
ALWAYS = m.Exact.ALWAYS
"""A next turn equals its cold run, and company changes nothing."""
Load = Callable[..., Backend]


@pytest.fixture(params=["stub", "llama"])
def load(request: pytest.FixtureRequest, tiny_gguf: Path) -> Load:
    """Loads a backend, the stub or a tiny llama, with parameters."""

    def loaded(**options: int) -> Backend:
        params = ModelParams(**({"n_ctx": N_CTX, "n_threads": 1} | options))  # type: ignore[arg-type]
        if request.param == "stub":
            return StubBackend.load("stub", params)
        return LlamaBackend.load(tiny_gguf, params)

    return loaded


def prompt(seed: int, n_tokens: int) -> list[int]:
    return random.Random(seed).choices(range(5, 200), k=n_tokens)


FORGETFUL = LogitsPolicy(memory_bytes=0, row_share=0)


def alone(load: Load, runs: Sequence[m.Run]) -> dict[str, Outcome]:
    """The answers of a context in which nothing is shared."""

    def script() -> Script:
        for run in runs:
            yield [run]

    return EngineRun(load(), policy=ALONE, logits=FORGETFUL, exact=ALWAYS).play(script())


def must_agree(
    runs: Sequence[m.Run], live: dict[str, Outcome], expected: dict[str, Outcome]
) -> None:
    """The same tokens."""
    for run in runs:
        assert live[run.request_id].tokens == expected[run.request_id].tokens, run.request_id


def test_the_next_prompt_shares_what_the_last_one_left(load: Load) -> None:
    base = prompt(1, 200)
    runs = [
        ask("cold", base, 20),
        ask("same", base, 20),
        ask("warm", base, 20, temperature=0.9, seed=7),
        ask("fork", [*base[:150], 201, *prompt(2, 40)], 20),
    ]

    def script() -> Script:
        got = yield runs[:1]
        longer = [*base, *got["cold"].tokens, *prompt(3, 30)]
        runs.append(ask("next", longer, 20))
        for run in runs[1:]:
            yield [run]

    live = EngineRun(load(), exact=ALWAYS).play(script())
    must_agree(runs, live, alone(load, runs))
    assert [live[name].reused for name in ("cold", "same", "warm", "fork")] == [0, 200, 200, 150]
    assert live["next"].reused == 200 + 19  # the last token of the reply was never decoded
    hits = {
        name: (one.cache.hit, one.cache.source, one.cache.miss_reason) for name, one in live.items()
    }
    assert hits["cold"] == (m.HitKind.COLD, "none", "cache_off")
    assert hits["same"] == (m.HitKind.EXACT, "live", None)
    assert hits["fork"] == (m.HitKind.PARTIAL, "live", "diverges:150")
    assert hits["next"] == (m.HitKind.PARTIAL, "live", "not_stored:219")


@pytest.mark.parametrize("n_tokens", [63, 64, 100])
def test_an_exact_repeat_gives_its_first_token_without_a_decode(load: Load, n_tokens: int) -> None:
    base = prompt(n_tokens, n_tokens)
    ways: list[dict[str, float]] = [
        {},
        {"temperature": 0.8, "seed": 11},
        {"temperature": 1.2, "seed": 12, "top_k": 20, "repetition_penalty": 1.2},
        {"temperature": 1.0, "seed": 13, "top_p": 0.8},
    ]
    runs = [ask(f"{index}", base, 1, **way) for index, way in enumerate(ways)]
    repeats = [ask(f"again {index}", base, 1, **way) for index, way in enumerate(ways)]

    def script() -> Script:
        for run in (runs[0], *repeats):
            yield [run]

    played = EngineRun(load())
    live = played.play(script())
    assert played.rows_decoded == n_tokens
    expected = alone(load, runs)
    for index in range(len(ways)):
        assert live[f"again {index}"].tokens == expected[str(index)].tokens
        assert live[f"again {index}"].reused == n_tokens
        assert live[f"again {index}"].cache.hit is m.HitKind.EXACT


def test_without_kept_logits_the_last_token_is_computed_again(load: Load) -> None:
    base = prompt(12, 100)

    def script() -> Script:
        yield [ask("cold", base, 6)]
        yield [ask("same", base, 6)]

    played = EngineRun(load(), logits=FORGETFUL)
    live = played.play(script())
    assert live["same"].reused == 99
    assert live["same"].cache.hit is m.HitKind.EXACT
    assert live["same"].tokens == live["cold"].tokens
    assert played.rows_decoded == 100 + 1 + 2 * 5


def test_identical_prompts_at_once_are_read_once(load: Load) -> None:
    base, n = prompt(4, 300), 8
    runs = [ask(str(index), base, 12, seed=index, temperature=index / 10) for index in range(n)]

    def script() -> Script:
        yield runs

    played = EngineRun(load(n_batch=64, n_ubatch=64), exact=ALWAYS)
    live = played.play(script())
    must_agree(runs, live, alone(load, runs))
    assert played.rows_decoded <= 300 + (n - 1) + n * 11
    assert [live[str(index)].reused for index in range(n)] == [0] + [299] * (n - 1)
    assert len(live["5"].progress) >= 4  # a follower's caller sees the leader's progress
    assert all(one.cache.hit is m.HitKind.EXACT for name, one in live.items() if name != "0")


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_when_the_leader_ends_early_another_continues_from_there(load: Load, how: str) -> None:
    base = prompt(5, 400)
    runs = [
        ask("leader", base, 4),
        ask("second", base, 4),
        ask("third", [*base[:350], 7, 8, 9], 4),
    ]

    def stop_leader(run: EngineRun, message: object) -> None:
        if isinstance(message, m.PrefillProgress) and message.ref == "leader":
            if message.done == 128 and how == "cancel":
                run.commands.put(m.CancelRun("leader"))
            elif message.done == 128:
                leader = next(r for r in run.engine._running if r.spec.ref == "leader")
                leader.clock.deadline = 0.0

    def script() -> Script:
        yield runs

    played = EngineRun(load(n_batch=64, n_ubatch=64), on_event=stop_leader, exact=ALWAYS)
    live = played.play(script())
    leader = live["leader"]
    if how == "cancel":
        assert leader.done is not None
        assert leader.done.finish_reason is m.FinishReason.CANCELLED
    else:
        assert leader.failed is not None
        assert leader.failed.reason is m.FailReason.DEADLINE
    must_agree(runs[1:], live, alone(load, runs))
    assert (live["second"].reused, live["third"].reused) == (128, 350)
    assert played.rows_decoded == 400 + 3 + 2 * 3


def test_a_leader_whose_decode_fails_fails_alone() -> None:
    from native.errors import DecodeFailed

    base = prompt(6, 300)
    backend = StubBackend.load("stub", ModelParams(n_ctx=N_CTX, n_batch=64, n_ubatch=64))
    decode, calls = backend.decode, []

    def failing(batch: object) -> None:
        calls.append(batch)
        if len(calls) == 3:
            raise DecodeFailed(-3, "broken for this test")
        decode(batch)  # type: ignore[arg-type]

    backend.decode = failing  # type: ignore[method-assign, assignment]

    def script() -> Script:
        yield [ask("leader", base), ask("second", base)]

    run = EngineRun(backend)
    live = run.play(script())
    assert live["leader"].failed is not None
    assert live["leader"].failed.reason is m.FailReason.ENGINE_ERROR
    assert run.engine.counts()["contexts_rebuilt"] == 1  # so it reads it all itself
    assert live["second"].reused == 0
    assert live["second"].tokens


def test_one_sequence_is_enough_to_share(load: Load) -> None:
    base = prompt(7, 100)
    runs = [ask("cold", base, 8), ask("same", base, 8), ask("fork", [*base[:60], 3, 4], 8)]

    def script() -> Script:
        for run in runs:
            yield [run]

    live = EngineRun(load(n_seq_max=1), exact=ALWAYS).play(script())
    assert [live[run.request_id].reused for run in runs] == [0, 100, 60]
    must_agree(runs, live, alone(load, runs))


def test_shared_cells_let_more_requests_run_at_once(load: Load) -> None:
    """Eight times 600 tokens in a context of 1,024 cells."""
    base = prompt(8, 600)
    most = 0

    def watch(run: EngineRun, message: object) -> None:
        nonlocal most
        del message
        most = max(most, run.engine.counts()["running"])

    def script() -> Script:
        yield [ask(str(index), [*base, index + 5], 20) for index in range(8)]

    live = EngineRun(load(), on_event=watch).play(script())
    assert all(one.done for one in live.values())
    assert most == 8


def test_idle_sequences_make_room_and_wear_out(load: Load) -> None:
    policy = LivePolicy(idle_steps_unstored=50, max_idle_share=1.0, max_idle=8)
    seen: list[int] = []

    def watch(run: EngineRun, message: object) -> None:
        if isinstance(message, m.Completed):
            seen.append(run.engine.counts()["idle_sequences"])

    def script() -> Script:
        for index in range(4):
            yield [ask(f"fill{index}", prompt(20 + index, 200), 2)]
        yield [ask("big", prompt(30, 600), 2)]  # needs the cells of some of them
        yield [ask("long", prompt(31, 20), 60)]  # runs beside the rest until they are worn out
        yield [ask("last", prompt(32, 20), 2)]

    live = EngineRun(load(), policy=policy, on_event=watch).play(script())
    assert all(one.done for one in live.values())
    assert seen[:4] == [0, 1, 2, 3]
    assert 0 < seen[4] < 4
    assert seen[5] == 0
    assert seen[6] == 1  # only "long" itself


def test_nothing_leaks_over_five_hundred_requests_with_cancels(load: Load) -> None:
    """Random prompts with common beginnings; some are cancelled wherever they happen to be."""
    rng = random.Random(9)
    bases = [prompt(40 + index, rng.randrange(50, 250)) for index in range(5)]
    doomed: dict[str, int] = {}

    def cancel_some(run: EngineRun, message: object) -> None:
        if isinstance(message, m.PrefillProgress | m.TokensDelivered) and message.ref in doomed:
            doomed[message.ref] -= 1
            if doomed[message.ref] == 0:
                run.commands.put(m.CancelRun(message.ref))

    def script() -> Script:
        for round_number in range(50):
            batch: list[object] = []
            for index in range(10):
                base = rng.choice(bases)
                name = f"{round_number}.{index}"
                cut = rng.randrange(1, len(base))
                tail = prompt(rng.randrange(1000), rng.randrange(0, 30))
                batch.append(ask(name, [*base[:cut], *tail], rng.randrange(1, 6)))
                if rng.random() < 0.3:
                    doomed[name] = rng.randrange(1, 4)
            yield batch

    backend = load(n_batch=64, n_ubatch=64)
    played = EngineRun(backend, on_event=cancel_some)
    close, left = backend.close, {}

    def look_then_close() -> None:
        live = played.engine._live
        left["free"] = len(live._free) + len(live.idle)
        live.drop_idle()
        left["held"] = [backend.seq_range(seq) for seq in range(backend.info.n_seq_max)]
        if isinstance(backend, StubBackend):
            left["cells"] = backend._cells._free
        close()

    backend.close = look_then_close  # type: ignore[method-assign]
    live = played.play(script())
    assert len(live) == 500
    assert all(one.done for one in live.values()), next(o.failed for o in live.values() if o.failed)
    assert sum(one.reused for one in live.values()) > 15_000
    assert left.pop("free") == 8
    assert left.pop("held") == [None] * 8
    assert left.get("cells", N_CTX) == N_CTX
