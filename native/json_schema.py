"""What is refused of a JSON schema before llama.cpp's converter sees it.

The converter recurses as deep as the schema does and follows references; a schema made to hurt it
would end the process. These limits are far above what schemas of people and tools need.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from native.errors import InvalidParam

MAX_DEPTH = 64
MAX_NAME = 500
"""Characters of a property name or a reference; the converter matches them with recursion."""
MAX_ALTERNATIVES = 20_000
"""Schemas to convert, once for every type in a list of types, multiplied on the way down."""


def check_schema(text: str) -> None:
    """InvalidParam, unless ``text`` is a JSON object that the converter can work through."""
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise InvalidParam("json_schema", _short(text), f"JSON text ({error})") from None
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(schema, dict):
        raise InvalidParam("json_schema", _short(text), "a JSON object")
    _check_shape(schema)
    for reference in _references(schema):
        _check_reference(schema, reference)


def _check_shape(schema: dict[str, Any]) -> None:
    total = 0
    todo: list[tuple[Any, int, int]] = [(schema, 1, 1)]  # value, depth, times it is converted
    while todo:
        value, depth, times = todo.pop()
        total += times
        if depth > MAX_DEPTH:
            raise _too_deep()
        if total > MAX_ALTERNATIVES:
            raise InvalidParam("json_schema", "…", f"at most {MAX_ALTERNATIVES} schemas in all")
        if isinstance(value, dict):
            types = value.get("type")
            times *= max(1, len(types)) if isinstance(types, list) else 1
            for name, inner in value.items():
                _check_name(name)
                todo.append((inner, depth + 1, times))
        elif isinstance(value, list):
            todo += [(inner, depth + 1, times) for inner in value]


def _references(value: Any) -> Iterator[str]:
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            reference = one.get("$ref")
            if isinstance(reference, str):
                _check_name(reference)
                yield reference
            todo += one.values()
        elif isinstance(one, list):
            todo += one


def _check_reference(schema: dict[str, Any], reference: str) -> None:
    """A chain of nothing but references that comes back to itself describes nothing."""
    seen: set[str] = set()
    at: Any = reference
    while isinstance(at, str) and at.startswith("#"):
        if at in seen:
            raise InvalidParam("json_schema", _short(at), "references that end somewhere")
        seen.add(at)
        target: Any = schema
        for part in at.split("/")[1:]:
            if isinstance(target, list) and part.isdigit() and int(part) < len(target):
                target = target[int(part)]
            else:
                target = target.get(part) if isinstance(target, dict) else None
        at = target.get("$ref") if isinstance(target, dict) else None


def _check_name(name: str) -> None:
    if len(name) > MAX_NAME:
        raise InvalidParam("json_schema", _short(name), f"names of at most {MAX_NAME} characters")


def _too_deep() -> InvalidParam:
    return InvalidParam("json_schema", "…", f"nested at most {MAX_DEPTH} levels deep")


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "…"
