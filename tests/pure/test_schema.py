"""JSON schemas as grammars: every keyword is obeyed, or refused by name and place."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native import InvalidParam
from native.schema import automaton, grammar_of
from native.schema.document import ANNOTATIONS, OBEYED
from native.schema.regex import BadPattern
from runtime.client.request_options import prompt_request
from runtime.errors import InvalidRequest
from tests.support.gbnf import Grammar

pytestmark = pytest.mark.pure

STRING = {"type": "string"}
LONG = "x" * 64


def grammar(schema: Any) -> Grammar:
    return Grammar(grammar_of(json.dumps(schema)))


def refusal(schema: Any) -> InvalidParam:
    with pytest.raises(InvalidParam) as caught:
        grammar_of(json.dumps(schema))
    return caught.value


def obj(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def bad_pattern(pattern: str) -> str | None:
    """Why it is refused, or None."""
    try:
        automaton.of_pattern(pattern)
    except BadPattern as error:
        return str(error)
    return None


OBEYED_CASES: dict[str, tuple[Any, list[str], list[str]]] = {
    "minimum of a number": (
        {"type": "number", "minimum": 0.5, "exclusiveMaximum": 12.25},
        ["0.5", "1", "12.2499", "3.14"],
        ["0.49", "12.25", "-1", "13", "0"],
    ),
    "negative limits": (
        {"type": "number", "minimum": -3.5, "maximum": -0.25},
        ["-3.5", "-1", "-0.25"],
        ["-3.51", "-0.2", "0", "1", "-4"],
    ),
    "exclusive as draft 4 wrote it": (
        {"type": "integer", "minimum": 3, "exclusiveMinimum": True},
        ["4", "10"],
        ["3", "2"],
    ),
    "a fraction as the limit of integers": (
        {"type": "integer", "minimum": 2.5, "maximum": 4.5},
        ["3", "4"],
        ["2", "5"],
    ),
    "multipleOf": ({"type": "integer", "multipleOf": 12}, ["0", "-24", "144"], ["6", "13"]),
    "multipleOf a fraction": (
        {"type": "number", "multipleOf": 0.01, "minimum": 0},
        ["0.29", "1.5", "7"],
        ["0.001", "-1"],
    ),
    "contains": (
        {"type": "array", "contains": {"type": "integer"}, "minContains": 2, "maxItems": 3},
        ["[1,2]", '["a",1,2]', "[1,2,3]"],
        ["[]", "[1]", '["a",1]', "[1,2,3,4]"],
    ),
    "maxContains": (
        {"type": "array", "contains": {"type": "null"}, "minContains": 0, "maxContains": 1},
        ["[]", "[null]", "[1,null,2]"],
        ["[null,null]"],
    ),
    "uniqueItems of listed values": (
        {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True, "minItems": 1},
        ['["a"]', '["c","a"]', '["b","c","a"]'],
        ["[]", '["a","a"]'],
    ),
    "uniqueItems of many values": (
        {"type": "array", "items": {"enum": [*range(20)]}, "uniqueItems": True, "maxItems": 2},
        ["[]", "[7]", "[19,0]"],
        ["[7,7]", "[1,2,3]"],
    ),
    "uniqueItems of one": (
        {"type": "array", "items": STRING, "uniqueItems": True, "maxItems": 1},
        ["[]", '["a"]'],
        ['["a","a"]'],
    ),
    "minProperties": (
        {**obj(a={}, b={}, c={}), "minProperties": 2},
        ['{"a":1,"c":2}', '{"a":1,"b":2,"c":3}'],
        ["{}", '{"b":1}'],
    ),
    "maxProperties": (
        {"type": "object", "maxProperties": 1},
        ["{}", '{"x":1}'],
        ['{"x":1,"y":2}'],
    ),
    "patternProperties": (
        {
            "type": "object",
            "patternProperties": {"^n": {"type": "null"}},
            "additionalProperties": False,
        },
        ["{}", '{"n":null}', '{"nx":null,"n":null}'],
        ['{"n":1}', '{"x":null}'],
    ),
    "patternProperties of a declared one": (
        {**obj(n1={"type": "integer"}), "patternProperties": {"1$": {"minimum": 5}}},
        ['{"n1":5}', '{"n1":9,"x1":7}'],
        ['{"n1":4}', '{"x1":3}'],
    ),
    "propertyNames": (
        {"type": "object", "propertyNames": {"maxLength": 2}},
        ['{"ab":1}'],
        ['{"abc":1}'],
    ),
    "dependentRequired": (
        {**obj(a={}, b={}), "dependentRequired": {"a": ["b"]}},
        ["{}", '{"b":1}', '{"a":1,"b":2}'],
        ['{"a":1}'],
    ),
    "dependentSchemas": (
        {**obj(a={}, b={"type": "integer"}), "dependentSchemas": {"a": obj(b={"minimum": 3})}},
        ['{"b":1}', '{"a":1,"b":3}', '{"a":1}'],
        ['{"a":1,"b":2}'],
    ),
    "dependencies": (
        {**obj(a={}, b={}), "dependencies": {"a": ["b"]}},
        ['{"a":1,"b":2}'],
        ['{"a":1}'],
    ),
    "not a type": ({"not": {"type": ["object", "array"]}}, ["1", '"a"', "null"], ["{}", "[]"]),
    "not a value": (
        {"type": "string", "not": {"enum": ["a", "b"]}},
        ['"c"', '""', '"aa"'],
        ['"a"', '"b"'],
    ),
    "not a number": (
        {"type": "number", "not": {"enum": [0, 2.5, "a"]}, "maximum": 9},
        ["1", "-3.25", "2", "2.51", "9", "0.1"],
        ["0", "2.5", "0.0", "10", "2.50"],
    ),
    "not a whole number": (
        {"type": "integer", "minimum": 1, "not": {"const": 3}},
        ["1", "2", "4", "33"],
        ["3", "0"],
    ),
    "not a pattern": (
        {"type": "string", "not": {"pattern": "^a"}},
        ['"ba"', '""'],
        ['"a"', '"ab"'],
    ),
    "not required": ({**obj(a={}, b={}), "not": {"required": ["a"]}}, ['{"b":1}'], ['{"a":1}']),
    "if, then, else": (
        {
            **obj(kind={"enum": ["x", "y"]}, n={"type": "integer"}),
            "required": ["kind"],
            "if": {"properties": {"kind": {"const": "x"}}},
            "then": {"required": ["n"]},
            "else": {"properties": {"n": False}},
        },
        ['{"kind":"x","n":1}', '{"kind":"y"}'],
        ['{"kind":"x"}', '{"kind":"y","n":1}'],
    ),
    "minItems beside prefixItems": (
        {"type": "array", "prefixItems": [{"type": "integer"}], "items": STRING, "minItems": 2},
        ['[1,"a"]', '[1,"a","b"]'],
        ["[1]", "[]", "[1,2]"],
    ),
    "prefixItems": (
        {"type": "array", "prefixItems": [{"type": "integer"}, STRING]},
        ['[1,"a"]'],
        ['["a",1]', '[1,"a",2]'],
    ),
    "items of draft 7": (
        {"type": "array", "items": [{"type": "integer"}], "additionalItems": STRING},
        ["[1]", '[1,"a"]'],
        ["[1,2]"],
    ),
    "pattern beside minLength": (
        {"type": "string", "pattern": "^[a-z]*$", "minLength": 2, "maxLength": 3},
        ['"ab"', '"abc"'],
        ['"a"', '"abcd"', '"AB"'],
    ),
    "keywords beside $ref": (
        {"$ref": "#/$defs/s", "maxLength": 2, "$defs": {"s": {**STRING, "minLength": 1}}},
        ['"a"', '"ab"'],
        ['""', '"abc"', "1"],
    ),
    "enum beside type": (
        {"type": "integer", "enum": ["a", 1, 2.0, None]},
        ["1", "2.0"],
        ['"a"', "null"],
    ),
    "required without a property": (
        {"type": "object", "required": ["q"]},
        ['{"q":1}'],
        ["{}", '{"x":1}'],
    ),
    "allOf of a string": (
        {"allOf": [{"$ref": "#/$defs/s"}], "$defs": {"s": STRING}},
        ['"x"'],
        ["{}"],
    ),
    "allOf of limits": (
        {"type": "integer", "allOf": [{"minimum": 3}, {"maximum": 5}]},
        ["3", "5"],
        ["2", "6"],
    ),
    "anyOf beside properties": (
        {
            **obj(a={"type": "integer"}, b=STRING),
            "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        },
        ['{"a":1}', '{"b":"x"}', '{"a":1,"b":"x"}'],
        ["{}", '{"a":"x"}'],
    ),
    "oneOf beside properties": (
        {**obj(a={}, b={}), "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        ['{"a":1}', '{"b":1}'],
        ["{}", '{"a":1,"b":1}'],
    ),
    "oneOf with a tag": (
        {"oneOf": [obj(k={"const": "a"}, v={"type": "null"}), obj(k={"const": "b"})]},
        ['{"k":"a","v":null}', '{"k":"b"}'],
        ["{}", '{"k":"b","v":null}'],
    ),
    "a property without a name": (
        {**obj(**{"": {"type": "integer"}, "a": {}}), "required": [""]},
        ['{"":1}', '{"":1,"a":2}'],
        ['{"":"x"}', "{}", "1"],
    ),
    "the whole schema as a reference": (
        {**obj(next={"anyOf": [{"$ref": "#"}, {"type": "null"}]}), "required": ["next"]},
        ['{"next":null}', '{"next":{"next":null}}'],
        ["{}", '{"next":1}'],
    ),
    "escaped pointers": (
        {"$ref": "#/$defs/a~1b~0c%20d", "$defs": {"a/b~c d": {"type": "null"}}},
        ["null"],
        ["1"],
    ),
    "anchors and the own address": (
        {
            "$id": "https://example.com/s",
            "anyOf": [{"$ref": "#here"}, {"$ref": "https://example.com/s#/$defs/b"}],
            "$defs": {"a": {"$anchor": "here", "type": "null"}, "b": {"const": 7}},
        },
        ["null", "7"],
        ["1"],
    ),
    "boolean schemas": (
        {**obj(a=True, b=False), "additionalProperties": False},
        ["{}", '{"a":[1]}'],
        ['{"b":1}'],
    ),
    "unevaluatedProperties": (
        {
            "allOf": [obj(a={"type": "integer"}), {**obj(b={}), "required": ["b"]}],
            "unevaluatedProperties": False,
        },
        ['{"a":1,"b":2}', '{"b":2}'],
        ["{}", '{"b":1,"c":1}'],
    ),
    "unevaluatedProperties of a failed test": (
        {
            "type": "object",
            "if": {"properties": {"a": {"const": 1}}, "required": ["a"]},
            "else": {"properties": {"b": {"type": "integer"}}, "required": ["b"]},
            "unevaluatedProperties": False,
        },
        ['{"a":1}', '{"b":2}'],
        ['{"a":2,"b":2}', '{"a":1,"b":2}', "{}"],
    ),
    "values that are objects": (
        {"enum": [{"a": 1}, {"a": "x"}, [1, 2]], "properties": {"a": {"type": "integer"}}},
        ['{"a":1}', "[1,2]"],
        ['{"a":"x"}'],
    ),
    "long texts": (
        {"type": "string", "minLength": 600, "maxLength": 3000},
        [f'"{LONG * 10}"', f'"{LONG * 46}"'],
        [f'"{LONG * 9}"', f'"{LONG * 47}"'],
    ),
    "date": (
        {"type": "string", "format": "date"},
        ['"2024-02-29"', '"1999-12-31"'],
        ['"2023-02-29"', '"2024-04-31"', '"0000-01-01"', '"1900-02-29"'],
    ),
    "time": ({"type": "string", "format": "time"}, ['"23:59:59Z"'], ['"24:00:00Z"', '"12:00"']),
    "uuid": (
        {"type": "string", "format": "uuid"},
        ['"123e4567-e89b-12d3-a456-426614174000"'],
        ['"1"'],
    ),
    "references and templates of addresses": (
        {"type": "string", "format": "uri-reference"},
        ['"https://example.com/a?b#c"', '"/a/b"', '"a"'],
        ['"a b"', '"<a>"'],
    ),
    "relative pointers": (
        {"type": "string", "format": "relative-json-pointer"},
        ['"0#"', '"12/a/b"', '"1"'],
        ['"/a"', '"01"', '"-1/a"'],
    ),
    "international names": (
        {"type": "string", "format": "idn-hostname"},
        ['"example.org"', '"a-b"'],
        ['"xn--x"', '"-a"', '"a..b"'],
    ),
    "format beside pattern": (
        {"type": "string", "format": "date", "pattern": "^2024"},
        ['"2024-01-01"'],
        ['"2023-01-01"'],
    ),
    "annotations": (
        {"type": "null", "title": "t", "x-order": 3, "nullable": True, "example": 1, "vendor": {}},
        ["null"],
        ["1"],
    ),
}


@pytest.mark.parametrize(("schema", "good", "bad"), OBEYED_CASES.values(), ids=OBEYED_CASES.keys())
def test_a_keyword_is_obeyed(schema: Any, good: list[str], bad: list[str]) -> None:
    rules = grammar(schema)
    for text in good:
        assert rules.accepts(text), text
    for text in bad:
        assert not rules.accepts(text), text


def nested(schema: Any) -> dict[str, Any]:
    return obj(**{"a/b": schema})


REFUSED_CASES: dict[str, tuple[Any, str, str]] = {
    "uniqueItems": (
        {"type": "array", "items": STRING, "uniqueItems": True},
        "uniqueItems",
        "maxItems",
    ),
    "contains": (
        {"type": "array", "contains": {"multipleOf": 3}, "maxContains": 1},
        "contains",
        "no opposite",
    ),
    "minProperties": ({"type": "object", "minProperties": 3}, "minProperties", "names are free"),
    "not": ({"not": {"type": "array", "uniqueItems": True}}, "not", "no opposite"),
    "if": ({"if": {"multipleOf": 3}, "then": STRING}, "if", "no opposite"),
    "oneOf": ({"oneOf": [{"minimum": 3}, {"maximum": 5}]}, "oneOf", "alternative 0 may obey"),
    "enum against type": ({"type": "string", "enum": [1, 2]}, "enum", "no value"),
    "const against a limit": ({"const": 3, "minimum": 4}, "const", "no value"),
    "limits that cross": ({"type": "number", "minimum": 3, "maximum": 2}, "minimum", "no number"),
    "allOf of two types": (
        {"allOf": [STRING, {"type": "null"}], "type": "null"},
        "type",
        "no type",
    ),
    "a required property that is forbidden": (
        {"type": "object", "properties": {}, "required": ["a"], "additionalProperties": False},
        "required",
        "'a'",
    ),
    "look-around": ({**STRING, "pattern": "a(?!b)"}, "pattern", "look-around at position 1"),
    "a back-reference": (
        {**STRING, "pattern": r"(a)\1"},
        "pattern",
        r"back-reference \1 at position 3",
    ),
    "a word boundary": ({**STRING, "pattern": r"\ba"}, "pattern", "word boundary"),
    "flags": ({**STRING, "pattern": "(?i)a"}, "pattern", "flag"),
    "half a pattern": ({**STRING, "pattern": "(a"}, "pattern", "not closed at position 0"),
    "a format of the standard": ({**STRING, "format": "regex"}, "format", "write a pattern"),
    "dynamic references": ({"$dynamicRef": "#a"}, "$dynamicRef", "$ref"),
    "references to elsewhere": ({"$ref": "https://example.com/x"}, "$ref", "outside"),
    "references to nothing": ({"$ref": "#/$defs/none"}, "$ref", "nothing in this schema"),
    "a keyword in other letters": (
        {**STRING, "minlength": 3},
        "minlength",
        "did you mean minLength",
    ),
    "a keyword with underscores": ({**STRING, "max_length": 3}, "max_length", "maxLength"),
    "a wrong type": ({"type": "frob"}, "type", "frob"),
    "a negative count": ({"type": "array", "minItems": -1}, "minItems", "whole number"),
    "a huge count": ({"type": "array", "minItems": 100_000}, "minItems", "10,000"),
    "properties that are a list": ({"properties": []}, "properties", "object of schemas"),
    "a property that is no schema": ({"properties": {"a": 3}}, "properties", "object of schemas"),
}


@pytest.mark.parametrize(
    ("schema", "word", "reason"), REFUSED_CASES.values(), ids=REFUSED_CASES.keys()
)
def test_a_keyword_that_cannot_be_obeyed_is_refused_with_its_place(
    schema: Any, word: str, reason: str
) -> None:
    for whole, place in ((schema, f"#/{word}"), (nested(schema), f"#/properties/a~1b/{word}")):
        error = refusal({**whole, "$defs": {}} if "$ref" not in schema else whole)
        assert error.name == "json_schema"
        assert error.value == place
        assert error.allowed.startswith(word)
        assert reason in error.allowed


def test_every_keyword_of_the_standard_is_known() -> None:
    words = re.findall(
        r"\S+",
        "$schema $id $ref $anchor $defs $comment $vocabulary type enum const multipleOf maximum "
        "exclusiveMaximum minimum exclusiveMinimum maxLength minLength pattern maxItems minItems "
        "uniqueItems maxContains minContains maxProperties minProperties required "
        "dependentRequired "
        "allOf anyOf oneOf not if then else dependentSchemas prefixItems items contains properties "
        "patternProperties additionalProperties propertyNames unevaluatedItems "
        "unevaluatedProperties "
        "format contentEncoding contentMediaType contentSchema title description default "
        "deprecated "
        "readOnly writeOnly examples definitions dependencies additionalItems",
    )
    assert [word for word in words if word not in OBEYED and word not in ANNOTATIONS] == []


def test_a_refused_schema_reaches_the_user_with_keyword_and_place() -> None:
    schema = nested({"type": "array", "uniqueItems": True})
    with pytest.raises(
        InvalidRequest, match=r"'#/properties/a~1b/uniqueItems'.*uniqueItems cannot be obeyed"
    ):
        prompt_request("demo", "x", json_schema=schema)
    with pytest.raises(InvalidParam, match="JSON"):
        grammar_of('{"const": NaN}')


def test_what_no_value_reaches_is_not_refused() -> None:
    """Definitions that nothing refers to, and keywords about other types than the value's."""
    schema = {
        "$defs": {"bad": {"$dynamicRef": "x"}},
        "type": "null",
        "contains": {},
        "minLength": 3,
    }
    assert grammar(schema).accepts("null")


