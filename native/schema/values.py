"""JSON values: their texts, their types, and when two are equal."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

ALL_TYPES = frozenset(("null", "boolean", "object", "array", "string", "integer", "fraction"))
"""The types that are distinguished here: a ``number`` is an ``integer`` or a ``fraction``."""


def types_of(name: str) -> frozenset[str]:
    """The types that a name in a schema stands for."""
    return frozenset(("integer", "fraction")) if name == "number" else frozenset((name,))


def type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, Decimal)):
        return "integer" if value == value // 1 else "fraction"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def key_of(value: Any) -> Any:
    """Hashable; equal for equal JSON values: 1 is 1.0 and is not true."""
    if isinstance(value, list):
        return ("array", tuple(map(key_of, value)))
    if isinstance(value, dict):
        return ("object", frozenset((name, key_of(one)) for name, one in value.items()))
    kind = type_of(value)
    return ("number" if kind in ("integer", "fraction") else kind, value)


def text_of(value: Any) -> str:
    """JSON without blanks."""
    if isinstance(value, list):
        return "[" + ",".join(map(text_of, value)) + "]"
    if isinstance(value, dict):
        pairs = (f"{text_of(name)}:{text_of(one)}" for name, one in value.items())
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, Decimal):
        return str(value)
    return json.dumps(value, ensure_ascii=False)
