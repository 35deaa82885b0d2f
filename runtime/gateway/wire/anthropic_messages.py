"""A conversation in Anthropic's form, as the messages and tools that the runtime reads.

One message there may be several here: results of tools have messages of their own, before the text
beside them, because they belong to the calls in the message before. Several messages of an
assistant in a row are one turn, as Anthropic has it. The same conversation gives the same messages,
wherever it marks what shall be cached, so that a prompt only grows from turn to turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from runtime.gateway.wire.bodies import encode
from runtime.gateway.wire.failure import Refused, invalid, unsupported

Block = Mapping[str, Any]
_NOT_TEXT: Final = ("image", "document", "search_result", "container_upload", "audio", "video")
_SYSTEM: Final = ("system", "developer")
_ERROR: Final = "Error: "
_REFERENCE: Final = "tool_reference"


class Message(msgspec.Struct, kw_only=True):
    """One message of a body."""

    role: str
    content: str | list[dict[str, Any]] | None = None


@dataclass(slots=True)
class Converted:
    """A conversation in the runtime's form."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    signed: list[tuple[str, str]] = field(default_factory=list)
    """Thoughts that came with a signature, and that."""
    referred: set[str] = field(default_factory=set)
    """Names of the tools that are described where a result refers to them."""


def converted(
    system: str | Sequence[Block] | None, messages: Sequence[Message], tools: Sequence[Block] = ()
) -> Converted:
    """The conversation; Refused names the block that cannot be read.

    ``tools``: those of the request, which results may refer to.
    """
    found = Converted()
    references = _References({str(one.get("name")): one for one in tools}, found.referred)
    if system:
        found.messages.append(_message("system", _texts("system", _blocks(system))))
    turn: list[tuple[str, Block]] = []
    for number, one in enumerate(messages):
        where = f"messages[{number}]"
        blocks = [
            (f"{where}.content[{at}]", block) for at, block in enumerate(_blocks(one.content))
        ]
        if one.role == "assistant":
            turn += blocks
            if number + 1 < len(messages) and messages[number + 1].role == "assistant":
                continue
            found.messages.append(_assistant(turn, found.signed))
            turn = []
        elif one.role == "user":
            found.messages += _user(blocks, references)
        elif one.role in _SYSTEM:
            texts = [_text(place, block) for place, block in blocks]
            found.messages.append(_message(one.role, texts))
        else:
            raise invalid(
                f"{where}.role is {one.role[:40]!r}; it is user, assistant or system", where
            )
    return found


def _blocks(content: str | Sequence[Block] | None) -> Sequence[Block]:
    if content is None:
        return ()
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _texts(where: str, blocks: Iterable[Block]) -> list[str]:
    return [_text(f"{where}[{at}]", block) for at, block in enumerate(blocks)]


def _text(where: str, block: Block) -> str:
    """The text of a block that can be nothing else."""
    if block.get("type") != "text":
        raise _unreadable(where, block)
    return _word(where, block, "text")


def _word(where: str, block: Block, key: str) -> str:
    value = block.get(key)
    if not isinstance(value, str):
        raise invalid(f'{where} has no "{key}", which is a text', f"{where}.{key}")
    return value


def _unreadable(where: str, block: Block) -> Refused:
    kind = str(block.get("type"))[:40]
    if kind in _NOT_TEXT:
        return unsupported(
            f"{where} is of type {kind}, and this node reads text only; leave it out, or send its "
            "text",
            where,
        )
    return invalid(f"{where} is of type {kind}, which cannot be read here; leave it out", where)


def _message(role: str, texts: list[str]) -> dict[str, Any]:
    """A message of these texts. One is the same as a text and as a block of its own."""
    if len(texts) > 1:
        return {"role": role, "content": [{"type": "text", "text": one} for one in texts]}
    return {"role": role, "content": texts[0] if texts else ""}


@dataclass(frozen=True, slots=True)
class _References:
    """What results of a search for tools stand for: definitions, where they were found.

    Anthropic's API does so too. A tool that were put among the others at the beginning, as soon
    as it is found, would change all of the prompt after it.
    """

    tools: Mapping[str, Block]
    named: set[str]

    def text(self, where: str, blocks: Sequence[Block]) -> str:
        names = [_word(f"{where}[{at}]", one, "tool_name") for at, one in enumerate(blocks)]
        self.named.update(name for name in names if name in self.tools)
        lines = [self._definition(name) for name in names]
        return "\n".join(["<functions>", *lines, "</functions>"])

    def _definition(self, name: str) -> str:
        tool = self.tools.get(name)
        if tool is None:
            return f"(the tool {name} is there no more)"
        known = {
            "description": tool.get("description") or "",
            "name": name,
            "parameters": tool.get("input_schema") or {},
        }
        return f"<function>{json.dumps(known, ensure_ascii=False)}</function>"


def _user(blocks: Iterable[tuple[str, Block]], references: _References) -> Iterator[dict[str, Any]]:
    """Results of tools first, whatever stands before them, then all text."""
    texts: list[str] = []
    has_results = False
    for where, block in blocks:
        if block.get("type") == "tool_result":
            has_results = True
            yield _result(where, block, references)
        else:
            texts.append(_text(where, block))
    if texts or not has_results:
        yield _message("user", texts)


