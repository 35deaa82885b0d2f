"""The native sampler against the written algorithm, bias, penalties, log-probabilities, seeds."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from native import (
    Batch,
    DecodeFailed,
    InvalidParam,
    InvalidToken,
    ModelParams,
    NoTokenLeft,
    SamplingParams,
)
from native.llama import LlamaBackend
from native.sampling import Breaker, PythonSampler, resolved_biases
from native.sampling_params import SAMPLERS

pytestmark = pytest.mark.model

PARAMS = ModelParams(n_ctx=1024, n_batch=256, n_seq_max=5, n_threads=1)
PROMPT = [32 + (i * 37) % 90 for i in range(40)] * 2  # repeats itself: penalties have work
BANNED = -math.inf


@pytest.fixture(scope="module")
def b(tiny_gguf: Path) -> Iterator[LlamaBackend]:
    backend = LlamaBackend.load(tiny_gguf, PARAMS)
    yield backend
    backend.close()


@pytest.fixture(autouse=True)
def empty_again(b: LlamaBackend) -> Iterator[None]:
    yield
    for seq in range(b.info.n_seq_max):
        b.seq_remove(seq, 0)


def prefill(b: LlamaBackend, tokens: list[int], seq: int = 0, start: int = 0) -> int:
    batch = Batch()
    row = batch.extend_prefill(tokens, start, seq, True)
    assert row is not None
    b.decode(batch)
    return row


def any_params(rng: random.Random) -> SamplingParams:
    """Parameters of every kind, each off about half of the time."""

    def maybe(off: float, *values: float) -> float:
        return rng.choice(values) if rng.random() < 0.5 else off

    biased = rng.sample(range(512), rng.choice((0, 0, 3, 40)))
    in_order = rng.sample(SAMPLERS, rng.randrange(len(SAMPLERS) + 1))
    return SamplingParams(
        temperature=maybe(0.0, 0.2, 0.8, 1.5, 4.0),
        top_k=int(maybe(0, 1, 5, 40, 300)),
        top_p=maybe(1.0, 0.95, 0.5, 0.1),
        min_p=maybe(0.0, 0.02, 0.3),
        typical_p=maybe(1.0, 0.9, 0.4),
        repetition_penalty=maybe(1.0, 1.3, 0.7),
        frequency_penalty=maybe(0.0, 0.8, -0.5),
        presence_penalty=maybe(0.0, 1.5, -0.5),
        repetition_window=int(maybe(64, 0, 3, 500)),
        dry_multiplier=maybe(0.0, 0.8, 3.0),
        dry_base=maybe(1.75, 1.0, 1.1, 30.0),
        dry_allowed_length=int(maybe(2, 1, 4)),
        dry_window=int(maybe(4096, 0, 10, 60)),
        dry_breakers=rng.choice((("\n", ":", '"', "*"), (), ("a",), ("ab", "?A"))),
        xtc_probability=maybe(0.0, 0.5, 1.0),
        xtc_threshold=maybe(0.1, 0.001, 0.3, 0.6),
        mirostat=rng.choice((0, 0, 0, 1, 2)),
        mirostat_tau=maybe(5.0, 1.0, 8.0),
        mirostat_eta=maybe(0.1, 0.9),
        logit_bias=tuple((token, rng.choice((BANNED, 5.0, -3.5))) for token in biased),
        seed=rng.getrandbits(64),
        samplers=rng.choice((SAMPLERS, tuple(in_order))),
        top_n_sigma=maybe(0.0, 0.3, 1.0, 2.5),
        dynatemp_range=maybe(0.0, 0.0, 0.5, 3.0),
        dynatemp_exponent=maybe(1.0, 0.3, 2.0),
        min_keep=int(maybe(0, 1, 3, 50)),
        ignore_eos=rng.random() < 0.3,
    )


def written(b: LlamaBackend, params: SamplingParams, prompt: list[int]) -> PythonSampler:
    breakers = [
        Breaker.of(
            text,
            b.info.n_vocab,
            lambda token: b.piece(token, special=True),
            lambda sought: b.tokenize(sought, add_special=False, parse_special=True),
        )
        for text in params.dry_breakers
        if params.dry_multiplier
    ]
    biases = resolved_biases(params, b.tokenize, b.info.eog_tokens)
    sampler = PythonSampler(params, breakers, biases)
    for token in prompt:
        sampler.accept(token, is_reply=False)
    return sampler


def some_logits(b: LlamaBackend, rng: random.Random) -> array[float]:
    """From nearly flat to one with a clear maximum, with ties and impossible tokens."""
    scale = rng.choice((0.5, 3.0, 12.0))
    logits = array("f", (round(rng.gauss(0, scale), 2) for _ in range(b.info.n_vocab)))
    for token in rng.sample(range(b.info.n_vocab), 5):
        logits[token] = BANNED
    return logits


@pytest.mark.parametrize("case", range(8))
def test_the_native_sampler_is_the_written_algorithm(b: LlamaBackend, case: int) -> None:
    """native/sampling.py and the shim's sampler are one algorithm in two languages."""
    rng = random.Random(case)
    real = b.logits(prefill(b, PROMPT))
    for _ in range(60):
        params = any_params(rng)
        native, python = b.new_sampler(params, PROMPT), written(b, params, PROMPT)
        for index in range(6):
            logits = array("f", real) if index % 2 else some_logits(b, rng)
            before = logits.tobytes()
            token = b.sample_from(logits, native, index)
            assert token == python.choose(logits, index), params
            assert logits.tobytes() == before, "every change is taken back"
            said = token if rng.random() < 0.8 else rng.choice(PROMPT)
            native.accept(said)
            python.accept(said)


