"""The sampling algorithm of the shim in Python, for the stub.

Both must agree token for token; a test compares the two on real logits. Sums are therefore added in
the same order in both. Grammars exist only in the shim.
"""

from __future__ import annotations

import heapq
import itertools
import math
import struct
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from native import mirostat
from native.errors import DecodeFailed, InvalidParam, NoTokenLeft
from native.sampling_params import SamplingParams

_MASK = (1 << 64) - 1
_XTC_STREAM = 0x5854435854435854
_FLOAT_MAX = (2 - 2**-23) * 2.0**127
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

    def __init__(
        self,
        params: SamplingParams,
        breakers: Sequence[Breaker] = (),
        biases: Sequence[tuple[int, float]] | None = None,
    ) -> None:
        """``biases``: those of ``params``, if its texts are to be tokens."""
        self.params = params
        self.mu = 2 * params.mirostat_tau
        self._biases = resolved_biases(params) if biases is None else biases
        self._breakers = breakers
        self._edits, self._stages = _planned(params)
        self._is_greedy = _takes_likeliest(params) and not set(_EDITS) & set(self._stages)
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
        if self._is_greedy:
            return best
        u = uniform(params.seed, index)
        if params.mirostat:
            token, mu = mirostat.choose(_listed(logits), params, self.mu, len(logits), u)
            self._pending = (token, mu)
            return token
        return _draw(*self.cut(logits, index), u)

    def cut(self, logits: Sequence[float], index: int) -> tuple[list[Candidate], float]:
        """What is left to draw from, of logits that were edited, and at which temperature."""
        now = _Cut(self.params, index, _listed(logits), len(logits))
        for at, stage in enumerate(self._stages):
            if stage in _EDITS:
                self._edit_candidates(now, stage)
            else:
                now.apply(stage, is_last=at + 1 == len(self._stages))
        if now.order is _Order.NONE:
            now.candidates.sort(key=lambda entry: entry[1])
        return now.candidates, now.temperature

    # ── changes of logits ───────────────────────────────────────────────────────────────────────

    def _edit(self, logits: array[float]) -> None:
        for token, bias in self._biases:
            logits[token] = _float32(logits[token] + bias)
        for edit in self._edits:
            for token, edited in self._edited(edit, logits).items():
                logits[token] = _float32(edited)

    def _edit_candidates(self, now: _Cut, edit: str) -> None:
        edited = self._edited(edit, {token: -negative for negative, token in now.candidates})
        now.candidates = [
            (-_finite(edited[token]), token) if token in edited else (negative, token)
            for negative, token in now.candidates
        ]
        if now.order is _Order.BEST_FIRST:
            now.order = _Order.NONE

    def _edited(self, edit: str, logits: Mapping[int, float] | array[float]) -> dict[int, float]:
        """New logits of the tokens that an edit is about, as far as they are there."""
        there = range(len(logits)) if isinstance(logits, array) else logits
        if edit == "penalties":
            return {
                token: self._penalised(logits[token], count)
                for token, count in Counter(self._window).items()
                if token in there
            }
        return {
            token: logits[token] - self._dry_penalty(length)
            for token, length in self._repetitions().items()
            if token in there and not any(token in one.containing for one in self._breakers)
        }

    def _penalised(self, logit: float, count: int) -> float:
        p = self.params
        scaled = logit / p.repetition_penalty if logit > 0 else logit * p.repetition_penalty
        return scaled - (count * p.frequency_penalty + p.presence_penalty)

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


def _finite(number: float) -> float:
    """The nearest float32 that is not infinite."""
    return _float32(min(max(number, -_FLOAT_MAX), _FLOAT_MAX))


def _float32(number: float) -> float:
    try:
        return float(struct.unpack("f", struct.pack("f", number))[0])
    except OverflowError:  # C rounds such a number to infinity
        return math.copysign(math.inf, number)


# ── the stages of the choice ────────────────────────────────────────────────────────────────────

_EDITS = ("penalties", "dry")


