"""The messages and tools of a chat request, checked and brought to one form, that of OpenAI's API.

Clients write the same thing in several ways: contents as text, as parts or as ``null``; thoughts
as ``reasoning_content``, ``reasoning``, ``thinking`` or parts; results of tools with or without the
tool's name; tools bare, or with Anthropic's ``input_schema``. What a template then gets is decided
from this one form (``actors.text.chat_form``). Keys that are unknown here are kept.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Any, Final

from actors.messages.errors import InvalidRequest

MAX_MESSAGES: Final = 16_384
REASONING: Final = "reasoning_content"
_ROLE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_TEXT_PARTS: Final = ("text", "input_text", "output_text")
_THOUGHTS: Final = (REASONING, "reasoning", "thinking")
# Instructions for a server, which no template should print.
_NOT_OF_TOOLS: Final = frozenset({"strict", "cache_control"})
_NO_PARAMETERS: Final = {"type": "object", "properties": {}}
_TOOL_KEYS: Final = ("name", "description", "parameters", "input_schema")


class BadChat(InvalidRequest):
    """The caller's request is not a conversation; the text names the place and the reason."""


def messages_from(messages: object) -> list[dict[str, Any]]:
    """The conversation, checked. A content that was not sent is ``None``; BadChat.

    Thoughts are in ``reasoning_content``. Calls and results of tools have an id, results a name.
    """
    if not isinstance(messages, list) or not messages:
        raise BadChat('"messages" must be a list of at least one message')
    if len(messages) > MAX_MESSAGES:
        raise BadChat(f"{len(messages)} messages; at most {MAX_MESSAGES} are taken")
    checked = [_message(f"messages[{at}]", message) for at, message in enumerate(messages)]
    _connect_results(checked)
    return checked


def _message(where: str, message: object) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise BadChat(f'{where} must be an object with "role" and "content"')
    role = message.get("role")
    if role is None:
        raise BadChat(f'{where} has no "role"')
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise BadChat(f"{where}.role must be a word such as user, not {_shown(role)}")
    _check_current(where, message)
    calls = message.get("tool_calls")
    if "content" not in message and not calls and role not in ("assistant", "tool"):
        raise BadChat(f'{where} has no "content"')
    checked = {**message, "content": None}
    thoughts: list[str] = []
    if role == "assistant":
        thoughts = [one for one in (_thought(where, checked, key) for key in _THOUGHTS) if one]
    checked["content"] = _content(where, message.get("content"), role, thoughts)
    if len(set(thoughts)) > 1:
        raise BadChat(f"{where} has several different thoughts; give them as {REASONING}")
    if thoughts:
        checked[REASONING] = thoughts[0]
    if calls is not None:
        checked["tool_calls"] = _tool_calls(where, calls)
    return checked


def _check_current(where: str, message: dict[str, Any]) -> None:
    """What OpenAI replaced by tools is refused, because no template reads it."""
    if message["role"] == "function":
        raise BadChat(
            f"{where}.role is function, which the role tool has replaced: "
            'send {"role": "tool", "tool_call_id": …, "content": …}'
        )
    if message.get("function_call") is not None:
        raise BadChat(
            f"{where}.function_call has been replaced by tool_calls: "
            'send "tool_calls": [{"id": …, "type": "function", "function": {"name": …, '
            '"arguments": …}}]'
        )


def _thought(where: str, message: dict[str, Any], key: str) -> str | None:
    """Taken out of the message."""
    thought = message.pop(key, None)
    if thought is not None and not isinstance(thought, str):
        raise BadChat(f"{where}.{key} must be text, not {_shown(thought)}")
    return thought


def _content(where: str, content: object, role: str, thoughts: list[str]) -> str | None:
    """Text as it is; parts of text joined by line breaks, as llama.cpp does.

    Parts of thinking, as Anthropic has them, are added to ``thoughts``.
    """
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadChat(f"{where}.content must be text or a list of parts, not {_shown(content)}")
    texts: list[str] = []
    thinking: list[str] = []
    for at, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else part
        if kind == "thinking" and role == "assistant":
            thinking.append(_part_text(f"{where}.content[{at}]", part, "thinking"))
        elif isinstance(part, dict) and kind in _TEXT_PARTS:
            texts.append(_part_text(f"{where}.content[{at}]", part, "text"))
        else:
            raise BadChat(
                f"{where}.content[{at}] is of type {_shown(kind)}; only parts of type text are read"
            )
    if thinking:
        thoughts.append("\n".join(thinking))
    return "\n".join(texts)