def _result(where: str, block: Block, references: _References) -> dict[str, Any]:
    content = block.get("content")
    if not isinstance(content, str | list | None):
        raise invalid(f"{where}.content is a text or a list of blocks", f"{where}.content")
    parts = _blocks(content)
    found = [one for one in parts if one.get("type") == _REFERENCE]
    if found:
        others = [one for one in parts if one.get("type") != _REFERENCE]
        texts = [references.text(f"{where}.content", found)]
        texts += _texts(f"{where}.content", others)
    else:
        texts = _texts(f"{where}.content", parts)
    if block.get("is_error") is True and not any("error" in one[:80].lower() for one in texts[:1]):
        texts = [_ERROR + (texts[0] if texts else "the tool failed"), *texts[1:]]
    return {**_message("tool", texts), "tool_call_id": _word(where, block, "tool_use_id")}


def _assistant(
    blocks: Iterable[tuple[str, Block]], signed: list[tuple[str, str]]
) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for where, block in blocks:
        match block.get("type"):
            case "text":
                texts.append(_text(where, block))
            case "thinking":
                thought = _word(where, block, "thinking")
                signature = block.get("signature")
                if thought:
                    thoughts.append(thought)
                    if isinstance(signature, str) and signature:
                        signed.append((thought, signature))
            case "redacted_thinking":
                pass  # only the provider that wrote it can read it
            case "tool_use":
                calls.append(_call(where, block))
            case _:
                raise _unreadable(where, block)
    message = _message("assistant", texts)
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    return {**message, "tool_calls": calls} if calls else message


def _call(where: str, block: Block) -> dict[str, Any]:
    arguments = block.get("input")
    if not isinstance(arguments, dict | None):
        raise invalid(f"{where}.input is a JSON object", f"{where}.input")
    function = {"name": _word(where, block, "name"), "arguments": arguments or {}}
    return {"id": _word(where, block, "id"), "type": "function", "function": function}


# ── tools ───────────────────────────────────────────────────────────────────────────────────────


def tools_of(given: Sequence[Block]) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Definitions of tools, and remarks; those that a provider runs are refused by name."""
    remarks: list[str] = []
    tools: list[dict[str, Any]] = []
    for number, tool in enumerate(given):
        where = f"tools[{number}]"
        if tool.get("type") not in (None, "custom", "function"):
            raise unsupported(
                f"{where} is {str(tool['type'])[:40]}, which only its provider has; this node "
                "runs no tools, so leave it out, or define one with name and input_schema",
                where,
            )
        function: dict[str, Any] = {"name": _word(where, tool, "name")}
        if isinstance(tool.get("description"), str):
            function["description"] = tool["description"]
        schema = function["parameters"] = tool.get("input_schema") or {}
        if not isinstance(schema, dict):
            raise invalid(f"{where}.input_schema is a JSON Schema", f"{where}.input_schema")
        if tool.get("strict") is True:
            if _is_schema(schema):
                function["strict"] = True
            else:
                remarks.append(f"{where}.strict: its input_schema is no JSON Schema")
        tools.append({"type": "function", "function": function})
    return tools, tuple(remarks)


def is_deferred(tool: Block) -> bool:
    """Whether a tool is described only where a result refers to it."""
    return tool.get("defer_loading") is True


def _is_schema(schema: Mapping[str, Any]) -> bool:
    """Whether the parameters have schemas at all; the rest is found out by what holds them."""
    properties = schema.get("properties", {})
    return isinstance(properties, dict) and all(
        isinstance(one, dict | bool) for one in properties.values()
    )


# ── what shall be cached ────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """The last place that a request marks: everything before it shall be cached."""

    share: float
    """How much of the prompt is before it, counted in bytes of the body. Tokens are known only
    after the template, which does not show where a block ends."""
    is_long: bool = False
    """For an hour."""

    def n_tokens(self, n_prompt: int) -> int:
        """Tokens before it."""
        return min(n_prompt, round(self.share * n_prompt))


def breakpoint_of(
    tools: Sequence[Block],
    system: str | Sequence[Block] | None,
    messages: Sequence[Message],
    whole: object = None,
) -> Breakpoint | None:
    """The last ``cache_control``; ``whole`` is that of the body, which marks its end."""
    if isinstance(whole, dict):
        return Breakpoint(1.0, whole.get("ttl") == "1h")
    blocks = [*tools, *_blocks(system), *(one for m in messages for one in _blocks(m.content))]
    marked = [(at, found) for at, one in enumerate(blocks) if (found := _mark(one)) is not None]
    if not marked:
        return None
    last, mark = marked[-1]
    is_long = mark.get("ttl") == "1h"
    if last == len(blocks) - 1:
        return Breakpoint(1.0, is_long)
    sizes = [len(encode(one)) for one in blocks]
    return Breakpoint(sum(sizes[: last + 1]) / sum(sizes), is_long)


def _mark(block: Block) -> Mapping[str, Any] | None:
    """The ``cache_control`` of a block, or of the last block in it that has one."""
    found = block.get("cache_control")
    if isinstance(found, dict):
        return found
    inner = block.get("content")
    ones = [_mark(one) for one in inner if isinstance(one, dict)] if isinstance(inner, list) else []
    return next((one for one in reversed(ones) if one is not None), None)