def test_kept_logits_choose_what_the_decode_chose(b: LlamaBackend) -> None:
    row = prefill(b, PROMPT)
    kept = b.logits(row)
    rng = random.Random(7)
    for _ in range(50):
        params = any_params(rng)
        expected = b.sample(row, b.new_sampler(params, PROMPT), 3)
        assert b.sample_from(kept, b.new_sampler(params, PROMPT), 3) == expected
    with pytest.raises(InvalidParam, match="512 float32"):
        b.sample_from(kept[:-1], b.new_sampler(SamplingParams()), 0)
    with pytest.raises(InvalidParam, match="logits"):
        b.sample_from(array("d", kept), b.new_sampler(SamplingParams()), 0)  # type: ignore[arg-type]


def reply(b: LlamaBackend, params: SamplingParams, n: int) -> tuple[list[int], list[array[float]]]:
    """``n`` tokens after the prompt, and the logits that each was chosen from."""
    said: list[int] = []
    seen: list[array[float]] = []
    sampler = b.new_sampler(params, PROMPT)
    row, batch = prefill(b, PROMPT), Batch()
    for index in range(n):
        seen.append(b.logits(row))
        token = b.sample(row, sampler, index)
        sampler.accept(token)
        said.append(token)
        batch.clear()
        row = batch.add(token, len(PROMPT) + index, 0, True)
        b.decode(batch)
    b.seq_remove(0, 0)
    return said, seen


SEEDED = SamplingParams(
    temperature=1.2, seed=11, top_p=0.9, typical_p=0.95, repetition_penalty=1.1,
    frequency_penalty=0.2, dry_multiplier=0.8, xtc_probability=0.5, xtc_threshold=0.01,
)  # fmt: skip


def test_a_seed_gives_the_same_text_wherever_it_is_resumed(b: LlamaBackend) -> None:
    """Other batches round KV differently, so the logits are those of the unbroken reply."""
    whole, seen = reply(b, SEEDED, 24)
    assert len(set(whole)) > 8, "no constant text would prove anything"
    for at in range(24):
        sampler = b.new_sampler(SEEDED, PROMPT)
        for token in whole[:at]:
            sampler.accept(token)
        for index in range(at, 24):
            token = b.sample_from(seen[index], sampler, index)
            sampler.accept(token)
            assert token == whole[index]
    assert reply(b, SamplingParams(temperature=1.2, seed=12), 24)[0] != whole