def _part_text(where: str, part: Any, key: str) -> str:
    text = part.get(key)
    if not isinstance(text, str):
        raise BadChat(f'{where} has no "{key}"')
    return text


def _tool_calls(where: str, calls: object) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise BadChat(f"{where}.tool_calls must be a list")
    return [_tool_call(f"{where}.tool_calls[{at}]", call) for at, call in enumerate(calls)]


def _tool_call(where: str, call: object) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise BadChat(f'{where} must be an object with a "function"')
    if not isinstance(function.get("name"), str):
        raise BadChat(f'{where}.function has no "name"')
    if call.get("id") is not None and not isinstance(call["id"], str):
        raise BadChat(f"{where}.id must be text, not {_shown(call['id'])}")
    return {"type": "function", **call}


def _connect_results(messages: list[dict[str, Any]]) -> None:
    """Calls get an id where they have none; results the id and the name of their call.

    Ollama's clients send neither id, others no name; templates print one or the other.
    """
    n_calls = 0
    names: dict[str, str] = {}
    open_calls: dict[str, deque[str]] = {}
    answered: set[str] = set()
    for message in messages:
        calls = message.get("tool_calls") or []
        if calls:
            open_calls, answered = {"": deque()}, set()
        for call in calls:
            n_calls += 1
            call["id"] = call.get("id") or f"call{n_calls:05d}"
            name = names[call["id"]] = call["function"]["name"]
            for key in ("", name):
                open_calls.setdefault(key, deque()).append(call["id"])
        if message["role"] == "tool":
            _name(message, names, _open_call(message, open_calls, answered))


def _open_call(
    message: dict[str, Any], open_calls: dict[str, deque[str]], answered: set[str]
) -> str | None:
    """The id of the call that this is the result of.

    ``open_calls``: ids of the last calls, in order, by name and (under "") all of them.
    """
    if isinstance(message.get("tool_name"), str):
        message.setdefault("name", message["tool_name"])
    found = message.get("tool_call_id")
    name = message.get("name")
    waiting = open_calls.get(name if isinstance(name, str) else "")
    while not found and waiting:
        one = waiting.popleft()
        found = None if one in answered else one
    if not isinstance(found, str):
        return None
    answered.add(found)
    return found


def _name(message: dict[str, Any], names: dict[str, str], call_id: str | None) -> None:
    if call_id is not None:
        message["tool_call_id"] = call_id
        if call_id in names and not message.get("name"):
            message["name"] = names[call_id]


# ── tools ───────────────────────────────────────────────────────────────────────────────────────


def tools_from(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Definitions of tools in OpenAI's form; BadChat.

    Given so, or without ``type``, or as the function alone, or with Anthropic's ``input_schema``.
    """
    return [_tool(f"tools[{at}]", tool) for at, tool in enumerate(tools)]


def _tool(where: str, tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if function is None and isinstance(tool.get("name"), str) and _is_function(tool):
        function = {key: value for key, value in tool.items() if key != "type"}
        tool = {}
    if not isinstance(function, dict):
        kind = f" of type {_shown(tool['type'])}" if "type" in tool else ""
        raise BadChat(
            f"{where}{kind} is no function, and only functions reach a model: "
            'send {"type": "function", "function": {"name": …, "parameters": …}}, or leave it out'
        )
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise BadChat(f'{where}.function has no "name"')
    schema = function.get("parameters", function.get("input_schema"))
    if schema is None or schema == {}:
        schema = _NO_PARAMETERS
    if not isinstance(schema, dict):
        raise BadChat(f"{where}: its parameters must be a JSON Schema, not {_shown(schema)}")
    known = {"name": function["name"], "description": function.get("description") or ""}
    more = {
        key: value
        for key, value in function.items()
        if key not in _TOOL_KEYS and key not in _NOT_OF_TOOLS
    }
    others = {key: value for key, value in tool.items() if key not in _NOT_OF_TOOLS}
    return {"type": "function", **others, "function": {**known, "parameters": schema, **more}}


def _is_function(tool: dict[str, Any]) -> bool:
    """Whether a tool without ``function`` is one; tools that a provider runs have no schema."""
    has_schema = "parameters" in tool or "input_schema" in tool
    return tool.get("type") in (None, "function") or (tool["type"] == "custom" and has_schema)


def _shown(value: object) -> str:
    """A value in an error: its kind, never the caller's text at length."""
    return (
        repr(value)[:40]
        if isinstance(value, str | int | float | bool | None)
        else str(type(value).__name__)
    )
