"""The stub's samplers: the algorithm in Python, as strict as the real ones."""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Callable, Sequence

from native._checks import whole
from native.backend import Logprobs, Sampler
from native.errors import DecodeFailed, InvalidParam, InvalidToken
from native.sampling import Breaker, PythonSampler
from native.sampling_params import MAX_LOGPROBS, SamplingParams


class StubSampler:
    """Parameters and recent tokens of one request."""

    __slots__ = ("_live", "_n_vocab", "inner")

    def __init__(self, inner: PythonSampler, n_vocab: int, live: Callable[[], None]) -> None:
        self.inner = inner
        self._n_vocab = n_vocab
        self._live = live

    def accept(self, token: int) -> None:
        self._live()
        self.inner.accept(_known(token, self._n_vocab))


def refuse_grammar(params: SamplingParams) -> None:
    if params.is_constrained:
        name = "grammar" if params.grammar is not None else "json_schema"
        raise InvalidParam(name, "…", "None: the stub has no grammars, load a real model")


def new_sampler(
    params: SamplingParams,
    history: Sequence[int],
    breakers: Sequence[Breaker],
    biases: Sequence[tuple[int, float]],
    n_vocab: int,
    live: Callable[[], None],
) -> StubSampler:
    """A sampler whose history holds these tokens; ``live`` raises once its backend is closed."""
    refuse_grammar(params)
    for token, _ in biases:
        _known(token, n_vocab)
    inner = PythonSampler(params, breakers, biases)
    for token in history:
        inner.accept(_known(token, n_vocab), is_reply=False)
    return StubSampler(inner, n_vocab, live)


def choose(logits: array[float], sampler: Sampler, index: int, n_vocab: int) -> int:
    """The token that a sampler of the stub chooses from these logits."""
    if not isinstance(sampler, StubSampler):
        raise InvalidParam("sampler", type(sampler).__name__, "made by new_sampler of this backend")
    whole("index", index, 0, (1 << 64) - 1)
    return sampler.inner.choose(_checked(logits, n_vocab), index)


def logprobs_of(logits: array[float], token: int, n: int, n_vocab: int) -> Logprobs:
    """Logarithms of the probability of ``token`` and of the ``n`` likeliest."""
    _known(token, n_vocab)
    whole("n", n, 0, MAX_LOGPROBS)
    highest = max(_checked(logits, n_vocab))
    if not math.isfinite(highest):
        raise DecodeFailed(0, "the logits are not finite")
    log_total = highest + math.log(sum(math.exp(logit - highest) for logit in logits))
    likeliest = heapq.nsmallest(n, ((-logit, one) for one, logit in enumerate(logits)))
    top = tuple((one, -negative - log_total) for negative, one in likeliest)
    return Logprobs(logits[token] - log_total, top)


def _checked(logits: array[float], n_vocab: int) -> array[float]:
    if logits.typecode != "f" or len(logits) != n_vocab:
        raise InvalidParam("logits", len(logits), f"{n_vocab} float32 numbers")
    return logits


def _known(token: int, n_vocab: int) -> int:
    if not 0 <= token < n_vocab:
        raise InvalidToken(token, n_vocab)
    return token
