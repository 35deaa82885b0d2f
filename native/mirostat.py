"""Mirostat 1 and 2 in Python, as in ``shim/choice.cpp``: sampling with a target surprise.

S. Basu et al., "Mirostat: a neural text decoding algorithm that directly controls perplexity".
"""

from __future__ import annotations

import heapq
import math

from native.sampling_params import SamplingParams

_N_LIKELIEST = 100  # tokens for the estimate, as in the paper

_Candidate = tuple[float, int]


def choose(
    candidates: list[_Candidate], params: SamplingParams, mu: float, n_vocab: int, u: float
) -> tuple[int, float]:
    """A token, and mu once it is accepted. Candidates are (minus logit, token), by token."""
    best = min(candidates)

    def weight(candidate: _Candidate) -> float:
        return math.exp((best[0] - candidate[0]) / params.temperature)

    if params.mirostat == 1:
        likeliest = heapq.nsmallest(_N_LIKELIEST, candidates)
        n = _count(likeliest, len(candidates), params.temperature, mu, n_vocab)
        kept = heapq.nsmallest(n, candidates)
    else:
        total = 0.0
        for candidate in candidates:
            total += weight(candidate)
        kept = [one for one in candidates if _bits(weight(one) / total) <= mu] or [best]
    total = 0.0
    for candidate in kept:
        total += weight(candidate)
    reached, chosen = 0.0, kept[-1]
    for candidate in kept:
        reached += weight(candidate)
        if reached > u * total:
            chosen = candidate
            break
    share = weight(chosen) / total
    learned = params.mirostat_eta * (_bits(share) - params.mirostat_tau) if share > 0 else 0.0
    return chosen[1], mu - learned


def _bits(share: float) -> float:
    return -math.log2(share) if share > 0 else math.inf


def _count(likeliest: list[_Candidate], n: int, temperature: float, mu: float, n_vocab: int) -> int:
    """How many of the best to keep, assuming that probabilities fall as a power of the rank."""
    products = squares = 0.0
    for i in range(len(likeliest) - 1):
        t = math.log((i + 2) / (i + 1))
        products += t * ((likeliest[i + 1][0] - likeliest[i][0]) / temperature)
        squares += t * t
    slope = products / squares if squares > 0 else 0.0
    epsilon = slope - 1
    if slope <= 0 or epsilon == 0:
        return n
    try:
        top = epsilon * math.pow(2.0, mu)
        k = math.pow(top / (1 - math.pow(n_vocab, -epsilon)), 1 / slope)
    except (OverflowError, ValueError, ZeroDivisionError):
        return n
    return n if not k < n else max(1, int(k))
