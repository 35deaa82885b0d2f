"""A chat request as callers send it, checked: messages, tools, and what else a template may see.

Pure: JSON bytes in, one value or a ``BadChat`` out that names the place. Nothing is dropped: keys
that are unknown here reach the template as they came.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from actors.messages.errors import InvalidRequest

MAX_CHAT_BYTES: Final = 16 << 20
MAX_MESSAGES: Final = 16_384
_ROLE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_KNOWN: Final = ("messages", "tools", "documents", "template_kwargs", "add_generation_prompt",
                 "enable_thinking", "chat_template")  # fmt: skip
_OURS: Final = frozenset({"messages", "add_generation_prompt", "bos_token", "eos_token"})

_PYTHON_TYPES: Final = {
    "string": "str", "integer": "int", "number": "float", "boolean": "bool", "array": "List",
    "object": "Dict",
}  # fmt: skip


class BadChat(InvalidRequest):
    """The caller's request is not a conversation; the text names the place and the reason."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The form in which one template expects conversations; see ``text.chat_shape``."""

    no_text: Literal["empty", "null", "absent"] = "empty"
    """The content of a message that only calls tools."""
    splits_calls: bool = False
    """A message with text and calls is given as two, the text first."""
    text_arguments: bool = False
    """Arguments of calls are JSON in a text instead of an object."""
    no_tools: Literal["null", "empty"] = "null"
    """``tools`` where there are none."""
    developer_is_system: bool = False
    """The role ``developer`` is given as ``system``."""
    flat_tools: bool = False
    """A tool is its function's object alone, with ``parameter_definitions``, as Cohere has it."""
    thinking: Literal["enable_thinking", "thinking"] = "enable_thinking"
    """The variable that ``enable_thinking`` sets."""


@dataclass(frozen=True, slots=True)
class Chat:
    """What a template is rendered with."""

    messages: list[dict[str, Any]]
    """As the template gets them."""
    add_generation_prompt: bool = True
    extras: Mapping[str, Any] = field(default_factory=dict)
    """tools, documents, enable_thinking and the rest of the template's variables."""
    shape: Shape = Shape()
    sent: list[dict[str, Any]] = field(default_factory=list, repr=False)
    """The messages as they were sent, checked; a content that was not sent is ``None``."""
    template: str | None = None
    """A Jinja text to render with, in place of the model's."""

    def shaped(self, shape: Shape) -> Chat:
        """The same conversation in the form that a template of this shape expects."""
        if shape == self.shape:
            return self
        return replace(self, shape=shape).reshaped()

    def reshaped(self) -> Chat:
        """The same after a change of ``sent``."""
        messages = [one for message in self.sent for one in _shaped(message, self.shape)]
        return replace(self, messages=messages)

    @property
    def origins(self) -> Sequence[int]:
        """Of each message that the template gets, the number of the one sent that it is of."""
        if len(self.messages) == len(self.sent):
            return range(len(self.sent))
        return [at for at, one in enumerate(self.sent) for _ in _shaped(one, self.shape)]

    @property
    def has_tools(self) -> bool:
        return bool(self.extras.get("tools"))

    @property
    def has_calls(self) -> bool:
        """Whether tools were called before."""
        return any(one["role"] == "tool" or one.get("tool_calls") for one in self.sent)

    def _tools(self) -> object:
        tools = self.extras.get("tools")
        if not tools:
            return None if self.shape.no_tools == "null" else []
        return [_flat(one) for one in tools] if self.shape.flat_tools else tools

    def variables(self) -> dict[str, Any]:
        """What the template finds under which name; ``tools`` is none when there are none."""
        wish = self.extras.get("enable_thinking")
        return {
            **({} if wish is None else {self.shape.thinking: wish}),
            "documents": None,
            **self.extras,
            "tools": self._tools(),
            "messages": self.messages,
            "add_generation_prompt": self.add_generation_prompt,
        }