def test_properties_keep_their_order_and_blanks_are_few() -> None:
    rules = grammar({**obj(b={"type": "null"}, a={"type": "null"}), "required": ["a"]})
    assert rules.accepts('{"b":null,"a":null}')
    assert rules.accepts('{ "b": null,\n  "a": null\n}')
    assert not rules.accepts('{"a":null,"b":null}')
    assert not rules.accepts('{   "a":null}')


def test_hundreds_of_values_and_properties_are_converted_at_once() -> None:
    values = [f"sensor.room_{n:04d}_temperature" for n in range(900)]
    began = time.thread_time()
    rules = grammar({"enum": values})
    properties = {f"option_{n}": {"type": "integer", "minimum": n} for n in range(400)}
    many = grammar_of(json.dumps(obj(**properties)))
    assert time.thread_time() - began < 5
    assert all(rules.accepts(json.dumps(value)) for value in values[::97])
    assert not rules.accepts('"sensor.room_0900_temperature"')
    assert len(many) < 1 << 20


@pytest.mark.parametrize(
    "pattern",
    [r"^\d{3}-\d{4}$", '[^"]', "^(a|b)*$|c", "", "a^b", "(x|^)y($|z)", r"^[\w.-]+@\w{2,}$", "x*",
     "a{2,}?", r'^"\\/$', "(?:ab|a)(?P<n>b?)$",
     r"^(?!^[-.]*$)-?0*\d*\.?\d*$",
     r"^(?=.*\d)(?=.*[a-z)|]).{2,4}$", "^(?!a|b)(x|c)*", r"[\]\-a]", r"\x41\u00e9", "a|", "^a$|^b$",
     r"[^\s\d]$"],
)  # fmt: skip
def test_a_pattern_means_what_it_means_to_re(pattern: str) -> None:
    dfa = automaton.of_pattern(pattern)

    @settings(max_examples=120, deadline=None)
    @given(st.text(st.sampled_from('abcxyzAé01-@."\\/ \n'), max_size=8))
    def check(text: str) -> None:
        found = re.search(pattern.replace("$", r"\Z"), text, re.ASCII) is not None
        assert dfa.accepts(text) == found, text

    check()


