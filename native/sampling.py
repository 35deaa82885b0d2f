"""The sampling algorithm in Python: what ``shim/sampler.cpp`` does, for the stub.

Both must agree token for token; a test runs the two side by side on real logits.
"""

from __future__ import annotations

import heapq
import math
import struct
from array import array
from collections import deque
from collections.abc import Iterable

from native.errors import DecodeFailed
from native.params import SamplingParams

_MASK = (1 << 64) - 1


def mix(x: int) -> int:
    """Scramble 64 bits: the finaliser of splitmix64."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def uniform(seed: int, index: int) -> float:
    """Return the number in [0, 1) that token ``index`` of a request is drawn with."""
    return (mix(mix(seed) ^ index) >> 11) * 2.0**-53


class TokenWindow:
    """The last ``size`` accepted tokens."""

    def __init__(self, size: int, history: Iterable[int]) -> None:
        self._tokens: deque[int] = deque(history, maxlen=size)

    def accept(self, token: int) -> None:
        self._tokens.append(token)

    def distinct(self) -> set[int]:
        return set(self._tokens)


def choose(logits: array[float], params: SamplingParams, window: TokenWindow, index: int) -> int:
    """Choose a token id from float32 ``logits``, which may be changed."""
    _penalise(logits, params.repetition_penalty, window)
    if params.temperature == 0 or params.top_k == 1:
        highest = max(logits)
        if math.isfinite(highest):  # not so when NaN comes first; the long way finds out
            return logits.index(highest)
    candidates = [(-logit, token) for token, logit in enumerate(logits) if logit > -math.inf]
    if not candidates or min(candidates)[0] == -math.inf:
        raise DecodeFailed(0, "the logits are not finite")
    best, best_token = min(candidates)
    if params.temperature == 0 or params.top_k == 1:
        return best_token
    if params.top_k:
        candidates = heapq.nsmallest(params.top_k, candidates)
    if params.top_p < 1 or params.min_p > 0:
        candidates = _likely(candidates, params, best)
    else:
        candidates.sort(key=lambda entry: entry[1])
    weights = [math.exp((best - negative) / params.temperature) for negative, _ in candidates]
    return _draw(candidates, weights, uniform(params.seed, index))


def _penalise(logits: array[float], penalty: float, window: TokenWindow) -> None:
    if penalty == 1.0:
        return
    for token in window.distinct():
        logit = logits[token]
        changed = logit / penalty if logit > 0 else logit * penalty
        logits[token] = struct.unpack("f", struct.pack("f", changed))[0]


def _likely(
    candidates: list[tuple[float, int]], params: SamplingParams, best: float
) -> list[tuple[float, int]]:
    """Keep the shortest best-first run with probability top_p, then cut it at min_p."""
    total = 0.0
    for negative, _ in candidates:
        total += math.exp(best - negative)
    kept: list[tuple[float, int]] = []
    reached = 0.0
    for entry in sorted(candidates):
        weight = math.exp(best - entry[0])
        if kept and (weight < params.min_p or reached >= params.top_p * total):
            break
        kept.append(entry)
        reached += weight
    return kept


def _draw(candidates: list[tuple[float, int]], weights: list[float], u: float) -> int:
    total = 0.0
    for weight in weights:
        total += weight
    reached = 0.0
    for (_, token), weight in zip(candidates, weights, strict=True):
        reached += weight
        if reached > u * total:
            return token
    return candidates[-1][1]
