"""Laws of JSON schemas as grammars, on random schemas: what comes out obeys the schema.

The judge is the ``jsonschema`` package, the reader of the grammars is ``tests.support.gbnf``.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from native import InvalidParam
from native.schema import grammar_of
from native.schema.document import TYPES
from tests.support.gbnf import Grammar

pytestmark = pytest.mark.pure

Schemas = st.SearchStrategy[dict[str, Any]]
NAMES = st.sampled_from(["a", "b", "", "x/y~", "xa", 'q"'])
POOL: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 14, -7, 20, 100, 0.5, -0.25, 2.5, 3.75, "", "a", "b",
    "ab", "aab", "ba", "a1", "1", "a\nb", '"', "\\", "/", "a b", "💥",
    [], [1], [1, 1], [1, 2, 3],
    ["a"], ["a", 1], [None, None, None, None], {}, {"a": 1}, {"b": "a"}, {"a": None, "b": 2},
    {"zz": 1},
]  # fmt: skip
VALUES = st.sampled_from(POOL)
PATTERNS = st.sampled_from(
    ["a", "^a", "b$", "^[ab]*$", "^a{1,2}b?$", r"\d", r"^\w+$", r"\s", '[^"]', ".", "^(a|b)+$",
     "a|^b", r"^\S\W?$", r"^\/$", "^(?:[^\\\\]|é)$", "^$", "", r"^\x61\u0062"]
)  # fmt: skip
SMALL = st.integers(0, 3)
LIMITS = st.sampled_from([-7, -1, 0, 1, 2, 3, 20, 0.5, -0.25, 2.5, 3.75])


def some(required: dict[str, Any], optional: dict[str, Any]) -> Schemas:
    return st.fixed_dictionaries(
        {word: st.just(value) for word, value in required.items()},
        optional=optional,
    )


def numbers() -> Schemas:
    limits = dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), LIMITS)
    steps = st.sampled_from([1, 2, 3, 7, 10, 0.5, 0.25, 2.5])
    some_of = st.lists(st.sampled_from([0, 1, -1, 2.5, 20, "a"]), min_size=1, max_size=3)
    nots = st.just({"type": "null"}) | st.builds(lambda values: {"enum": values}, some_of)
    wanted = {**limits, "multipleOf": steps, "not": nots}
    return some({"type": "number"}, wanted) | some({"type": "integer"}, wanted)


def strings() -> Schemas:
    wanted = {
        "minLength": SMALL, "maxLength": SMALL, "pattern": PATTERNS,
        "not": st.builds(lambda p: {"pattern": p}, PATTERNS) | st.just({"enum": ["a", "ab"]}),
        "enum": st.lists(VALUES, min_size=1, max_size=5), "allOf": st.just([{"pattern": "a"}]),
    }  # fmt: skip
    return some({"type": "string"}, wanted)


def lists(inner: Schemas) -> Schemas:
    wanted = {
        "items": inner, "prefixItems": st.lists(inner, min_size=1, max_size=2), "minItems": SMALL,
        "maxItems": SMALL, "uniqueItems": st.booleans(), "contains": inner, "minContains": SMALL,
        "maxContains": SMALL,
        "unevaluatedItems": st.just(False),
    }  # fmt: skip
    return some({"type": "array"}, wanted)


def objects(inner: Schemas) -> Schemas:
    wanted = {
        "properties": st.dictionaries(NAMES, inner, max_size=3),
        "required": st.lists(NAMES, max_size=2, unique=True),
        "additionalProperties": st.booleans() | inner,
        "unevaluatedProperties": st.booleans() | inner,
        "patternProperties": st.dictionaries(PATTERNS, inner, max_size=2),
        "propertyNames": strings() | st.just({"pattern": "^[ab]"}),
        "minProperties": SMALL, "maxProperties": SMALL,
        "dependentRequired": st.dictionaries(
            NAMES, st.lists(NAMES, max_size=2, unique=True), max_size=1
        ),
        "dependentSchemas": st.dictionaries(NAMES, inner, max_size=1),
    }  # fmt: skip
    return some({"type": "object"}, wanted)


def combined(inner: Schemas) -> Schemas:
    several = st.lists(inner | st.booleans(), min_size=1, max_size=3)
    wanted = {
        "allOf": several, "anyOf": several, "oneOf": several, "not": inner, "if": inner,
        "then": inner, "else": inner, "$ref": st.sampled_from(["#/$defs/one", "#/$defs/two"]),
        "properties": st.dictionaries(NAMES, inner, max_size=2),
        "enum": st.lists(VALUES, min_size=1),
        "const": VALUES, "minLength": SMALL, "minimum": LIMITS, "maxItems": SMALL,
        "type": st.lists(
            st.sampled_from(TYPES),
            min_size=1, unique=True,
        ),
        "required": st.lists(NAMES, max_size=2, unique=True), "title": st.just("a title"),
        "unevaluatedProperties": st.just(False),
    }  # fmt: skip
    return some({}, wanted)


LEAVES = numbers() | strings() | st.sampled_from([{"type": "null"}, {"type": "boolean"}, {}])
NESTED = st.recursive(
    LEAVES, lambda inner: lists(inner) | objects(inner) | combined(inner), max_leaves=6
)
DOCUMENTS = st.builds(
    lambda root, one, two: {**root, "$defs": {"one": one, "two": two}},
    NESTED, LEAVES, objects(LEAVES | st.just({"$ref": "#/$defs/two"})),
)  # fmt: skip


def converted(schema: Any) -> Grammar | None:
    """None: refused, with a place in the schema and a reason."""
    try:
        return Grammar(grammar_of(json.dumps(schema)))
    except InvalidParam as error:
        refused = error
    assert str(refused.value).startswith("#"), refused
    assert len(refused.allowed) > 10, refused
    return None


def ordered(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a grammar of ours writes it so: declared properties only, in their order."""
    if not isinstance(value, dict):
        return not isinstance(value, list) or "prefixItems" not in schema
    names = list(schema.get("properties", ()))
    return bool(names) and [name for name in names if name in value] == list(value)


@settings(max_examples=150, deadline=None)
@given(DOCUMENTS, st.integers(0, 1 << 30))
def test_what_a_schemas_grammar_accepts_obeys_the_schema(schema: dict[str, Any], seed: int) -> None:
    grammar = converted(schema)
    if grammar is None:
        return
    judge = Draft202012Validator(schema)
    rng = random.Random(seed)
    for length in (0, 5, 20, 40):
        text = grammar.random_text(rng, length)
        value = json.loads(text)
        assert judge.is_valid(value), (text, [one.message for one in judge.iter_errors(value)])
    for value in POOL:
        if grammar.accepts(json.dumps(value, ensure_ascii=False)):
            assert judge.is_valid(value), value


@settings(max_examples=150, deadline=None)
@given(numbers() | strings() | lists(numbers() | strings()) | objects(LEAVES))
def test_what_obeys_a_plain_schema_is_accepted(schema: dict[str, Any]) -> None:
    grammar = converted(schema)
    if grammar is None or schema.get("minProperties", 0) > 1:
        return
    judge = Draft202012Validator(schema)
    for value in POOL:
        if judge.is_valid(value) and ordered(value, schema):
            text = json.dumps(value, ensure_ascii=False)
            assert grammar.accepts(text), (text, schema)