def _planned(params: SamplingParams) -> tuple[list[str], list[str]]:
    """Edits that come before everything else, and the stages after them; none that is off."""
    p, is_greedy = params, _takes_likeliest(params)
    penalties = (p.repetition_penalty, p.frequency_penalty, p.presence_penalty)
    is_on = {
        "penalties": penalties != (1.0, 0.0, 0.0) and p.repetition_window > 0,
        "dry": p.dry_multiplier > 0,
        "top_n_sigma": p.top_n_sigma > 0,
        "top_k": p.top_k > 0,
        "typical_p": p.typical_p < 1 and not is_greedy,
        "top_p": p.top_p < 1,
        "min_p": p.min_p > 0,
        "xtc": p.xtc_probability > 0 and p.xtc_threshold <= 0.5 and not is_greedy,
        "temperature": p.temperature != 1 or p.dynatemp_range > 0,
    }
    stages = [one for one in p.samplers if is_on[one] and (one in _EDITS or not p.mirostat)]
    edits = list(itertools.takewhile(lambda one: one in _EDITS, stages))
    return edits, stages[len(edits) :]


def _takes_likeliest(params: SamplingParams) -> bool:
    """Whether the temperature is 0, so that nothing is drawn."""
    is_fixed = "temperature" in params.samplers and not params.dynatemp_range
    return params.temperature == 0 and (is_fixed or params.mirostat > 0)


class _Order(Enum):
    """The order of candidates, in which sums are added and draws are made."""

    BY_TOKEN = 1
    BEST_FIRST = 2
    NONE = 3


@dataclass(slots=True)
class _Cut:
    """What is left to draw from, while the stages leave out more."""

    params: SamplingParams
    index: int
    candidates: list[Candidate]
    n_listed: int
    """What llama.cpp would list: also those that cannot be drawn any more."""
    order: _Order = _Order.BY_TOKEN
    temperature: float = 1.0
    """Of the draw."""

    def apply(self, stage: str, *, is_last: bool) -> None:
        match stage:
            case "top_n_sigma":
                floor = self._sigma_floor()
                self.candidates = [one for one in self.candidates if -one[0] >= floor]
            case "top_k":
                self._keep_best()
            case "typical_p":
                self._keep(_typical(sorted(self.candidates), self.params))
            case "top_p":
                self._keep(_likely(self.candidates, self.params, top_p=self.params.top_p))
            case "min_p":
                self._keep(_likely(self.candidates, self.params, min_p=self.params.min_p))
            case "xtc":
                self._exclude_top()
            case _:
                self._scale(is_last=is_last)

    def _keep(self, best_first: list[Candidate]) -> None:
        self.candidates, self.order = best_first, _Order.BEST_FIRST
        self.n_listed = len(best_first)

    def _sigma_floor(self) -> float:
        """Below the highest logit by so many standard deviations."""
        n = len(self.candidates)
        mean = _sum([-negative for negative, _ in self.candidates]) / n
        squares = _sum([(-negative - mean) * (-negative - mean) for negative, _ in self.candidates])
        return -min(self.candidates)[0] - self.params.top_n_sigma * math.sqrt(squares / n)

    def _keep_best(self) -> None:
        k = self.params.top_k
        self.n_listed = min(self.n_listed, k)
        if self.order is _Order.BEST_FIRST:
            self.candidates = self.candidates[:k]
        elif k < len(self.candidates):
            self.candidates = heapq.nsmallest(k, self.candidates)
            self.order = _Order.NONE

    def _exclude_top(self) -> None:
        p = self.params
        if not uniform(p.seed ^ _XTC_STREAM, self.index) < p.xtc_probability:
            return
        if self.order is not _Order.BEST_FIRST:
            self.candidates.sort()
        n_out = _n_top(self.candidates, p)
        self.candidates, self.order = self.candidates[n_out:], _Order.BEST_FIRST
        self.n_listed -= n_out

    def _scale(self, *, is_last: bool) -> None:
        temperature = self._dynamic_temperature()
        if temperature == 0:
            self.candidates = [min(self.candidates)]
        elif is_last:
            self.temperature = temperature
        else:
            self.candidates = [
                (-_finite(-negative / temperature), token) for negative, token in self.candidates
            ]

    def _dynamic_temperature(self) -> float:
        """Between temperature - range and temperature + range, by the entropy of what is left."""
        p = self.params
        if p.dynatemp_range == 0 or len(self.candidates) < 2:
            return p.temperature
        best = min(self.candidates)[0]
        total = _sum(_weights(self.candidates))
        log_total, entropy = math.log(total), 0.0
        for negative, _ in self.candidates:
            behind = best - negative
            entropy += math.exp(behind) / total * (log_total - behind)
        share = max(0.0, entropy) / math.log(self.n_listed)
        least = max(0.0, p.temperature - p.dynatemp_range)
        most = p.temperature + p.dynatemp_range
        return float(least + (most - least) * math.pow(share, p.dynatemp_exponent))


