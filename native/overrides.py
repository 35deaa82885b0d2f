"""What replaces a model file's own metadata, and where its tensors are placed; read from texts.

The forms are llama.cpp's: ``KEY=TYPE:VALUE`` and ``PATTERN=BUFFER``. Values only; which keys and
buffer types there are is known where the model is loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from native.errors import InvalidParam
from native.gguf_header import GgufSummary, all_splits, check_gguf

KINDS: Final = ("int", "float", "bool", "str")
"""In the order of llama.cpp's enum."""
_KINDS_IN_FILES: Final = {
    "int": frozenset({0, 1, 2, 3, 4, 5, 10, 11}),
    "float": frozenset({6, 12}),
    "bool": frozenset({7}),
    "str": frozenset({8}),
}
"""GGUF types that each kind replaces."""
_GGUF_NAMES: Final = {6: "float", 7: "bool", 8: "str", 9: "array", 12: "float"}
_MAX_BYTES: Final = 127  # of a key, and of a text, in llama.cpp
_MAX_OVERRIDES: Final = 64  # all of them travel in one message
_MAX_PATTERN: Final = 256  # characters
_NUMBER: Final = re.compile(r"-?\d{1,19}")
EXPERTS: Final = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""The expert weights of a layer, as llama.cpp names them."""
CPU: Final = "CPU"

MetadataValue = int | float | bool | str


@dataclass(frozen=True, slots=True)
class MetadataOverride:
    """One value in place of the file's, or beside what the file has."""

    key: str
    kind: str
    value: MetadataValue

    def __str__(self) -> str:
        value = str(self.value).lower() if self.kind == "bool" else str(self.value)
        return f"{self.key}={self.kind}:{value}"


def metadata_overrides(name: str, given: Any) -> tuple[MetadataOverride, ...]:
    """Texts of the form ``KEY=TYPE:VALUE``, read; ``InvalidParam`` under ``name``."""
    found: dict[str, MetadataOverride] = {}
    for text in _texts(name, given, "KEY=TYPE:VALUE"):
        one = _metadata_override(name, text)
        if one.key in found:
            raise InvalidParam(name, text, f"one value for each key; {one.key} has two")
        found[one.key] = one
    return tuple(found.values())


def _metadata_override(name: str, text: str) -> MetadataOverride:
    key, equals, rest = text.partition("=")
    kind, colon, value = rest.partition(":")
    if not (key and equals and colon) or kind not in KINDS:
        wanted = f"KEY=TYPE:VALUE, where TYPE is one of {', '.join(KINDS)}"
        raise InvalidParam(
            name, text, f"{wanted}, for instance tokenizer.ggml.add_bos_token=bool:false"
        )
    if len(key.encode()) > _MAX_BYTES:
        raise InvalidParam(name, text, f"a key of at most {_MAX_BYTES} bytes")
    return MetadataOverride(key, kind, _value(name, text, kind, value))


def _value(name: str, text: str, kind: str, value: str) -> MetadataValue:
    match kind:
        case "int":
            if _NUMBER.fullmatch(value) and -(1 << 63) <= int(value) < 1 << 63:
                return int(value)
            raise InvalidParam(name, text, "a whole number of 64 bits behind int:")
        case "float":
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if math.isfinite(number):
                return number
            raise InvalidParam(name, text, "a finite number behind float:")
        case "bool":
            if value in ("true", "false"):
                return value == "true"
            raise InvalidParam(name, text, "true or false behind bool:")
        case _:
            if len(value.encode()) > _MAX_BYTES:
                raise InvalidParam(name, text, f"a text of at most {_MAX_BYTES} bytes behind str:")
            return value


def check_kinds(name: str, overrides: Sequence[MetadataOverride], header: GgufSummary) -> None:
    """Refuse a value of another type than the file's; llama.cpp would ignore it."""
    for one in overrides:
        kind = header.kinds.get(one.key)
        if kind is not None and kind not in _KINDS_IN_FILES[one.kind]:
            is_of = _GGUF_NAMES.get(kind, "int")
            what = f"{one.key} is of type {is_of} in this file"
            if is_of == "array":
                raise InvalidParam(name, str(one), f"{what}, and arrays cannot be replaced")
            raise InvalidParam(name, str(one), f"{what}; write {one.key}={is_of}:…")


def model_headers(path: str | Path, overrides: Sequence[MetadataOverride]) -> list[GgufSummary]:
    """The headers of all files of a model, the first with what replaces its metadata.

    Raises ``ModelFileError`` for a file, and ``InvalidParam`` for a value of another type.
    """
    first = check_gguf(path)
    rest = [check_gguf(file) for file in all_splits(path, first)[1:]]
    check_kinds("override_kv", overrides, first)
    return [with_overrides(first, overrides), *rest]


def with_overrides(header: GgufSummary, overrides: Sequence[MetadataOverride]) -> GgufSummary:
    """The header as llama.cpp reads it then."""
    if not overrides:
        return header
    return replace(header, metadata=header.metadata | {one.key: one.value for one in overrides})


@dataclass(frozen=True, slots=True)
class TensorOverride:
    """The buffer type for the tensors whose names a regular expression (ECMAScript) finds."""

    pattern: str
    buffer: str

    def __str__(self) -> str:
        return f"{self.pattern}={self.buffer}"


def tensor_overrides(name: str, given: Any) -> tuple[TensorOverride, ...]:
    """Texts of the form ``PATTERN=BUFFER``, read; ``InvalidParam`` under ``name``."""
    found = []
    for text in _texts(name, given, "PATTERN=BUFFER"):
        pattern, equals, buffer = text.rpartition("=")
        if not (pattern and equals and buffer) or len(pattern) > _MAX_PATTERN:
            wanted = f"PATTERN=BUFFER, a pattern of at most {_MAX_PATTERN} characters"
            raise InvalidParam(name, text, f"{wanted}, for instance {EXPERTS}=CPU")
        found.append(TensorOverride(pattern, buffer))
    return tuple(found)


def expert_overrides(n_cpu_moe: int, *, cpu_moe: bool) -> tuple[TensorOverride, ...]:
    """The one that keeps expert weights on the CPU: of so many first layers, or of all."""
    if cpu_moe:
        return (TensorOverride(EXPERTS, CPU),)
    if not n_cpu_moe:
        return ()
    layers = "|".join(map(str, range(n_cpu_moe)))
    return (TensorOverride(rf"blk\.({layers}){EXPERTS}", CPU),)


def buffer_of(tensor: str, overrides: Sequence[TensorOverride]) -> str | None:
    """Where a tensor goes by the first pattern that fits; None: where it goes otherwise.

    For estimates: Python's regular expressions, which agree with llama.cpp's on usual patterns.
    """
    for one in overrides:
        try:
            if re.search(one.pattern, tensor):
                return one.buffer
        except re.error:
            continue
    return None


def _texts(name: str, given: Any, form: str) -> list[str]:
    wanted = f"a list of at most {_MAX_OVERRIDES} texts of the form {form}"
    if not isinstance(given, list | tuple) or len(given) > _MAX_OVERRIDES:
        raise InvalidParam(name, given, wanted)
    for text in given:
        if not isinstance(text, str) or not text.isprintable():
            raise InvalidParam(name, text, f"{wanted}, of printable characters")
    return list(given)
