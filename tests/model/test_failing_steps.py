"""One request's fault ends that request, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from actors import messages as m
from native.backend import Backend, Batch
from native.errors import DecodeAborted, DecodeFailed
from native.llama import LlamaBackend
from native.params import ModelParams
from native.stub import StubBackend
from tests.support.engine_runs import EngineRun, Outcome, Script, ask

pytestmark = pytest.mark.model
BAD = 3
"""The token that breaks whatever decodes it, in these tests."""
Load = Callable[[], Backend]


@pytest.fixture(params=["stub", "llama"])
def load(request: pytest.FixtureRequest, tiny_gguf: Path) -> Load:
    def loaded() -> Backend:
        params = ModelParams(n_ctx=1024, n_threads=1, n_batch=128, n_ubatch=128)
        if request.param == "stub":
            return StubBackend.load("stub", params)
        return LlamaBackend.load(tiny_gguf, params)

    return loaded


def prompt(seed: int, n_tokens: int) -> list[int]:
    return random.Random(seed).choices(range(5, 200), k=n_tokens)


def breaking(backend: Backend, error: Exception) -> list[Sequence[int]]:
    """Make decodes of ``BAD`` fail as llama.cpp's do: a part may be in the memory. Their rows."""
    decode, failed = backend.decode, []

    def decoding(batch: Batch) -> None:
        decode(batch)
        if BAD in batch.tokens:
            failed.append(list(batch.seqs))
            raise error

    backend.decode = decoding  # type: ignore[method-assign]
    return failed


def good(n: int) -> list[m.Run]:
    return [ask(f"good {i}", prompt(i, 60 + 10 * i), 12) for i in range(n)]


def expected(load: Load, runs: list[m.Run]) -> dict[str, list[int]]:
    def script() -> Script:
        for one in runs:
            yield [one]

    return {name: one.tokens for name, one in EngineRun(load()).play(script()).items()}


def play(backend: Backend, *turns: list[m.Run]) -> tuple[EngineRun, dict[str, Outcome]]:
    def script() -> Script:
        for turn in turns:  # noqa: UP028 - a script is sent what came of each turn
            yield turn

    engine = EngineRun(backend)
    return engine, engine.play(script())


def test_a_decode_error_is_brought_home_to_the_request_that_causes_it(load: Load) -> None:
    """The context is a new one afterwards; the others go on from where they were."""
    backend = load()
    failures = breaking(backend, DecodeFailed(-3, "broken for this test"))
    runs = good(4)
    engine, got = play(
        backend,
        [*runs[:2], ask("bad", [*prompt(9, 30), BAD, *prompt(8, 30)], 8), *runs[2:]],
        [ask("after", prompt(0, 60), 12)],
    )
    failed = got["bad"].failed
    assert failed is not None
    assert failed.reason is m.FailReason.ENGINE_ERROR
    assert "broken for this test" in failed.detail
    truth = expected(load, runs)
    for name, tokens in truth.items():
        assert got[name].tokens == tokens, name
    assert got["after"].tokens == truth["good 0"]
    assert len(failures) == 2  # once together, once alone
    assert len({*failures[1]}) == 1
    assert engine.engine.counts()["contexts_rebuilt"] == 2


def test_numbers_that_are_none_end_only_their_request(load: Load) -> None:
    backend = load()
    sample, runs = backend.sample, good(3)

    def sampling(row: int, sampler: object, index: int) -> int:
        if sampler in marked and index == 4:
            raise DecodeFailed(0, "the logits are not finite")
        return sample(row, sampler, index)  # type: ignore[arg-type]

    marked: list[object] = []
    new_sampler = backend.new_sampler

    def making(params: object, *history: object, **more: object) -> object:
        made = new_sampler(params, *history, **more)  # type: ignore[arg-type]
        if getattr(params, "seed", 0) == 666:
            marked.append(made)
        return made

    backend.sample = sampling  # type: ignore[method-assign, assignment]
    backend.new_sampler = making  # type: ignore[method-assign, assignment]
    bad = [ask(f"bad {i}", prompt(20 + i, 50), 12, seed=666) for i in range(2)]
    engine, got = play(backend, [*runs[:1], bad[0], *runs[1:]], [bad[1]], runs)
    for one in bad:
        outcome = got[one.request_id]
        assert outcome.failed is not None
        assert outcome.failed.reason is m.FailReason.ENGINE_ERROR
        assert len(outcome.tokens) == 4
    for name, tokens in expected(load, runs).items():
        assert got[name].tokens == tokens, name
    assert engine.engine.counts()["contexts_rebuilt"] == 0  # good numbers came in between


def test_a_step_without_end_is_cut_short_and_its_cause_is_found(load: Load) -> None:
    backend = load()
    request_abort, decode = backend.request_abort, backend.decode
    aborted: list[bool] = []

    def aborting() -> None:
        aborted.append(True)
        request_abort()

    def decoding(batch: Batch) -> None:
        decode(batch)
        if BAD in batch.tokens:
            engine.engine.interrupt_overdue(-1.0)  # what a look from the mailbox finds out
            assert aborted
            raise DecodeAborted

    backend.request_abort = aborting  # type: ignore[method-assign]
    backend.decode = decoding  # type: ignore[method-assign]
    runs = good(2)

    def script() -> Script:
        yield [*runs, ask("endless", [*prompt(9, 30), BAD], 8)]

    engine = EngineRun(backend)
    got = engine.play(script())
    failed = got["endless"].failed
    assert failed is not None
    assert failed.reason is m.FailReason.ENGINE_ERROR
    assert "cut short" in failed.detail
    for name, tokens in expected(load, runs).items():
        assert got[name].tokens == tokens, name


def test_nothing_leaks_where_contexts_are_rebuilt(load: Load) -> None:
    """Sixty broken requests among good ones, and then the whole context is free."""
    backend = load()
    breaking(backend, DecodeFailed(-3, "broken for this test"))
    turns = [
        [ask(f"bad {i}", [*prompt(i, 20), BAD], 4), ask(f"fine {i}", prompt(i, 40), 4)]
        for i in range(60)
    ]
    engine, got = play(backend, *turns, [ask("whole", prompt(99, 1000), 20)])
    assert all(one.failed is not None for name, one in got.items() if name.startswith("bad"))
    assert all(one.done is not None for name, one in got.items() if not name.startswith("bad"))
    counts = engine.engine.counts()
    assert (counts["running"], counts["waiting"]) == (0, 0)
