"""Sampling options by the names of OpenAI's API and of llama.cpp's server."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from native.errors import InvalidParam
from native.sampling_params import FIELD_NAMES, MAX_BIASES, MAX_WINDOW, SAMPLERS, SamplingParams
from runtime.errors import InvalidRequest
from runtime.settings.arguments import plain

Options = dict[str, Any]

_SAME: Final = {
    "typ_p": "typical_p",
    "repeat_penalty": "repetition_penalty",
    "dry_sequence_breakers": "dry_breakers",
    "n_probs": "n_logprobs",
}
"""Other names for the same thing."""
_WINDOWS: Final = {"repeat_last_n": "repetition_window", "dry_penalty_last_n": "dry_window"}
"""Options where -1 is all of the text."""
_LETTERS: Final = dict(zip("edskypmxt", SAMPLERS, strict=True))
"""llama.cpp's, of its option for a sequence of samplers."""
_SAMPLER_NAMES: Final = {
    **{name.replace("_", ""): name for name in SAMPLERS},
    "typ": "typical_p", "typp": "typical_p", "nucleus": "top_p", "temp": "temperature",
}  # fmt: skip
"""Without hyphens and underscores."""
_SEPARATORS: Final = re.compile("[;,]")
_NUMBER: Final = re.compile("[+-]?[0-9]+")
_NUMBERS: Final = frozenset((int, float, bool))
_ANY_JSON: Final = '{"type": "object"}'


def sampling_from_options(**options: Any) -> SamplingParams:
    """Parameters from options; ``None`` leaves one at its default, which is off.

    Besides the fields of ``SamplingParams``: ``repeat_penalty``, ``typ_p``, ``repeat_last_n``,
    ``dry_penalty_last_n`` (both: -1 for all of the text), ``dry_sequence_breakers``, ``n_probs``;
    ``logprobs`` with ``top_logprobs``; ``response_format``; ``logit_bias`` as a mapping or list, a
    bias of ``False`` for minus infinity; ``json_schema`` as an object; ``seed`` -1 for any;
    ``samplers`` as a list of names, those of llama.cpp included, or as its letters; ``top_n_sigma``
    -1 for off. Names the option and what is allowed in ``InvalidRequest``.
    """
    given = {name: plain(value) for name, value in options.items() if value is not None}
    if any(type(value) not in _NUMBERS for value in given.values()) or given.get("seed") == -1:
        return _sampling(given)
    return _sampling_of_numbers(tuple((name, type(one), one) for name, one in given.items()))


@lru_cache(maxsize=256)
def _sampling_of_numbers(given: tuple[tuple[str, type, Any], ...]) -> SamplingParams:
    """The checks of some thirty fields are done once for what most requests repeat."""
    return _sampling({name: value for name, _, value in given})


def _sampling(given: Options) -> SamplingParams:
    fields: Options = {}
    try:
        _take_logprobs(given, fields)
        _take_format(given, fields)
        for name, value in given.items():
            _put(fields, _field_of(name), _READ.get(name, _as_is)(name, value))
        return SamplingParams(**fields)
    except InvalidParam as error:
        raise InvalidRequest(str(error)) from error


