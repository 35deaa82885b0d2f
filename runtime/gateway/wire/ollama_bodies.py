"""What bodies of Ollama's API have in common: names, options, formats, thinking, durations."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from runtime.gateway.wire.failure import invalid
from runtime.gateway.wire.sampling import Options, given_options, sampled

LATEST: Final = ":latest"
MAX_TOP_LOGPROBS: Final = 20
EFFORTS: Final = ("low", "medium", "high", "max")
_REALS: Final = (
    "temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty",
    "frequency_penalty", "mirostat_tau", "mirostat_eta",
)  # fmt: skip
_WHOLES: Final = ("top_k", "seed", "repeat_last_n", "mirostat")
_OTHERS: Final = tuple(
    name for name in Options.__struct_fields__ if name not in {*_REALS, *_WHOLES, "stop"}
)
"""What Ollama has no name for: those of the other APIs."""
_DURATION: Final = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS: Final = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0,
}  # fmt: skip


class ReplyBody(msgspec.Struct, kw_only=True):
    """What bodies that ask for a reply have in common. ``null``: left out."""

    model: str | None = None
    stream: bool | None = None
    """Left out: true."""
    format: str | dict[str, Any] | None = None
    """``json``, or a JSON Schema."""
    options: dict[str, Any] | None = None
    think: bool | str | None = None
    keep_alive: int | float | str | None = None
    """Seconds, or a duration as Go writes it."""
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def is_stream(self) -> bool:
        return self.stream is not False

    @property
    def num_ctx(self) -> int | None:
        """How long a context the client expects."""
        return _whole(self.options or {}, "num_ctx")


# ── names ───────────────────────────────────────────────────────────────────────────────────────


def model_id(name: str | None) -> str:
    """The id that a name means: ``x`` and ``x:latest`` are one model."""
    return (name or "").removesuffix(LATEST)


def full_name(model: str) -> str:
    """An id with a tag, as lists show it."""
    return model if ":" in model.rpartition("/")[2] else model + LATEST


def shown_name(asked: str | None, model: str) -> str:
    """The name of the model that answers: as the client wrote it, if it named this one."""
    return asked if asked and model_id(asked) == model else full_name(model)


# ── options ─────────────────────────────────────────────────────────────────────────────────────


def options_of(asked: ReplyBody, defaults: Mapping[str, float]) -> dict[str, Any]:
    """The keywords of a request. Options that are not known here have no effect."""
    plain = asked.options or {}
    found: dict[str, Any] = {name: _real(plain, name) for name in _REALS}
    found |= {name: _whole(plain, name) for name in _WHOLES}
    given = _others(plain)
    given |= {name: value for name, value in found.items() if value is not None}
    if not given.get("mirostat"):
        for name in ("mirostat", "mirostat_tau", "mirostat_eta"):
            given.pop(name, None)
    if stops := _stops(plain.get("stop")):
        given["stop"] = stops
    options = sampled(given, defaults)
    most = _whole(plain, "num_predict")
    # -1: no limit, -2: as much as the context holds; 0 limits nothing in Ollama either.
    options["max_tokens"] = most if most is not None and most > 0 else None
    options |= _format(asked.format)
    if (top := asked.top_logprobs) is not None and not 0 <= top <= MAX_TOP_LOGPROBS:
        raise invalid(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}", "top_logprobs")
    if asked.logprobs:
        options["n_logprobs"] = asked.top_logprobs or 0
    return options


def _others(plain: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: plain[name] for name in _OTHERS if plain.get(name) is not None}
    try:
        return given_options(msgspec.convert(kept, Options, strict=False))
    except msgspec.ValidationError as error:
        raise invalid(f"options: {error}", "options") from None


def _real(plain: Mapping[str, Any], name: str) -> float | None:
    value = plain.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid(f'option "{name}" must be a number', f"options.{name}")
    return value


def _whole(plain: Mapping[str, Any], name: str) -> int | None:
    """Clients without integers send ``40.0``."""
    value = _real(plain, name)
    return None if value is None else int(value)


def _stops(given: object) -> list[str]:
    ones = [given] if isinstance(given, str) else given or []
    if not isinstance(ones, list) or not all(isinstance(one, str) for one in ones):
        raise invalid('option "stop" must be a list of texts', "options.stop")
    return [one for one in ones if one]


def _format(given: str | dict[str, Any] | None) -> dict[str, Any]:
    if isinstance(given, dict):
        return {"json_schema": given}
    if not given:
        return {}
    if given == "json":
        return {"response_format": {"type": "json_object"}}
    raise invalid(f'invalid format: "{given}"; expected "json" or a JSON Schema', "format")


def thinking_of(think: bool | str | None) -> dict[str, Any]:
    """The keywords for ``think``."""
    if think is None:
        return {}
    if isinstance(think, bool):
        return {"enable_thinking": think}
    if think in EFFORTS:
        return {"reasoning_effort": think}
    levels = ", ".join(f'"{one}"' for one in EFFORTS)
    raise invalid(f'invalid think value: "{think}" (must be {levels}, true, or false)', "think")


# ── durations ───────────────────────────────────────────────────────────────────────────────────


ENDLESS_S: Final = 1e9


def keep_alive_s(given: float | str | None) -> float | None:
    """Seconds to keep a model loaded; infinite where it is negative, or decades. None: not given.

    A number is seconds; a text is a duration as Go writes it (``5m``, ``1h30m``, ``300ms``).
    """
    if given is None:
        return None
    seconds = _seconds(given) if isinstance(given, str) else float(given)
    return math.inf if seconds < 0 or seconds > ENDLESS_S else seconds


def _seconds(text: str) -> float:
    sign = -1.0 if text.startswith("-") else 1.0
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest.isascii() and rest.isdigit():
        return sign * float(rest)
    parts = _DURATION.findall(rest)
    if not parts or "".join(number + unit for number, unit in parts) != rest:
        raise invalid(
            f'keep_alive: invalid duration "{text}"; write seconds, or a text such as "5m"',
            "keep_alive",
        )
    return sign * sum(float(number) * _UNITS[unit] for number, unit in parts)
