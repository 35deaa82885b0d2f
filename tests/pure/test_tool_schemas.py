"""Rules of tools' schemas in the grammar of a chat format."""

from __future__ import annotations

from typing import Any

import pytest

from actors.text.tool_schemas import BadToolSchema, with_own_schemas

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
    assert "tool-get-it-schema ::= own0-root\nown0-root ::= " in text
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