def _field_of(name: str) -> str:
    field = _SAME.get(name) or _WINDOWS.get(name) or name
    if field not in FIELD_NAMES:
        from difflib import get_close_matches

        near = get_close_matches(name, [*FIELD_NAMES, *_SAME, *_WINDOWS], 1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are: {', '.join(FIELD_NAMES)}"
        raise InvalidRequest(f"there is no sampling option {name!r}{hint}")
    return field


def _put(fields: Options, field: str, value: object) -> None:
    if field in fields:
        raise InvalidRequest(f"{field} is given twice, under two names")
    fields[field] = value


def _as_is(_name: str, value: object) -> object:
    return value


def _window(name: str, value: object) -> object:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not -1 <= value <= MAX_WINDOW:  # type: ignore[operator]
        raise InvalidParam(name, value, f"-1 for all of the text, 0 for off, up to {MAX_WINDOW}")
    return MAX_WINDOW if value == -1 else value


def _seed(_name: str, value: object) -> object:
    return (
        int.from_bytes(os.urandom(8), "little") if isinstance(value, int) and value == -1 else value
    )


def _top_k(_name: str, value: object) -> object:
    all_of_them = isinstance(value, int) and value == -1  # as llama.cpp's users write it
    return 0 if all_of_them else value


def _sigma(_name: str, value: object) -> object:
    is_off = isinstance(value, int | float) and value == -1  # as llama.cpp's users write it
    return 0.0 if is_off else value


def _samplers(name: str, value: object) -> tuple[str, ...]:
    """Names, or one text: of llama.cpp's letters, or of names with a semicolon between them."""
    if isinstance(value, str) and not _SEPARATORS.search(value):
        letters = f"a list of {', '.join(SAMPLERS)}, or a text of {''.join(_LETTERS)} in any order"
        for letter in value:
            if letter not in _LETTERS:
                raise InvalidParam(name, value, letters)
        return tuple(_LETTERS[letter] for letter in value)
    names = _SEPARATORS.split(value) if isinstance(value, str) else value
    if not isinstance(names, list | tuple):
        raise InvalidParam(name, value, f"a list of {', '.join(SAMPLERS)}")
    return tuple(_sampler(name, one) for one in names)


def _sampler(name: str, one: object) -> str:
    plain_name = re.sub("[-_ ]", "", one).lower() if isinstance(one, str) else ""
    if plain_name not in _SAMPLER_NAMES:
        raise InvalidParam(name, one, f"some of {', '.join(SAMPLERS)}, each at most once")
    return _SAMPLER_NAMES[plain_name]


def _texts(_name: str, value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _schema(name: str, value: object) -> object:
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping | bool):
        raise InvalidParam(name, value, "a JSON object as a mapping, or its JSON text")
    from runtime.client.grammar import json_of  # here: few requests have a schema

    try:
        return json_of(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidParam(name, value, f"a schema that can be written as JSON ({error})") from None


def _biases(name: str, value: object) -> tuple[tuple[int | str, float], ...]:
    """In a mapping digits are a token id, since JSON has no other keys; in pairs they are text."""
    is_mapping = isinstance(value, Mapping)
    pairs = value.items() if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping | list | tuple):
        raise InvalidParam(name, value, "a mapping of tokens to numbers, or a list of pairs")
    read = []
    # More than there may be are refused later, by those that were read.
    for pair in itertools.islice(pairs, MAX_BIASES + 1):  # type: ignore[call-overload]
        try:
            key, bias = map(plain, pair)
            number = -math.inf if bias is False else plain(bias)
            if not isinstance(number, int | float) or isinstance(number, bool):
                raise TypeError
            read.append((_biased(key, digits_are_ids=is_mapping), number))
        except (TypeError, ValueError, OverflowError):
            raise InvalidParam(
                name, pair, "a token id or a text, and a number, or False to ban it"
            ) from None
    return tuple(read)


def _biased(key: object, *, digits_are_ids: bool) -> int | str:
    if isinstance(key, str):
        return int(key) if digits_are_ids and _NUMBER.fullmatch(key) else str(key)
    if isinstance(key, bool) or (isinstance(key, float) and not key.is_integer()):
        raise TypeError
    return int(key)  # type: ignore[call-overload, no-any-return]


_READ: Final[Mapping[str, Callable[[str, object], object]]] = {
    **dict.fromkeys(_WINDOWS, _window),
    "seed": _seed,
    "top_k": _top_k,
    "top_n_sigma": _sigma,
    "samplers": _samplers,
    "dry_breakers": _texts,
    "dry_sequence_breakers": _texts,
    "logit_bias": _biases,
    "json_schema": _schema,
}


def _take_logprobs(given: Options, fields: Options) -> None:
    """OpenAI has one option for whether, and another for how many."""
    wanted, top = given.pop("logprobs", None), given.pop("top_logprobs", None)
    if wanted is True or (wanted is None and top is not None):
        fields["n_logprobs"] = 0 if top is None else top
    elif wanted is False and top is not None:
        raise InvalidRequest("top_logprobs needs logprobs=True")
    elif wanted is not None and wanted is not False:
        fields["n_logprobs"] = wanted  # the older form: how many


def _take_format(given: Options, fields: Options) -> None:
    wanted = given.pop("response_format", None)
    if wanted is None:
        return
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "text":
        return
    inner = wanted.get("json_schema") if isinstance(wanted, Mapping) else None
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if kind == "json_object":
        given_schema = wanted.get("schema")
        is_any = given_schema is None or given_schema == {}
        fields["json_schema"] = _ANY_JSON if is_any else _schema("response_format", given_schema)
    elif kind == "json_schema" and isinstance(schema, Mapping):
        fields["json_schema"] = _schema("response_format", schema)
    else:
        raise InvalidParam(
            "response_format",
            wanted,
            "{'type': 'text'}, {'type': 'json_object'} or "
            "{'type': 'json_schema', 'json_schema': {'schema': {…}}}",
        )
