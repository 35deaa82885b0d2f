"""The sampling algorithm of the shim in Python, for the stub.

Both must agree token for token; a test compares the two on real logits. Sums are therefore added in
the same order in both. Grammars exist only in the shim.
"""

from __future__ import annotations

import heapq
import math
import struct
from array import array
from collections import Counter, deque
from collections.abc import Callable, Sequence

from native import mirostat
from native.errors import DecodeFailed, NoTokenLeft
from native.sampling_params import SamplingParams

_MASK = (1 << 64) - 1
_XTC_STREAM = 0x5854435854435854
_FLOAT_LOG_MAX = 88.7  # exp() of more does not fit a float

Candidate = tuple[float, int]
"""Minus the logit, and the token: sorted, the best comes first and the lower id decides a tie."""


def mix(x: int) -> int:
    """Scramble 64 bits: the finaliser of splitmix64."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def uniform(seed: int, index: int) -> float:
    """Return the number in [0, 1) that token ``index`` of a request is drawn with."""
    return (mix(mix(seed) ^ index) >> 11) * 2.0**-53


class Breaker:
    """A text that ends repetitions: the tokens that contain it, and those it is spelled with."""

    def __init__(self, containing: frozenset[int], spelled: tuple[int, ...]) -> None:
        self.containing = containing
        self.spelled = spelled if len(spelled) > 1 else ()

    @classmethod
    def of(
        cls,
        text: str,
        n_vocab: int,
        piece: Callable[[int], bytes],
        tokenize: Callable[[str], Sequence[int]],
    ) -> Breaker:
        sought = text.encode()
        containing = frozenset(token for token in range(n_vocab) if sought in piece(token))
        return cls(containing, tuple(tokenize(text)))


class PythonSampler:
    """The sampling state of one request, and the choice of its next token."""

    def __init__(self, params: SamplingParams, breakers: Sequence[Breaker] = ()) -> None:
        self.params = params
        self.mu = 2 * params.mirostat_tau
        self._breakers = breakers
        self._window: deque[int] = deque(maxlen=params.repetition_window)
        self._dry_tokens: deque[int] = deque(maxlen=params.dry_window)
        self._pending: tuple[int, float] | None = None

    def accept(self, token: int, *, is_reply: bool = True) -> None:
        if is_reply and self._pending is not None and self._pending[0] == token:
            self.mu = self._pending[1]
        self._pending = None
        self._window.append(token)
        self._dry_tokens.append(token)

    def choose(self, given: Sequence[float], index: int) -> int:
        """Choose a token id from float32 logits, which stay as they are."""
        logits = array("f", given)
        self._edit(logits)
        best = _argmax(logits)
        if best is None:
            if _argmax(given) is None:
                raise DecodeFailed(0, "the logits are not finite")
            raise NoTokenLeft("logit_bias and penalties leave no token")
        params = self.params
        if params.temperature == 0 or (params.top_k == 1 and not params.mirostat):
            return best
        candidates = [(-logit, token) for token, logit in enumerate(logits) if logit > -math.inf]
        u = uniform(params.seed, index)
        if params.mirostat:
            token, mu = mirostat.choose(candidates, params, self.mu, len(logits), u)
            self._pending = (token, mu)
            return token
        return _draw(_cut(candidates, params, index), params.temperature, u)

    # ── changes of logits ───────────────────────────────────────────────────────────────────────

    def _edit(self, logits: array[float]) -> None:
        for token, bias in self.params.logit_bias:
            logits[token] = _float32(logits[token] + bias)
        self._penalise(logits)
        if self.params.dry_multiplier > 0:
            for token, length in self._repetitions().items():
                if not any(token in one.containing for one in self._breakers):
                    logits[token] = _float32(logits[token] - self._dry_penalty(length))

    def _penalise(self, logits: array[float]) -> None:
        p = self.params
        if (p.repetition_penalty, p.frequency_penalty, p.presence_penalty) == (1.0, 0.0, 0.0):
            return
        for token, count in Counter(self._window).items():
            logit = logits[token]
            scaled = logit / p.repetition_penalty if logit > 0 else logit * p.repetition_penalty
            off = count * p.frequency_penalty + p.presence_penalty
            logits[token] = _float32(scaled - off)

    def _repetitions(self) -> dict[int, int]:
        """The longest repetition that each token would prolong, where long enough to count."""
        spoken = list(reversed(self._dry_tokens))
        reach = self._since_breaker(spoken)
        longest: dict[int, int] = {}
        if reach < self.params.dry_allowed_length:
            return longest
        for k in range(1, len(spoken)):
            length = 0
            while (
                length < reach and k + length < len(spoken) and spoken[length] == spoken[k + length]
            ):
                length += 1
            if length >= self.params.dry_allowed_length:
                token = spoken[k - 1]
                longest[token] = max(longest.get(token, 0), length)
        return longest

    def _since_breaker(self, spoken: Sequence[int]) -> int:
        for i, token in enumerate(spoken):
            for one in self._breakers:
                n = len(one.spelled)
                spelled = n and tuple(reversed(spoken[i : i + n])) == one.spelled
                if token in one.containing or spelled:
                    return i
        return len(spoken)

    def _dry_penalty(self, length: int) -> float:
        p = self.params
        power = float(length - p.dry_allowed_length)
        if p.dry_base > 1.000001:
            power = min(power, math.floor(_FLOAT_LOG_MAX / math.log(p.dry_base)))
        return float(p.dry_multiplier * math.pow(p.dry_base, power))


def _argmax(logits: Sequence[float]) -> int | None:
    """The lowest index of the highest logit; NaN never counts; none is valid if one is infinite."""
    best, highest = None, -math.inf
    for token, logit in enumerate(logits):
        if logit > highest:
            best, highest = token, logit
    return None if highest == math.inf else best


def _float32(number: float) -> float:
    try:
        return float(struct.unpack("f", struct.pack("f", number))[0])
    except OverflowError:  # C rounds such a number to infinity
        return math.copysign(math.inf, number)


# ── removal of candidates ───────────────────────────────────────────────────────────────────────


def _cut(candidates: list[Candidate], params: SamplingParams, index: int) -> list[Candidate]:
    if params.top_k:
        candidates = heapq.nsmallest(params.top_k, candidates)
    is_sorted = False
    if params.typical_p < 1:
        candidates, is_sorted = _typical(sorted(candidates), params.typical_p), True
    if params.top_p < 1 or params.min_p > 0:
        candidates, is_sorted = _likely(candidates, params), True
    lucky = uniform(params.seed ^ _XTC_STREAM, index) < params.xtc_probability
    if params.xtc_probability > 0 and params.xtc_threshold <= 0.5 and lucky:
        ordered = candidates if is_sorted else sorted(candidates)
        candidates, is_sorted = _without_top(ordered, params.xtc_threshold), True
    if not is_sorted:
        candidates.sort(key=lambda entry: entry[1])
    return candidates


def _weights(candidates: Sequence[Candidate], temperature: float = 1.0) -> list[float]:
    best = min(candidates)[0]
    return [math.exp((best - negative) / temperature) for negative, _ in candidates]


def _sum(numbers: Sequence[float]) -> float:
    """As C adds: one after the other."""
    total = 0.0
    for number in numbers:
        total += number
    return total


def _typical(ordered: list[Candidate], typical_p: float) -> list[Candidate]:
    """Those whose surprise is closest to the expected one, best first."""
    best = ordered[0][0]
    weights = _weights(ordered)
    total = _sum(weights)
    surprises = [math.log(total) - (best - negative) for negative, _ in ordered]
    expected = _sum([math.exp(-surprise) * surprise for surprise in surprises])
    ranks = sorted((abs(surprise - expected), rank) for rank, surprise in enumerate(surprises))
    reached, kept = 0.0, []
    for _, rank in ranks:
        if reached > typical_p:
            break
        kept.append(ordered[rank])
        reached += weights[rank] / total
    return sorted(kept)


def _likely(candidates: list[Candidate], params: SamplingParams) -> list[Candidate]:
    """Keep the shortest best-first run with probability top_p, then cut it at min_p."""
    total = _sum(_weights(candidates))
    best = min(candidates)[0]
    kept: list[Candidate] = []
    reached = 0.0
    for entry in sorted(candidates):
        weight = math.exp(best - entry[0])
        if kept and (weight < params.min_p or reached >= params.top_p * total):
            break
        kept.append(entry)
        reached += weight
    return kept


def _without_top(ordered: list[Candidate], threshold: float) -> list[Candidate]:
    """Leave out all that reach the threshold but the last of them."""
    weights = _weights(ordered)
    total = _sum(weights)
    last = 0
    while last + 1 < len(ordered) and weights[last + 1] / total >= threshold:
        last += 1
    return ordered[last:]


def _draw(candidates: Sequence[Candidate], temperature: float, u: float) -> int:
    weights = _weights(candidates, temperature)
    total = _sum(weights)
    reached = 0.0
    for (_, token), weight in zip(candidates, weights, strict=True):
        reached += weight
        if reached > u * total:
            return token
    return candidates[-1][1]
