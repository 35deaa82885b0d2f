"""Parameters of a sampler. Checked on construction, then frozen."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from native._checks import flag, real, whole
from native.errors import InvalidParam

MAX_WINDOW = 1 << 16
"""Tokens that a penalty may look back."""
MAX_BIASES = 300
MAX_BIAS_TEXT_BYTES = 2048
"""Of all texts of ``logit_bias`` together; requests travel in messages of 64 KiB."""
MAX_BREAKERS = 32
MAX_BREAKER_BYTES = 40
MAX_LOGPROBS = 20
MAX_SCHEMA_BYTES = 1 << 20
MAX_GRAMMAR_BYTES = 4 << 20
"""What a schema becomes is a few times as long."""


SAMPLERS = (
    "penalties", "dry", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc", "temperature",
)  # fmt: skip
"""What may be done to logits, in llama.cpp's order."""
_EDITS = ("penalties", "dry")


@dataclass(frozen=True, slots=True)
class ReplyGrammar:
    """A grammar of replies in the format of a chat template, for ``Backend.new_sampler``."""

    text: str
    """GBNF."""
    before: bytes = b""
    """What is there already of the text that the grammar describes."""
    shown: tuple[int, ...] = ()
    """Control tokens that it consists of: for other grammars they have no text."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose a token from logits. The default is greedy, with everything else off.

    ``logit_bias`` comes first: pairs (token, number to add); minus infinity bans the token. In
    place of a token there may be a text, which stands for each token that it has by itself, without
    control tokens; numbers for the same token add up. ``ignore_eos`` bans the tokens that end a
    reply.

    Then follow the ``samplers``, each at most once, in this order if no other is given; one that is
    left out has no effect, whatever its numbers are:

    1. ``penalties`` of the last ``repetition_window`` tokens, prompt included:
       ``repetition_penalty`` divides a positive logit and multiplies a negative one;
       ``frequency_penalty`` is taken off for every occurrence, ``presence_penalty`` once.
    2. ``dry``: a token that would prolong a repetition of ``dry_allowed_length`` or more of the
       last ``dry_window`` tokens loses
       ``dry_multiplier * dry_base ** (length - dry_allowed_length)``. A repetition does not reach
       beyond a breaker: a token whose text contains one of ``dry_breakers``, or the tokens one is
       spelled with.
    3. ``top_n_sigma`` (0: off) keeps logits of at most so many standard deviations below the
       highest.
    4. ``top_k`` (0: off), ``typical_p`` (1: off), ``top_p`` (1: off), ``min_p`` (0: off).
    5. ``xtc``: with ``xtc_probability``, of the tokens that have a probability of ``xtc_threshold``
       or more all but the least likely are left out (never with a threshold above 0.5).
    6. ``temperature``. At 0 the likeliest of the tokens that are left is taken, the lowest id on a
       tie; ``typical_p`` and ``xtc``, which may leave it out, have no effect then. With a
       ``dynatemp_range`` above 0 it lies between ``temperature`` minus (at least 0) and plus that
       range, as the entropy of what is left is between 0 and the most that so many tokens can have:
       their quotient to the power of ``dynatemp_exponent``.

    What ``samplers`` leaves out is off, ``temperature`` too: logits are then used as they are.
    ``typical_p``, ``top_p``, ``min_p`` and ``xtc`` leave at least ``min_keep`` tokens if there are
    so many.

    ``mirostat`` (1 or 2) replaces 3 to 5: it aims at a surprise of ``mirostat_tau`` bits per token
    with the learning rate ``mirostat_eta``, at the ``temperature``. Its state (mu) is not part of
    the text, so a request that is resumed elsewhere begins with mu = 2 tau again; all else resumes
    exactly.

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
    logit_bias: tuple[tuple[int | str, float], ...] = ()
    grammar: str | None = None
    json_schema: str | None = None
    n_logprobs: int | None = None
    samplers: tuple[str, ...] = SAMPLERS
    top_n_sigma: float = 0.0
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    min_keep: int = 0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in _WHOLE.items():
            whole(name, getattr(self, name), low, high)
        for name, (least, most, above) in _REAL.items():
            real(name, getattr(self, name), least, most, above=above)
        if self.n_logprobs is not None:
            whole("n_logprobs", self.n_logprobs, 0, MAX_LOGPROBS)
        _check_biases(self.logit_bias)
        _check_breakers(self.dry_breakers)
        _check_samplers(self.samplers)
        flag("ignore_eos", self.ignore_eos)
        _check_text("grammar", self.grammar, MAX_GRAMMAR_BYTES)
        _check_text("json_schema", self.json_schema, MAX_SCHEMA_BYTES)
        if self.grammar is not None and self.json_schema is not None:
            raise InvalidParam("json_schema", "…", "not together with grammar: it becomes one")

    @property
    def is_constrained(self) -> bool:
        """Whether a grammar restricts the tokens."""
        return self.grammar is not None or self.json_schema is not None

    def greedy(self) -> SamplingParams:
        """The same, but the likeliest token is taken: after bias, penalties, DRY and grammar."""
        kept = tuple(one for one in self.samplers if one in _EDITS)
        return replace(
            self, samplers=(*kept, "temperature"), temperature=0.0, dynatemp_range=0.0, mirostat=0
        )

    def with_seed_of(self, reply: int) -> SamplingParams:
        """The same for another reply to the same prompt: its number is added to ``seed``."""
        return replace(self, seed=(self.seed + reply) & _MASK_64) if reply else self


_MASK_64 = (1 << 64) - 1
_WHOLE: dict[str, tuple[int, int]] = {
    "top_k": (0, (1 << 31) - 1),
    "min_keep": (0, (1 << 31) - 1),
    "repetition_window": (0, MAX_WINDOW),
    "seed": (0, _MASK_64),
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
    "top_n_sigma": (0.0, 100.0, False),
    "dynatemp_range": (0.0, 100.0, False),
    "dynatemp_exponent": (0.0, 100.0, False),
}
NUMERIC_FIELDS = (*_WHOLE, *_REAL)
"""Fields passed to the shim as plain numbers; the others are texts and lists."""


def _check_biases(biases: object) -> None:
    allowed = (
        f"at most {MAX_BIASES} pairs (token or text, number or minus infinity), each of them once"
    )
    if not isinstance(biases, tuple) or len(biases) > MAX_BIASES:
        raise InvalidParam("logit_bias", biases, allowed)
    seen: set[int | str] = set()
    n_bytes = 0
    for pair in biases:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InvalidParam("logit_bias", pair, allowed)
        key, bias = pair
        if isinstance(key, str):
            n_bytes += _check_bias_text(key)
        else:
            whole("logit_bias", key, 0, (1 << 31) - 1)
        if bias != -math.inf:
            real("logit_bias", bias, -1e6, 1e6)
        if key in seen:
            raise InvalidParam("logit_bias", pair, allowed)
        seen.add(key)
    if n_bytes > MAX_BIAS_TEXT_BYTES:
        most = f"texts of at most {MAX_BIAS_TEXT_BYTES} bytes together"
        raise InvalidParam("logit_bias", f"{n_bytes} bytes", most)


def _check_bias_text(text: str) -> int:
    if not text or "\0" in text:
        raise InvalidParam("logit_bias", text, "a token id, or a text that is not empty, no NUL")
    return len(_encoded("logit_bias", text))


def _check_samplers(samplers: object) -> None:
    allowed = f"some of {', '.join(SAMPLERS)}, each at most once"
    if not isinstance(samplers, tuple):
        raise InvalidParam("samplers", samplers, allowed)
    for at, one in enumerate(samplers):
        if one not in SAMPLERS or one in samplers[:at]:
            raise InvalidParam("samplers", one, allowed)


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
