"""Rules of tools' schemas in the grammar of a chat format."""

from __future__ import annotations

from typing import Any, Final

import pytest

from actors.text.tool_schemas import BadToolSchema, with_own_schemas
from tests.support.gbnf import Grammar

pytestmark = pytest.mark.pure

GRAMMAR = """\
root ::= tool-get-it
tool-get-it ::= "{" space "\\"name\\"" tool-get-it-schema "}"
tool-get-it-schema ::= "{" space "tool-get-it-schema ::= x" "}"
space ::= " "
"""


def tool(schema: object, *, name: str = "get_it") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema}}


RANGE = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 5}}}
REFUSED = {"type": "object", "properties": {"n": {"$ref": "#/$defs/none"}}}


def test_our_rules_replace_those_for_the_arguments() -> None:
    text = with_own_schemas(GRAMMAR, [tool(RANGE)])
    assert "tool-get-it-schema ::= own0-root\n" in text
    assert "\nown0-root ::= " in text
    assert "own0-" in text
    assert "[345]" in text
    assert 'tool-get-it ::= "{" space' in text  # the others stay
    assert '\nspace ::= " "' in text


@pytest.mark.parametrize("schema", [None, {}, REFUSED, "text"])
def test_what_ours_does_not_take_keeps_the_rule(schema: object) -> None:
    assert with_own_schemas(GRAMMAR, [tool(schema)]) == GRAMMAR


def test_a_strict_tool_with_a_schema_that_cannot_be_held_is_refused() -> None:
    with pytest.raises(BadToolSchema, match=r"tools\[0\] \(get_it\) is strict.*none"):
        with_own_schemas(GRAMMAR, [tool(REFUSED)], strict={"get_it"})


def test_two_tools_with_one_rule_keep_it() -> None:
    assert with_own_schemas(GRAMMAR, [tool(RANGE), tool(RANGE, name="get-it")]) == GRAMMAR


def test_a_tool_without_a_rule_changes_nothing() -> None:
    assert with_own_schemas(GRAMMAR, [tool(RANGE, name="other")]) == GRAMMAR


# ── arguments between tags ──────────────────────────────────────────────────────────────────────

TAGGED = """\
root ::= tool-note
tool-note ::= "<f=note>" (tool-note-arg-text | tool-note-arg-when | tool-note-arg-n)* "</f>"
tool-note-arg-n ::= ("<p=" "n" ">") tool-note-arg-n-schema "</p>\\n"
tool-note-arg-n-schema ::= "-"? [0-9]+
tool-note-arg-text ::= ("<p=" "text" ">") any-text
tool-note-arg-when ::= ("<p=" "when" ">") any-text
any-text ::= ac-8
ac-8 ::= [<] ac-8-01 | [^<] ac-8
ac-8-01 ::= [<] ac-8-01 | [/] ac-8-02 | [^/<] ac-8
ac-8-02 ::= [<] ac-8-01 | [p] ac-8-03 | [^<p] ac-8
ac-8-03 ::= [<] ac-8-01 | [>] ac-8-04 | [^<>] ac-8
ac-8-04 ::= [<] ac-8-01 | [\\n] | [^\\n<] ac-8
"""
TEXT: Final = {"type": "string", "description": "Any."}


def note(strict: bool = False, **properties: object) -> tuple[str, Grammar]:
    """The grammar, and what reads it."""
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    names = {"note"} if strict else set()
    text = with_own_schemas(TAGGED, [tool(schema, name="note")], names)
    return text, Grammar(text)


def call(**arguments: str) -> str:
    parts = "".join(f"<p={name}>{text}</p>\n" for name, text in arguments.items())
    return f"<f=note>{parts}</f>"


def test_an_argument_that_is_json_has_our_rules() -> None:
    _, rules = note(strict=True, n={"type": "integer", "enum": [3, 5], "minimum": 4}, text=TEXT)
    assert rules.accepts(call(n="5", text="a < b"))
    assert not rules.accepts(call(n="3"))
    assert not rules.accepts(call(n="7"))


def test_a_plain_text_with_listed_values_is_one_of_them() -> None:
    listed = ["Oslo", 'R"o\\me\n']
    _, rules = note(strict=True, text={"type": "string", "enum": listed}, when={"const": "now"})
    for value in listed:
        assert rules.accepts(call(text=value, when="now"))
    assert not rules.accepts(call(text="Bonn"))
    assert not rules.accepts(call(when="then"))


def test_a_plain_text_may_end_with_a_literal() -> None:
    old, new = '">") any-text', '">") until-6 "</p>\\n"'
    grammar = TAGGED.replace(old, new) + "until-6 ::= [^<]*\n"
    schema = {"type": "object", "properties": {"text": {"enum": ["a"]}}}
    rules = Grammar(with_own_schemas(grammar, [tool(schema, name="note")], {"note"}))
    assert rules.accepts(call(text="a", when="b"))
    assert not rules.accepts(call(text="b"))


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"type": "string", "pattern": "a+"}, "text: pattern of a plain text"),
        ({"type": "string", "format": "date"}, "text: format of a plain text"),
        ({"enum": ["a", 1]}, "text: its values"),
        (True, "text: its name or schema"),
    ],
)
def test_what_a_plain_text_cannot_be_held_to_is_named(schema: object, word: str) -> None:
    with pytest.raises(BadToolSchema, match=f"strict.*{word}.*without strict"):
        note(strict=True, text=schema)
    text, _ = note(text=schema)
    assert text == TAGGED


def test_an_argument_keeps_its_rule_where_ours_refuses_it() -> None:
    odd = {"type": "integer", "$ref": "#/$defs/none"}
    text, _ = note(n=odd)
    assert text == TAGGED
    with pytest.raises(BadToolSchema, match=r"n: .*none"):
        note(strict=True, n=odd)


def test_definitions_are_those_of_the_whole_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"$ref": "#/$defs/small"}},
        "$defs": {"small": {"type": "integer", "minimum": 0, "maximum": 3}},
    }
    rules = Grammar(with_own_schemas(TAGGED, [tool(schema, name="note")], {"note"}))
    assert rules.accepts(call(n="2"))
    assert not rules.accepts(call(n="4"))


def test_a_strict_tool_in_a_form_without_rules_for_arguments_is_refused() -> None:
    grammar = 'root ::= tool-note\ntool-note ::= "note" dict\ndict ::= "{" [^}]* "}"\n'
    with pytest.raises(BadToolSchema, match="a form of their own"):
        with_own_schemas(grammar, [tool(RANGE, name="note")], {"note"})
    assert with_own_schemas(grammar, [tool(RANGE, name="note")]) == grammar


def test_keywords_of_all_arguments_are_named() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "minProperties": 1}
    with pytest.raises(BadToolSchema, match="minProperties of all arguments"):
        with_own_schemas(TAGGED, [tool(schema, name="note")], {"note"})
