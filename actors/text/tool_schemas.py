"""Schemas of tools in the grammar of a chat format, as our own converter makes rules of them.

llama.cpp's converter leaves out keywords that it does not know. Where the arguments of a call are
one JSON object, its rule for them is replaced by ours (``native.schema``), which honours every
keyword or refuses it. Where each argument stands between tags, so is the rule of each one that is
JSON; one that is plain text is held to its values if those are listed.

What ours refuses, and other keywords of plain texts, keep llama.cpp's rules, unless the tool is
``strict``: then the request is refused.

Pure.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from actors.messages.errors import InvalidRequest
from actors.text.tool_choice import name_of
from native.errors import InvalidParam
from native.schema import grammar_of, literal

_NOT_IN_NAMES: Final = re.compile(r"[^a-zA-Z0-9-]+")
_WORDS: Final = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|([a-zA-Z][a-zA-Z0-9-]*)')
_LAST_WORD: Final = re.compile(r"(.*?)([a-zA-Z][a-zA-Z0-9-]*)")
_UNTIL: Final = re.compile(r'(.*?)until-\d+ ("(?:\\.|[^"\\])*")')
"""An argument that is any text, and the literal that ends it."""
_STEP: Final = re.compile(r"\[(\\.|[^\\^\]])\](?: ([a-z0-9-]+))?(?= \||$)")
"""One character of a text that is looked for, and the rule behind it."""
_ESCAPES: Final = {"\\n": "\n", "\\r": "\r", "\\t": "\t"}
_DEFINITIONS: Final = ("$defs", "definitions")
_NOTES: Final = {"title", "description", "default", "examples", "deprecated", "$comment"}
_OF_OBJECTS: Final = {
    *_NOTES, *_DEFINITIONS, "type", "properties", "required", "additionalProperties", "$schema",
    "$id", "strict",
}  # fmt: skip


class BadToolSchema(InvalidRequest):
    """A strict tool has a schema that cannot be held; the text names the tool and the place."""


class _NotHeld(Exception):
    """The grammar does not hold a schema; the text names what of it."""


def with_own_schemas(
    grammar: str, tools: Sequence[Mapping[str, Any]], strict: Collection[str] = ()
) -> str:
    """The grammar with our rules for the arguments of these tools; BadToolSchema.

    ``strict``: names of the tools whose schemas must be held.
    """
    rules = {name: body for name, _, body in (one.partition(" ::= ") for one in _lines(grammar))}
    names = Counter(_rule_of(tool) for tool in tools)
    for number, tool in enumerate(tools):
        rule = _rule_of(tool)
        try:
            if names[rule] > 1:
                raise _NotHeld("another tool has nearly the same name")
            _hold(rules, rule, f"own{number}-", tool["function"].get("parameters"))
        except _NotHeld as error:
            if name_of(tool) in strict:
                raise BadToolSchema(
                    f"tools[{number}] ({name_of(tool)}) is strict, and its schema cannot be held: "
                    f"{error}; send it without strict"
                ) from error
    return "".join(f"{name} ::= {body}\n" for name, body in rules.items())


def _lines(grammar: str) -> Iterator[str]:
    return (one for one in grammar.split("\n") if one)


def _rule_of(tool: Mapping[str, Any]) -> str:
    """The name of llama.cpp's rule for the calls of a tool."""
    return f"tool-{_in_rules(name_of(tool))}"


def _in_rules(name: str) -> str:
    return _NOT_IN_NAMES.sub("-", name)


def _hold(rules: dict[str, str], rule: str, prefix: str, schema: object) -> None:
    """Put our rules in place of those of a tool; _NotHeld, when all that can be held is."""
    if not isinstance(schema, Mapping) or not schema:
        return
    if f"{rule}-schema" in rules:
        _put_own(rules, f"{rule}-schema", prefix, schema)
        return
    if not any(name.startswith(f"{rule}-arg-") for name in rules) and schema.get("properties"):
        raise _NotHeld("the calls of this model's chat template are in a form of their own")
    others = sorted(set(schema) - _OF_OBJECTS)
    reasons = [f"{others[0]} of all arguments"] if others else []
    shared = {key: schema[key] for key in _DEFINITIONS if key in schema}
    properties = schema.get("properties")
    arguments = properties.items() if isinstance(properties, Mapping) else ()
    names = Counter(_in_rules(name) for name, _ in arguments)
    for number, (name, one) in enumerate(arguments):
        try:
            if names[_in_rules(name)] > 1 or not isinstance(one, Mapping):
                raise _NotHeld("its name or schema")
            own = f"{prefix}{number}-"
            _hold_argument(rules, f"{rule}-arg-{_in_rules(name)}", own, {**shared, **one})
        except _NotHeld as error:
            reasons.append(f"{name}: {error}")
    if reasons:
        raise _NotHeld(reasons[0])


def _hold_argument(
    rules: dict[str, str], rule: str, prefix: str, schema: Mapping[str, Any]
) -> None:
    if f"{rule}-schema" in rules:
        _put_own(rules, f"{rule}-schema", prefix, schema)
        return
    start, end = _any_text(rules, rule)
    if not end:
        raise _NotHeld("the form that the chat template has for it")
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    keys = set(schema) - _NOTES - {*_DEFINITIONS, "type", "enum", "const"}
    if isinstance(listed, list) and listed and all(isinstance(one, str) for one in listed):
        texts = " | ".join(literal(one) for one in listed)
        rules[rule] = f"{start}({texts}) {end}"
    elif listed is not None:
        raise _NotHeld("its values, which are a plain text there")
    if keys:
        raise _NotHeld(f"{min(keys)} of a plain text")


def _any_text(rules: Mapping[str, str], rule: str) -> tuple[str, str]:
    """What begins an argument that is any text, and the literal of what ends it; else empty."""
    body = rules.get(rule, "")
    found = _UNTIL.fullmatch(body)
    if found is not None:
        return found[1], found[2]
    found = _LAST_WORD.fullmatch(body)
    end = "" if found is None else _text_end(rules, found[2])
    return ("", "") if found is None or not end else (found[1], literal(end))


def _text_end(rules: Mapping[str, str], rule: str) -> str:
    """The text that ends an argument whose rule is "anything up to it"; empty if it is another."""
    for _ in rules:
        if re.fullmatch(r"[a-zA-Z][a-zA-Z0-9-]*", rules.get(rule, "")):
            rule = rules[rule]
    first, end, at = rule, "", rule
    while at in rules and len(end) < len(rules):
        steps: dict[str, str] = {target: one for one, target in _STEP.findall(rules[at])}
        number = len(end) + 1
        target = f"{first}-{number:02d}"
        one = steps.get(target, steps.get(""))
        if one is None:
            return ""
        end += _ESCAPES.get(one, one[-1])
        if target not in steps:
            return end
        at = target
    return ""


def _put_own(rules: dict[str, str], rule: str, prefix: str, schema: Mapping[str, Any]) -> None:
    """Our rules of a schema in place of one of llama.cpp's; _NotHeld where ours refuses it."""
    try:
        text = grammar_of(json.dumps(schema))
    except InvalidParam as error:
        raise _NotHeld(str(error)) from error
    own = _WORDS.sub(lambda hit: prefix + hit[1] if hit[1] else hit[0], text)
    for name, _, body in (one.partition(" ::= ") for one in _lines(own)):
        rules[name] = body
    rules[rule] = f"{prefix}root"
