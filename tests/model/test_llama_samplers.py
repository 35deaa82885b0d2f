"""What may be drawn, and how often: our stages against llama.cpp's own samplers, in any order."""

from __future__ import annotations

import random
from array import array

import pytest

from native.sampling import PythonSampler
from native.sampling_params import SAMPLERS, SamplingParams
from tests.support.llama_samplers import LlamaSamplers, shares_of

pytestmark = pytest.mark.model

NAMES = tuple(name for name in SAMPLERS if name != "dry")
N_VOCAB = 400


def any_params(rng: random.Random) -> SamplingParams:
    def maybe(off: float, *values: float) -> float:
        return rng.choice(values) if rng.random() < 0.6 else off

    return SamplingParams(
        samplers=rng.choice((NAMES, tuple(rng.sample(NAMES, rng.randrange(len(NAMES) + 1))))),
        temperature=maybe(1.0, 0.0, 0.2, 0.8, 1.5, 4.0),
        top_k=int(maybe(0, 1, 5, 40, 300)),
        top_p=maybe(1.0, 0.95, 0.5, 0.1),
        min_p=maybe(0.0, 0.02, 0.3),
        typical_p=maybe(1.0, 0.9, 0.4),
        repetition_penalty=maybe(1.0, 1.3, 0.7),
        frequency_penalty=maybe(0.0, 0.8, -0.5),
        presence_penalty=maybe(0.0, 1.5),
        repetition_window=int(maybe(64, 0, 3)),
        xtc_probability=maybe(0.0, 1.0),
        xtc_threshold=maybe(0.1, 0.001, 0.3, 0.6),
        top_n_sigma=maybe(0.0, 0.3, 1.0, 2.5),
        dynatemp_range=maybe(0.0, 0.5, 3.0),
        dynatemp_exponent=maybe(1.0, 0.3, 2.0),
        min_keep=int(maybe(0, 1, 3, 20)),
    )


def differs_by_design(p: SamplingParams) -> bool:
    """Where llama.cpp computes with tokens of no probability, or may leave out the likeliest at 0.

    Its top_n_sigma leaves tokens in the list, at minus infinity: they count for ``min_keep``, and
    typical_p makes NaN of them, as of what a low temperature rounds to 0.
    """
    typical = p.typical_p < 1 and "typical_p" in p.samplers
    sigma = p.top_n_sigma > 0 and "top_n_sigma" in p.samplers
    xtc = p.xtc_probability > 0 and p.xtc_threshold <= 0.5 and "xtc" in p.samplers
    heated = "temperature" in p.samplers
    is_cold = heated and p.temperature == 0 and not p.dynatemp_range
    early = heated and p.samplers.index("temperature") < len(p.samplers) - 1
    return (
        (sigma and (typical or p.min_keep > 1))
        or (is_cold and (typical or xtc or early))
        or (typical and early)
    )


def ours(p: SamplingParams, history: list[int], logits: array[float]) -> dict[int, float]:
    sampler = PythonSampler(p)
    for token in history:
        sampler.accept(token, is_reply=False)
    if sampler._is_greedy:
        return {sampler.choose(logits, 0): 1.0}
    edited = array("f", logits)
    sampler._edit(edited)
    candidates, temperature = sampler.cut(edited, 0)
    return shares_of([(token, -negative) for negative, token in candidates], temperature)


@pytest.mark.parametrize("case", range(4))
def test_every_order_of_samplers_leaves_what_llama_cpp_leaves(case: int) -> None:
    judge, rng = LlamaSamplers(), random.Random(case)
    n_compared = 0
    for _ in range(300):
        params = any_params(rng)
        history = [rng.randrange(N_VOCAB) for _ in range(30)]
        scale = rng.choice((0.5, 3.0))
        logits = array("f", (rng.gauss(0, scale) for _ in range(N_VOCAB)))
        if differs_by_design(params):
            continue
        n_compared += 1
        found, expected = ours(params, history, logits), judge.shares(params, history, logits)
        assert found.keys() == expected.keys(), params
        assert found == pytest.approx(expected, abs=1e-4), params
    assert n_compared > 120


def test_the_default_order_is_llama_cpps() -> None:
    """Its server's: penalties, dry, top_n_sigma, top_k, typ_p, top_p, min_p, xtc, temperature."""
    judge, rng = LlamaSamplers(), random.Random(9)
    params = SamplingParams(
        samplers=NAMES, temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, typical_p=0.9,
        repetition_penalty=1.1, xtc_probability=1.0, xtc_threshold=0.05, dynatemp_range=0.4,
    )  # fmt: skip
    for _ in range(50):
        history = [rng.randrange(N_VOCAB) for _ in range(30)]
        logits = array("f", (rng.gauss(0, 3) for _ in range(N_VOCAB)))
        expected = judge.shares(params, history, logits)
        assert ours(params, history, logits) == pytest.approx(expected, abs=1e-4)
