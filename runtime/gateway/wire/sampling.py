"""The options of a reply, by OpenAI's names and llama.cpp's, in all APIs that have both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from runtime.gateway.wire.failure import invalid

_SEEDS: Final = 1 << 64


Biases = dict[str, float | bool] | list[tuple[int | str, float | bool]]
"""Tokens or texts, and what is added to their logits; ``false`` bans one."""


class Options(msgspec.Struct, kw_only=True):
    """What bodies have in common. ``null`` is the same as leaving a field out."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    typ_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: list[str] | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    logit_bias: Biases | None = None
    ignore_eos: bool | None = None
    samplers: list[str] | str | None = None
    top_n_sigma: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    min_keep: int | None = None
    grammar: str | None = None
    json_schema: bool | str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    stop: str | list[str] | None = None
    session: str | None = None
    parent_key: str | None = None
    timeout_s: float | None = None
    speculation: str | None = None
    exact: str | None = None
    priority: str | None = None
    cache_salt: str | None = None
    """Separates rows below those of the key, as in vLLM: for an application's own users."""


_NAMES: Final = Options.__struct_fields__


def options_of(body: Options, defaults: Mapping[str, float]) -> dict[str, Any]:
    """The keywords of a request; ``defaults`` are for sampling options that it does not name."""
    return sampled(given_options(body), defaults)


def given_options(body: Options) -> dict[str, Any]:
    """What a request names."""
    given = {name: value for name in _NAMES if (value := getattr(body, name)) is not None}
    if "grammar" in given and not given["grammar"]:
        del given["grammar"]  # an empty one is none
    if biases := given.pop("logit_bias", None):
        given["logit_bias"] = _summed(biases)
    stops = given.get("stop")
    if isinstance(stops, list):
        given["stop"] = [one for one in stops if one]
    elif stops == "":
        del given["stop"]
    return given


def _summed(biases: Biases) -> Biases:
    """Several numbers for one token are their sum, as llama.cpp applies them; ``false`` stays."""
    if isinstance(biases, dict):
        return biases
    found: dict[int | str, float | bool] = {}
    for token, bias in biases:
        known = found.get(token)
        is_ban = bias is False or known is False
        found[token] = bias if known is None else False if is_ban else known + bias
    return list(found.items())


def sampled(given: dict[str, Any], defaults: Mapping[str, float]) -> dict[str, Any]:
    """Options with the gateway's defaults, and a seed of 64 bits, which -1 leaves open."""
    if not ("mirostat" in given or "samplers" in given or given.get("temperature") == 0):
        for name, value in defaults.items():
            given.setdefault(name, int(value) if float(value).is_integer() else value)
    if "temperature" in defaults:
        given.setdefault("temperature", defaults["temperature"])
    seed = given.get("seed", int(defaults.get("seed", -1)))
    given["seed"] = seed if seed == -1 else seed % _SEEDS
    return given


def max_tokens_of(*given: int | None, names: tuple[str, ...] = ("max_tokens",)) -> int | None:
    """The first that is given; -1 is none, as llama.cpp's clients write it."""
    for value, name in zip(given, names, strict=False):
        if value is None or value == -1:
            continue
        if value < 0:
            raise invalid(f"{name} is {value}; it is 0 or more, or -1 for as many as fit", name)
        return value
    return None