def _listed(logits: Sequence[float]) -> list[Candidate]:
    return [(-logit, token) for token, logit in enumerate(logits) if logit > -math.inf]


def _weights(candidates: Sequence[Candidate], temperature: float = 1.0) -> list[float]:
    best = min(candidates)[0]
    return [math.exp((best - negative) / temperature) for negative, _ in candidates]


def _sum(numbers: Sequence[float]) -> float:
    """As C adds: one after the other."""
    total = 0.0
    for number in numbers:
        total += number
    return total


def _typical(ordered: list[Candidate], params: SamplingParams) -> list[Candidate]:
    """Those whose surprise is closest to the expected one, best first."""
    best = ordered[0][0]
    weights = _weights(ordered)
    total = _sum(weights)
    surprises = [math.log(total) - (best - negative) for negative, _ in ordered]
    expected = _sum([math.exp(-surprise) * surprise for surprise in surprises])
    ranks = sorted((abs(surprise - expected), rank) for rank, surprise in enumerate(surprises))
    kept: list[Candidate] = []
    reached = 0.0
    for _, rank in ranks:
        if reached > params.typical_p and len(kept) >= params.min_keep:
            break
        kept.append(ordered[rank])
        reached += weights[rank] / total
    return sorted(kept)


def _likely(
    candidates: list[Candidate], params: SamplingParams, top_p: float = 1.0, min_p: float = 0.0
) -> list[Candidate]:
    """Keep the shortest best-first run with probability top_p, then cut it at min_p."""
    total = _sum(_weights(candidates))
    best = min(candidates)[0]
    kept: list[Candidate] = []
    reached = 0.0
    for entry in sorted(candidates):
        weight = math.exp(best - entry[0])
        if len(kept) >= max(1, params.min_keep) and (weight < min_p or reached >= top_p * total):
            break
        kept.append(entry)
        reached += weight
    return kept


def _n_top(ordered: list[Candidate], params: SamplingParams) -> int:
    """How many reach the threshold before the last of them; 0 if too few would be left."""
    weights = _weights(ordered)
    total = _sum(weights)
    last = 0
    while last + 1 < len(ordered) and weights[last + 1] / total >= params.xtc_threshold:
        last += 1
    return last if len(ordered) - last >= params.min_keep else 0


def resolved_biases(
    params: SamplingParams,
    tokenize: Callable[[str], Sequence[int]] | None = None,
    ends: Iterable[int] = (),
) -> list[tuple[int, float]]:
    """Biases by token: of texts those of each token, and of ``ends`` if they are to be ignored."""
    found: list[tuple[int, float]] = []
    for key, bias in params.logit_bias:
        if not isinstance(key, str):
            found.append((key, bias))
            continue
        tokens = tokenize(key) if tokenize is not None else ()
        if not tokens:
            raise InvalidParam("logit_bias", key, "a text that has a token in this vocabulary")
        found += [(token, bias) for token in tokens]
    if params.ignore_eos:
        found += [(token, -math.inf) for token in sorted(ends)]
    return found


def _draw(candidates: Sequence[Candidate], temperature: float, u: float) -> int:
    weights = _weights(candidates, temperature)
    total = _sum(weights)
    reached = 0.0
    for (_, token), weight in zip(candidates, weights, strict=True):
        reached += weight
        if reached > u * total:
            return token
    return candidates[-1][1]