def test_a_resumed_mirostat_reply_begins_with_its_first_mu(b: LlamaBackend) -> None:
    """As documented: what it has learned is not part of the text."""
    params = SamplingParams(temperature=1.0, seed=3, mirostat=2, mirostat_tau=3.0, mirostat_eta=0.9)
    whole, seen = reply(b, params, 24)
    fresh = b.new_sampler(params, PROMPT)
    assert b.sample_from(seen[0], fresh, 0) == b.sample_from(seen[0], fresh, 0) == whole[0]
    again, python = b.new_sampler(params, PROMPT), PythonSampler(params)
    for token in whole[:12]:
        again.accept(token)
    python.accept(65)
    assert python.mu == 6.0
    chosen = [b.sample_from(seen[index], again, index) for index in range(12, 24)]
    assert chosen == [python.choose(seen[index], index) for index in range(12, 24)]


def test_a_seed_gives_the_same_text_in_a_batch(b: LlamaBackend) -> None:
    seeds = [1, 2, 3, 4]
    alone = [reply(b, SamplingParams(temperature=1.2, seed=seed), 16)[0] for seed in seeds]
    samplers = [b.new_sampler(SamplingParams(temperature=1.2, seed=seed), PROMPT) for seed in seeds]
    together: list[list[int]] = [[] for _ in seeds]
    logits = [b.logits(prefill(b, PROMPT, seq)) for seq in range(4)]
    batch = Batch()
    for index in range(16):
        batch.clear()
        for seq in range(4):
            token = b.sample_from(logits[seq], samplers[seq], index)
            samplers[seq].accept(token)
            together[seq].append(token)
            batch.add(token, len(PROMPT) + index, seq, True)
        b.decode(batch)
        logits = [b.logits(row) for row in range(4)]
    assert together == alone


def test_a_bias_bans_and_commands(b: LlamaBackend) -> None:
    row = prefill(b, PROMPT)
    best = b.sample(row, b.new_sampler(SamplingParams()), 0)
    second = b.sample(row, b.new_sampler(SamplingParams(logit_bias=((best, BANNED),))), 0)
    assert second != best
    assert b.sample(row, b.new_sampler(SamplingParams(logit_bias=((300, 1e6),))), 0) == 300
    assert b.sample(row, b.new_sampler(SamplingParams()), 0) == best, "and nothing stays behind"
    hot = SamplingParams(temperature=50.0, logit_bias=((7, BANNED),), seed=1)
    sampler = b.new_sampler(hot)
    assert 7 not in {b.sample(row, sampler, index) for index in range(3000)}
    with pytest.raises(InvalidToken):
        b.new_sampler(SamplingParams(logit_bias=((512, 1.0),)))


def test_a_bias_of_a_text_is_that_of_each_of_its_tokens(b: LlamaBackend) -> None:
    """As llama-server does: without control tokens, and a token that comes twice gets it twice."""
    flat = array("f", [0.0] * 512)
    flat[7] = 1.0

    def best(*biases: tuple[int | str, float]) -> int:
        return b.sample_from(flat, b.new_sampler(SamplingParams(logit_bias=biases)), 0)

    assert best(("k", 2.0)) == ord("k")
    assert best(("kk", 0.6)) == ord("k")
    assert best(("kx", 0.6)) == 7
    assert best(("kx", 5.0), ("k", BANNED)) == ord("x")
    assert best((ord("k"), 5.0), ("k", -5.0)) == 7
    eos = next(iter(b.info.eog_tokens))
    name = b.piece(eos, special=True).decode()
    assert eos not in b.tokenize(name, add_special=False)
    assert best((name, 2.0)) in b.tokenize(name, add_special=False)


