"""Parameters of a sampler. Checked on construction, then frozen."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from native._checks import real, whole
from native.errors import InvalidParam

MAX_WINDOW = 1 << 16
"""Tokens that a penalty may look back."""
MAX_BIASES = 300
MAX_BREAKERS = 32
MAX_BREAKER_BYTES = 40
MAX_LOGPROBS = 20
MAX_SCHEMA_BYTES = 1 << 20
MAX_GRAMMAR_BYTES = 4 << 20
"""What a schema becomes is a few times as long."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose a token from logits. The default is greedy, with everything else off.

    Applied in this order:

    1. ``logit_bias``: pairs (token, number to add); minus infinity bans the token.
    2. Penalties of the last ``repetition_window`` tokens, prompt included: ``repetition_penalty``
       divides a positive logit and multiplies a negative one; ``frequency_penalty`` is taken off
       for every occurrence, ``presence_penalty`` once.
    3. DRY: a token that would prolong a repetition of ``dry_allowed_length`` or more of the last
       ``dry_window`` tokens loses ``dry_multiplier * dry_base ** (length - dry_allowed_length)``.
       A repetition does not reach beyond a breaker: a token whose text contains one of
       ``dry_breakers``, or the tokens one is spelled with.
    4. ``top_k`` (0: off), ``typical_p`` (1: off), ``top_p`` (1: off), ``min_p`` (0: off).
    5. XTC: with ``xtc_probability``, of the tokens that have a probability of ``xtc_threshold`` or
       more all but the least likely are left out (never with a threshold above 0.5).
    6. ``temperature``. At 0 the likeliest token is taken, the lowest id on a tie.

    ``mirostat`` (1 or 2) replaces 4 and 5: it aims at a surprise of ``mirostat_tau`` bits per token
    with the learning rate ``mirostat_eta``. Its state (mu) is not part of the text, so
    a request that is resumed elsewhere begins with mu = 2 tau again; all else resumes exactly.

    ``grammar`` (GBNF, its first rule named ``root``) or ``json_schema`` (JSON text) decides which
    tokens are allowed: one that it forbids is never chosen, whatever the other parameters. Only
    their lengths are checked here, see ``native.schema.grammar_of``, ``Backend.compile_grammar``.

    ``seed`` is a 64-bit number; randomness is a function of (seed, index of the token), whatever
    happened before. ``n_logprobs``: report the chosen token's log-probability and those of so many
    likeliest tokens, of the model's own distribution, before any of the above.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    seed: int = 0
    typical_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_window: int = 4096
    dry_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: str | None = None
    json_schema: str | None = None
    n_logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in _WHOLE.items():
            whole(name, getattr(self, name), low, high)
        for name, (least, most, above) in _REAL.items():
            real(name, getattr(self, name), least, most, above=above)
        if self.n_logprobs is not None:
            whole("n_logprobs", self.n_logprobs, 0, MAX_LOGPROBS)
        _check_biases(self.logit_bias)
        _check_breakers(self.dry_breakers)
        _check_text("grammar", self.grammar, MAX_GRAMMAR_BYTES)
        _check_text("json_schema", self.json_schema, MAX_SCHEMA_BYTES)
        if self.grammar is not None and self.json_schema is not None:
            raise InvalidParam("json_schema", "…", "not together with grammar: it becomes one")

    @property
    def is_constrained(self) -> bool:
        """Whether a grammar restricts the tokens."""
        return self.grammar is not None or self.json_schema is not None


_WHOLE: dict[str, tuple[int, int]] = {
    "top_k": (0, (1 << 31) - 1),
    "repetition_window": (0, MAX_WINDOW),
    "seed": (0, (1 << 64) - 1),
    "dry_allowed_length": (1, MAX_WINDOW),
    "dry_window": (0, MAX_WINDOW),
    "mirostat": (0, 2),
}
_REAL: dict[str, tuple[float, float, bool]] = {
    "temperature": (0.0, 100.0, False),
    "top_p": (0.0, 1.0, True),
    "min_p": (0.0, 1.0, False),
    "typical_p": (0.0, 1.0, True),
    "repetition_penalty": (0.0, 100.0, True),
    "frequency_penalty": (-100.0, 100.0, False),
    "presence_penalty": (-100.0, 100.0, False),
    "dry_multiplier": (0.0, 100.0, False),
    "dry_base": (1.0, 100.0, False),
    "xtc_probability": (0.0, 1.0, False),
    "xtc_threshold": (0.0, 1.0, False),
    "mirostat_tau": (0.0, 100.0, False),
    "mirostat_eta": (0.0, 1.0, False),
}
NUMERIC_FIELDS = (*_WHOLE, *_REAL)
"""Fields passed to the shim as plain numbers; the others are texts and lists."""


def _check_biases(biases: object) -> None:
    allowed = f"at most {MAX_BIASES} pairs (token, number or minus infinity), each token once"
    if not isinstance(biases, tuple) or len(biases) > MAX_BIASES:
        raise InvalidParam("logit_bias", biases, allowed)
    seen: set[int] = set()
    for pair in biases:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InvalidParam("logit_bias", pair, allowed)
        token, bias = pair
        whole("logit_bias", token, 0, (1 << 31) - 1)
        if bias != -math.inf:
            real("logit_bias", bias, -1e6, 1e6)
        if token in seen:
            raise InvalidParam("logit_bias", pair, allowed)
        seen.add(token)


def _check_breakers(breakers: object) -> None:
    allowed = f"at most {MAX_BREAKERS} texts of 1 to {MAX_BREAKER_BYTES} bytes, without NUL"
    if not isinstance(breakers, tuple) or len(breakers) > MAX_BREAKERS:
        raise InvalidParam("dry_breakers", breakers, allowed)
    for breaker in breakers:
        size = len(_encoded("dry_breakers", breaker))
        if not 1 <= size <= MAX_BREAKER_BYTES or "\0" in breaker:
            raise InvalidParam("dry_breakers", breaker, allowed)


def _check_text(name: str, text: object, most: int) -> None:
    if text is None:
        return
    size = len(_encoded(name, text))
    if not 1 <= size <= most:
        raise InvalidParam(name, f"{size:,} bytes", f"1 to {most:,} bytes, or None")
    if "\0" in str(text):
        raise InvalidParam(name, "\0", "text without NUL")


def _encoded(name: str, text: object) -> bytes:
    if not isinstance(text, str):
        raise InvalidParam(name, type(text).__name__, "text")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidParam(
            name, error.object[error.start], "text without lone surrogates"
        ) from None


FIELD_NAMES = tuple(field.name for field in fields(SamplingParams))