@pytest.mark.parametrize(
    "pattern", [".", "[^a]", '"', r"\W", r"\S", r"[\x00-\x1f]", "^[^x]*$", r"\D+"]
)
def test_a_reply_never_leaves_its_string(pattern: str) -> None:
    """Quotes, backslashes and control characters come escaped only."""
    rules = grammar({"type": "string", "pattern": pattern})
    for text in ('"a" x"', '"""', '"\\"', '"\n"', '"\x00a"'):
        assert not rules.accepts(text), text
    for value in ('a"b 1', "\\ \t", "\x01-\n"):
        if re.search(pattern, value):
            assert rules.accepts(json.dumps(value, ensure_ascii=False)), value


@settings(max_examples=300, deadline=None)
@given(st.text("ab^$|()[]{}*+?.\\-,0123d:=", max_size=12))
def test_any_text_is_a_pattern_or_refused_with_a_position(pattern: str) -> None:
    error = bad_pattern(pattern)
    assert error is None or re.search(r"at position \d+|too large", error)


def test_patterns_that_explode_are_refused_in_time() -> None:
    began = time.thread_time()
    for pattern in (
        "(a|b)*a(a|b){14}",
        "((a{1,99}){1,99}){1,99}",
        "^(a?){500}a{500}$",
    ):
        assert "too large" in str(bad_pattern(pattern))
    assert bad_pattern("(((a*)*)*)*") is None
    assert time.thread_time() - began < 20
