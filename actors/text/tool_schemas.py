"""Schemas of tools in the grammar of a chat format, as our own converter makes rules of them.

llama.cpp's converter leaves out keywords that it does not know. Where the arguments of a call are
one JSON object, its rule for them is replaced by ours (``native.schema``), which honours every
keyword or refuses it. A schema that ours refuses keeps llama.cpp's rule, unless the tool is
``strict``.

Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from actors.messages.errors import InvalidRequest
from actors.text.tool_choice import name_of
from native.errors import InvalidParam
from native.schema import grammar_of

_NOT_IN_NAMES: Final = re.compile(r"[^a-zA-Z0-9-]+")
_WORDS: Final = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|([a-zA-Z][a-zA-Z0-9-]*)')


class BadToolSchema(InvalidRequest):
    """A strict tool has a schema that cannot be held; the text names the tool and the place."""


def with_own_schemas(
    grammar: str, tools: Sequence[Mapping[str, Any]], strict: Collection[str] = ()
) -> str:
    """The grammar with our rules for the arguments of these tools; BadToolSchema.

    ``strict``: names of the tools whose schemas must be held.
    """
    named = _named(tools).items()
    rules = {rule: _own_rules(number, tool, strict) for number, (rule, tool) in named}
    lines: list[str] = []
    for line in grammar.split("\n"):
        name = line.partition(" ::=")[0]
        own = rules.pop(name, None)
        if own is None:
            lines.append(line)
        else:
            root, more = own
            lines += [f"{name} ::= {root}", more]
    return "\n".join(lines)


def _named(tools: Sequence[Mapping[str, Any]]) -> dict[int, tuple[str, Mapping[str, Any]]]:
    """Tools by their number, each with the name of llama.cpp's rule for its arguments."""
    named: dict[int, tuple[str, Mapping[str, Any]]] = {}
    for number, tool in enumerate(tools):
        named[number] = f"tool-{_NOT_IN_NAMES.sub('-', name_of(tool))}-schema", tool
    counts = [name for name, _ in named.values()]
    return {number: one for number, one in named.items() if counts.count(one[0]) == 1}


def _own_rules(
    number: int, tool: Mapping[str, Any], strict: Collection[str]
) -> tuple[str, str] | None:
    """The name of the rule for the arguments, and all rules; None where ours refuses the schema."""
    function = tool["function"]
    schema = function.get("parameters")
    if not isinstance(schema, Mapping) or not schema:
        return None
    prefix = f"own{number}-"
    try:
        text = grammar_of(json.dumps(schema))
    except InvalidParam as error:
        if name_of(tool) in strict:
            place = f"tools[{number}] ({name_of(tool)}) is strict"
            raise BadToolSchema(f"{place}, and its schema cannot be held: {error}") from error
        return None
    return f"{prefix}root", _WORDS.sub(lambda hit: prefix + hit[1] if hit[1] else hit[0], text)
