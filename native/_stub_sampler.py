"""The stub's samplers: the algorithm in Python, as strict as the real ones."""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Callable, Sequence

from native._checks import whole
from native.backend import Logprobs, ModelInfo, Sampler
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


class StubSamplers:
    """The part of the stub that chooses tokens."""

    info: ModelInfo

    def _live(self) -> None:
        raise NotImplementedError

    def logits(self, row: int) -> array[float]:
        raise NotImplementedError

    def piece(self, token: int, *, special: bool = False) -> bytes:
        raise NotImplementedError

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        raise NotImplementedError

    def new_sampler(self, params: SamplingParams, history: Sequence[int] = ()) -> StubSampler:
        self._live()
        if params.is_constrained:
            name = "grammar" if params.grammar is not None else "json_schema"
            raise InvalidParam(name, "…", "None: the stub has no grammars, load a real model")
        n_vocab = self.info.n_vocab
        for token, _ in params.logit_bias:
            _known(token, n_vocab)
        breakers = [self._breaker(text) for text in params.dry_breakers if params.dry_multiplier]
        inner = PythonSampler(params, breakers)
        for token in history:
            inner.accept(_known(token, n_vocab), is_reply=False)
        return StubSampler(inner, n_vocab, self._live)

    def sample(self, row: int, sampler: Sampler, index: int) -> int:
        return self.sample_from(self.logits(row), sampler, index)

    def sample_from(self, logits: array[float], sampler: Sampler, index: int) -> int:
        self._live()
        if not isinstance(sampler, StubSampler):
            raise InvalidParam(
                "sampler", type(sampler).__name__, "made by new_sampler of this backend"
            )
        whole("index", index, 0, (1 << 64) - 1)
        return sampler.inner.choose(self._checked(logits), index)

    def logprobs(self, row: int, token: int, n: int) -> Logprobs:
        return self.logprobs_from(self.logits(row), token, n)

    def logprobs_from(self, logits: array[float], token: int, n: int) -> Logprobs:
        self._live()
        _known(token, self.info.n_vocab)
        whole("n", n, 0, MAX_LOGPROBS)
        highest = max(self._checked(logits))
        if not math.isfinite(highest):
            raise DecodeFailed(0, "the logits are not finite")
        log_total = highest + math.log(sum(math.exp(logit - highest) for logit in logits))
        likeliest = heapq.nsmallest(n, ((-logit, one) for one, logit in enumerate(logits)))
        top = tuple((one, -negative - log_total) for negative, one in likeliest)
        return Logprobs(logits[token] - log_total, top)

    def _checked(self, logits: array[float]) -> array[float]:
        if logits.typecode != "f" or len(logits) != self.info.n_vocab:
            raise InvalidParam("logits", len(logits), f"{self.info.n_vocab} float32 numbers")
        return logits

    def _breaker(self, text: str) -> Breaker:
        return Breaker.of(
            text,
            self.info.n_vocab,
            lambda token: self.piece(token, special=True),
            lambda sought: self.tokenize(sought, add_special=False, parse_special=True),
        )


def _known(token: int, n_vocab: int) -> int:
    if not 0 <= token < n_vocab:
        raise InvalidToken(token, n_vocab)
    return token