def test_ignoring_the_end_bans_every_token_that_ends_a_reply(b: LlamaBackend) -> None:
    (eos,) = b.info.eog_tokens
    flat = array("f", [0.0] * 512)
    flat[eos] = 9.0
    for more in ({}, {"temperature": 1.0}, {"logit_bias": ((eos, 50.0),)}):
        params = SamplingParams(**more)  # type: ignore[arg-type]
        assert b.sample_from(flat, b.new_sampler(params), 0) == eos
        ignoring = b.new_sampler(replace(params, ignore_eos=True))
        assert all(b.sample_from(flat, ignoring, index) != eos for index in range(50))


def test_the_greedy_form_of_parameters_takes_the_likeliest(b: LlamaBackend) -> None:
    rng = random.Random(3)
    for _ in range(200):
        params, logits = any_params(rng), some_logits(b, rng)
        greedy = b.new_sampler(params.greedy(), PROMPT)
        edits = replace(
            params,
            samplers=tuple(one for one in params.samplers if one in ("penalties", "dry")),
        )
        python = written(b, edits, PROMPT)
        edited = array("f", logits)
        python._edit(edited)
        best = max(range(512), key=lambda token: (edited[token], -token))
        assert {b.sample_from(logits, greedy, index) for index in range(3)} == {best}


def test_when_no_token_is_left_the_error_names_the_cause(b: LlamaBackend) -> None:
    only = array("f", [BANNED] * 512)
    only[9] = 1.0
    sampler = b.new_sampler(SamplingParams(logit_bias=((9, BANNED),)))
    with pytest.raises(NoTokenLeft):
        b.sample_from(only, sampler, 0)
    assert only[9] == 1.0
    for broken in (math.nan, BANNED, math.inf):
        with pytest.raises(DecodeFailed):
            b.sample_from(array("f", [broken] * 512), sampler, 0)


@pytest.mark.parametrize(
    "how",
    [{"repetition_penalty": 90.0}, {"frequency_penalty": 50.0}, {"presence_penalty": 50.0}],
    ids=lambda how: next(iter(how)),
)
def test_penalties_see_the_prompt(b: LlamaBackend, how: dict[str, float]) -> None:
    """Penalties must not begin with the reply: repetitions of the prompt count."""
    row = prefill(b, PROMPT)
    best = b.sample(row, b.new_sampler(SamplingParams()), 0)
    params = SamplingParams(**how)  # type: ignore[arg-type]
    assert b.sample(row, b.new_sampler(params, [65, best]), 0) != best
    assert b.sample(row, b.new_sampler(params, [best, *[65] * 64]), 0) == best, "out of the window"


def test_dry_ends_a_repetition_and_a_breaker_protects_it(b: LlamaBackend) -> None:
    flat = array("f", [0.0] * 512)
    flat[ord("d")] = 1.0
    text = list(b"abcd xyz abc")
    dry = SamplingParams(dry_multiplier=2.0)
    assert b.sample_from(flat, b.new_sampler(SamplingParams(), text), 0) == ord("d")
    assert b.sample_from(flat, b.new_sampler(dry, text), 0) != ord("d")
    assert b.sample_from(flat, b.new_sampler(dry, list(b"abcd xyz aXc")), 0) == ord("d")
    broken = SamplingParams(dry_multiplier=2.0, dry_breakers=("c",))
    assert b.sample_from(flat, b.new_sampler(broken, text), 0) == ord("d")


def test_log_probabilities_are_of_the_models_own_distribution(b: LlamaBackend) -> None:
    row = prefill(b, PROMPT)
    logits = b.logits(row)
    total = math.log(sum(math.exp(one) for one in logits))
    found = b.logprobs(row, 77, 20)
    assert found.chosen == pytest.approx(logits[77] - total, abs=1e-6)
    ranked = sorted(range(512), key=lambda token: (-logits[token], token))[:20]
    assert [token for token, _ in found.top] == ranked
    assert all(
        value == pytest.approx(logits[token] - total, abs=1e-6) for token, value in found.top
    )
    assert b.logprobs_from(logits, 77, 20) == found
    assert b.logprobs(row, 77, 0).top == ()
    for token, n in ((512, 0), (-1, 0), (3, 21), (3, -1)):
        with pytest.raises((InvalidParam, InvalidToken)):
            b.logprobs(row, token, n)