def _flat(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if not isinstance(function, dict):
        return tool
    schema = function.get("parameters")
    schema = schema if isinstance(schema, dict) else {}
    listed, properties = schema.get("required"), schema.get("properties")
    required = listed if isinstance(listed, list) else []
    definitions = {
        name: {
            "description": one.get("description", ""),
            "type": _PYTHON_TYPES.get(str(one.get("type")), "Any"),
            "required": name in required,
        }
        for name, one in (properties.items() if isinstance(properties, dict) else ())
        if isinstance(one, dict)
    }
    return {"description": "", **function, "parameter_definitions": definitions}


def chat_from(raw: bytes | str) -> Chat:
    """Parse and check a request: ``{"messages": [...], "tools": [...], ...}``.

    A list alone is taken for the messages. ``template_kwargs`` become variables of the template.
    """
    if len(raw) > MAX_CHAT_BYTES:
        raise BadChat(f"the conversation has {len(raw)} bytes; at most {MAX_CHAT_BYTES} are taken")
    try:
        plain = json.loads(raw)
    except RecursionError:
        raise BadChat("the conversation is nested too deeply") from None
    except ValueError as error:
        raise BadChat(f"the conversation is not JSON: {error}") from error
    if isinstance(plain, list):
        plain = {"messages": plain}
    if not isinstance(plain, dict):
        raise BadChat('a conversation is an object with "messages"')
    unknown = sorted(set(plain) - set(_KNOWN))
    if unknown:
        raise BadChat(
            f"unknown key {unknown[0]!r}; known are {', '.join(_KNOWN)}; a template's own "
            "variables go into template_kwargs"
        )
    wants_reply = plain.get("add_generation_prompt", True)
    if not isinstance(wants_reply, bool):
        raise BadChat("add_generation_prompt must be true or false")
    sent = _messages(plain.get("messages"))
    messages = [one for message in sent for one in _shaped(message, Shape())]
    template = plain.get("chat_template")
    if template is not None and not (isinstance(template, str) and template.strip()):
        raise BadChat("chat_template must be the text of a Jinja template")
    return Chat(messages, wants_reply, _extras(plain), sent=sent, template=template)


def _extras(plain: dict[str, Any]) -> dict[str, Any]:
    kwargs = plain.get("template_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise BadChat("template_kwargs must be an object")
    taken = sorted(_OURS & set(kwargs))
    if taken:
        raise BadChat(f"template_kwargs may not set {taken[0]!r}")
    extras = dict(kwargs)
    for key in ("tools", "documents"):
        items = plain.get(key)
        if items is None:
            continue
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise BadChat(f"{key} must be a list of objects")
        if items:
            extras[key] = items
    if "enable_thinking" in plain:
        extras["enable_thinking"] = plain["enable_thinking"]
    return extras


def _messages(messages: object) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise BadChat('"messages" must be a list of at least one message')
    if len(messages) > MAX_MESSAGES:
        raise BadChat(f"{len(messages)} messages; at most {MAX_MESSAGES} are taken")
    return [_message(f"messages[{at}]", message) for at, message in enumerate(messages)]


def _message(where: str, message: object) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise BadChat(f'{where} must be an object with "role" and "content"')
    role = message.get("role")
    if role is None:
        raise BadChat(f'{where} has no "role"')
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise BadChat(f"{where}.role must be a word such as user, not {_shown(role)}")
    if "content" not in message and not message.get("tool_calls"):
        raise BadChat(f'{where} has no "content"')
    checked = {**message, "content": _content(where, message.get("content"))}
    if message.get("tool_calls") is not None:
        checked["tool_calls"] = _tool_calls(where, message["tool_calls"])
    return checked


def _content(where: str, content: object) -> str | None:
    """Text as it is; parts of type text joined by line breaks, as llama.cpp does."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadChat(f"{where}.content must be text or a list of parts, not {_shown(content)}")
    texts: list[str] = []
    for at, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else part
            raise BadChat(
                f"{where}.content[{at}] is of type {_shown(kind)}; only parts of type text are read"
            )
        if not isinstance(part.get("text"), str):
            raise BadChat(f'{where}.content[{at}] has no "text"')
        texts.append(part["text"])
    return "\n".join(texts)


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
    return call


# ── in the shape of a template ──────────────────────────────────────────────────────────────────


def _shaped(message: dict[str, Any], shape: Shape) -> list[dict[str, Any]]:
    message = dict(message)
    if message["role"] == "developer" and shape.developer_is_system:
        message["role"] = "system"
    calls = message.get("tool_calls")
    if not calls:
        return [{**message, "content": message["content"] or ""}]
    calls = [_shaped_call(call, text=shape.text_arguments) for call in calls]
    if not message["content"]:
        return [_only_calls(message, calls, shape)]
    if not shape.splits_calls:
        return [{**message, "tool_calls": calls}]
    spoken = {key: value for key, value in message.items() if key != "tool_calls"}
    return [spoken, _only_calls({"role": message["role"], "content": None}, calls, shape)]


def _only_calls(
    message: dict[str, Any], calls: list[dict[str, Any]], shape: Shape
) -> dict[str, Any]:
    message = {**message, "content": "", "tool_calls": calls}
    if shape.no_text == "null":
        message["content"] = None
    elif shape.no_text == "absent":
        del message["content"]
    return message


def _shaped_call(call: dict[str, Any], *, text: bool) -> dict[str, Any]:
    """APIs send arguments as JSON in a text; most templates expect an object."""
    function = call["function"]
    arguments = function.get("arguments", {})
    if isinstance(arguments, str) and not arguments.strip():
        arguments = {}
    if text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not text and isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = arguments  # what a model generated may be no JSON; it must come back as it was
        arguments = parsed if isinstance(parsed, dict | list) else arguments
    return {**call, "function": {**function, "arguments": arguments}}


def _shown(value: object) -> str:
    """A value in an error: its kind, never the caller's text at length."""
    return (
        repr(value)[:40]
        if isinstance(value, str | int | float | bool | None)
        else str(type(value).__name__)
    )
