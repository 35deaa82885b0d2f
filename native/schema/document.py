"""A JSON schema as a document: its places, its references, and what each keyword may hold."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from native.schema.refused import Refused

MAX_DEPTH = 64
MAX_NAME = 500
"""Characters of a property name or a reference."""
MAX_EXPONENT = 400
TYPES = ("null", "boolean", "object", "array", "string", "number", "integer")


def _is_count(value: Any) -> bool:
    whole = isinstance(value, (int, Decimal)) and not isinstance(value, bool)
    return whole and value >= 0 and value == int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, Decimal)) and not isinstance(value, bool)


def _is_schema(value: Any) -> bool:
    return isinstance(value, (bool, dict))


def _is_schemas(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_schema, value))


def _is_schema_map(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_schema, value.values()))


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(one, str) and one in TYPES for one in names)


def _is_dependencies(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_schema(v) or _is_texts(v) for v in value.values())


_Check = tuple[str, Callable[[Any], bool]]
_COUNT: _Check = ("a whole number, 0 or more", _is_count)
_SCHEMA: _Check = ("a schema", _is_schema)
_SCHEMAS: _Check = ("a list of schemas, at least one", _is_schemas)
_MAP: _Check = ("an object of schemas", _is_schema_map)
_TEXT: _Check = ("a text", lambda value: isinstance(value, str))
_LIMIT: _Check = ("a number", _is_number)
_ANY: _Check = ("any value", lambda _: True)

OBEYED: dict[str, _Check] = {
    "$ref": _TEXT,
    "$defs": ("an object", lambda value: isinstance(value, dict)),
    "definitions": ("an object", lambda value: isinstance(value, dict)),
    "$anchor": _TEXT,
    "type": (f"one or a list of {', '.join(TYPES)}", _is_type),
    "enum": ("a list of values, at least one", lambda v: isinstance(v, list) and bool(v)),
    "const": _ANY,
    "allOf": _SCHEMAS,
    "anyOf": _SCHEMAS,
    "oneOf": _SCHEMAS,
    "not": _SCHEMA,
    "if": _SCHEMA,
    "then": _SCHEMA,
    "else": _SCHEMA,
    "properties": _MAP,
    "patternProperties": _MAP,
    "additionalProperties": _SCHEMA,
    "unevaluatedProperties": _SCHEMA,
    "propertyNames": _SCHEMA,
    "required": ("a list of names", _is_texts),
    "minProperties": _COUNT,
    "maxProperties": _COUNT,
    "dependentRequired": ("an object of lists of names", _is_dependencies),
    "dependentSchemas": _MAP,
    "dependencies": ("an object of schemas or lists of names", _is_dependencies),
    "items": (
        "a schema or a list of schemas",
        lambda v: _is_schema(v) or v == [] or _is_schemas(v),
    ),
    "prefixItems": _SCHEMAS,
    "additionalItems": _SCHEMA,
    "unevaluatedItems": _SCHEMA,
    "minItems": _COUNT,
    "maxItems": _COUNT,
    "uniqueItems": ("true or false", lambda value: isinstance(value, bool)),
    "contains": _SCHEMA,
    "minContains": _COUNT,
    "maxContains": _COUNT,
    "minLength": _COUNT,
    "maxLength": _COUNT,
    "pattern": _TEXT,
    "format": _TEXT,
    "minimum": _LIMIT,
    "maximum": _LIMIT,
    "exclusiveMinimum": ("a number", lambda v: _is_number(v) or isinstance(v, bool)),
    "exclusiveMaximum": ("a number", lambda v: _is_number(v) or isinstance(v, bool)),
    "multipleOf": ("a number above 0", lambda value: _is_number(value) and value > 0),
}
"""Keywords that decide which values are valid, and what they may hold. What of them cannot be
obeyed beside a schema's other keywords is refused at its place."""

ANNOTATIONS = frozenset(
    [
        "$schema",
        "$id",
        "id",
        "$comment",
        "$vocabulary",
        "title",
        "description",
        "default",
        "examples",
        "example",
        "deprecated",
        "readOnly",
        "writeOnly",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
        "nullable",
        "discriminator",
        "xml",
        "externalDocs",
    ]
)
"""Known keywords that do not decide which values are valid. ``nullable`` of OpenAPI allows one
value more; it is left out, so that other validators agree."""

REFUSED: dict[str, str] = {
    "$dynamicRef": "is not supported; write $ref",
    "$recursiveRef": "is not supported; write $ref",
    "extends": "is of an old draft; write allOf",
    "disallow": "is of an old draft; write not",
    "divisibleBy": "is of an old draft; write multipleOf",
}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


_MISSPELT = {_plain(name): name for name in OBEYED}


def inside(place: str, *parts: str | int) -> str:
    """The JSON pointer of something within ``place``."""
    for part in parts:
        place += "/" + str(part).replace("~", "~0").replace("/", "~1")
    return place


def parse(text: str) -> Any:
    """The schema as Python objects; its fractions are Decimals. Refused if it is no JSON object."""
    try:
        schema = json.loads(text, parse_float=_fraction, parse_constant=_constant)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise Refused("#", f"JSON text ({error})") from None
    if not isinstance(schema, dict):
        raise Refused("#", "a JSON object")
    _check_shape(schema)
    return schema


def _fraction(text: str) -> Decimal:
    number = Decimal(text)
    if number and abs(number.adjusted()) > MAX_EXPONENT:
        raise ValueError(f"a number beyond all use: {text[:20]}")
    return number


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _too_deep() -> Refused:
    return Refused("#", f"it is nested more than {MAX_DEPTH} levels deep")


def _check_shape(schema: dict[str, Any]) -> None:
    todo: list[tuple[Any, int]] = [(schema, 1)]
    while todo:
        value, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise _too_deep()
        if isinstance(value, str):
            _check_text(value)
        elif isinstance(value, dict):
            for name, inner in value.items():
                _check_text(name)
                if len(name) > MAX_NAME:
                    raise Refused("#", f"a name has more than {MAX_NAME} characters: {name[:40]}…")
                todo.append((inner, depth + 1))
        elif isinstance(value, list):
            todo += [(inner, depth + 1) for inner in value]


def _check_text(text: str) -> None:
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise Refused("#", f"a text holds half a surrogate pair: {ascii(text)[:40]}")


class Document:
    """The schemas of a document by their places."""

    def __init__(self, text: str) -> None:
        self.root = parse(text)

    def at(self, place: str) -> Any:
        """The schema at a place that ``inside`` or ``follow`` returned."""
        found = self._find(place)
        if not _is_schema(found):
            raise Refused(place, "is no schema (an object, true or false)")
        return found

    def _find(self, place: str) -> Any:
        target: Any = self.root
        for part in place.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and name.isdecimal() and int(name) < len(target):
                target = target[int(name)]
            elif isinstance(target, dict) and name in target:
                target = target[name]
            else:
                return None
        return target

    def follow(self, place: str, reference: str) -> str:
        """The place that the ``$ref`` at ``place`` refers to."""
        where = inside(place, "$ref")
        if len(reference) > MAX_NAME:
            raise Refused(where, f"is longer than {MAX_NAME} characters")
        own = self.root.get("$id", self.root.get("id"))
        if isinstance(own, str) and own.rstrip("#") and reference.startswith(own.rstrip("#")):
            reference = reference[len(own.rstrip("#")) :] or "#"
        if not reference.startswith("#"):
            raise Refused(where, f"refers outside of this schema: {reference[:60]!r}; copy it here")
        target = unquote(reference)
        if target != "#" and not target.startswith("#/"):
            target = self._anchors().get(target[1:], "#/$anchor")
        if not _is_schema(self._find(target)):
            raise Refused(where, f"refers to nothing in this schema: {reference[:60]!r}")
        return target

    def _anchors(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for place, schema in self._objects():
            for name in (schema.get("$anchor"), str(schema.get("$id", ""))[1:]):
                if isinstance(name, str) and name:
                    found.setdefault(name, place)
        return found

    def _objects(self) -> Iterator[tuple[str, dict[str, Any]]]:
        todo: list[tuple[str, Any]] = [("#", self.root)]
        while todo:
            place, value = todo.pop()
            if isinstance(value, dict):
                yield place, value
                todo += [(inside(place, name), inner) for name, inner in value.items()]
            elif isinstance(value, list):
                todo += [(inside(place, i), inner) for i, inner in enumerate(value)]


def check_keywords(place: str, schema: dict[str, Any]) -> None:
    """Refused, if a keyword of ``schema`` is none that can be obeyed or may be left out."""
    for name, value in schema.items():
        if name in REFUSED:
            raise Refused(inside(place, name), REFUSED[name])
        if name in OBEYED:
            wanted, check = OBEYED[name]
            if not check(value):
                shown = json.dumps(value, default=str, ensure_ascii=False)
                raise Refused(inside(place, name), f"is {shown[:40]} and must be {wanted}")
        elif name not in ANNOTATIONS and _plain(name) in _MISSPELT and not name.startswith("x-"):
            meant = _MISSPELT[_plain(name)]
            raise Refused(inside(place, name), f"is no keyword; did you mean {meant}?")
    if place != "#" and ("$id" in schema or "id" in schema) and _has_references(schema):
        named = schema.get("$id", schema.get("id"))
        if isinstance(named, str) and not named.startswith("#"):
            raise Refused(inside(place, "$id"), "changes what the references in it mean; remove it")


def _has_references(schema: Any) -> bool:
    todo = [schema]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                return True
            todo += value.values()
        elif isinstance(value, list):
            todo += value
    return False
