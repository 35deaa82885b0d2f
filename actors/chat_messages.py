"""A chat request as callers send it, checked: messages, tools, and what else a template may see.

Pure: JSON bytes in, one value or a ``BadChat`` out that names the place. Nothing is dropped: keys
this module does not know reach the template as they came.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

MAX_CHAT_BYTES: Final = 16 << 20
MAX_MESSAGES: Final = 16_384
_ROLE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_KNOWN: Final = ("messages", "tools", "documents", "template_kwargs", "add_generation_prompt",
                 "enable_thinking", "chat_template")  # fmt: skip
_OURS: Final = frozenset({"messages", "add_generation_prompt", "bos_token", "eos_token"})


class BadChat(Exception):
    """The caller's request is not a conversation; the text says where and why."""


@dataclass(frozen=True, slots=True)
class Chat:
    """What a template is rendered with."""

    messages: list[dict[str, Any]]
    add_generation_prompt: bool = True
    extras: Mapping[str, Any] = field(default_factory=dict)
    """tools, documents, enable_thinking and the rest of the template's variables."""
    template: str | None = None
    """A Jinja text to render with, in place of the model's."""

    @property
    def has_tools(self) -> bool:
        return bool(self.extras.get("tools"))

    def variables(self) -> dict[str, Any]:
        """What the template finds under which name; ``tools`` is none when there are none."""
        return {
            "tools": None,
            "documents": None,
            **self.extras,
            "messages": self.messages,
            "add_generation_prompt": self.add_generation_prompt,
        }


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
    template = plain.get("chat_template")
    if template is not None and not (isinstance(template, str) and template.strip()):
        raise BadChat("chat_template must be the text of a Jinja template")
    return Chat(_messages(plain.get("messages")), wants_reply, _extras(plain), template)


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


def _content(where: str, content: object) -> str:
    """Text as it is; parts of type text joined by line breaks, as llama.cpp does."""
    if content is None:
        return ""
    if isinstance(content, str):
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
    """Templates want arguments as an object; APIs send them as JSON in a text."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise BadChat(f'{where} must be an object with a "function"')
    if not isinstance(function.get("name"), str):
        raise BadChat(f'{where}.function has no "name"')
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            parsed = arguments  # what a model said may be no JSON; it must come back as it was
        arguments = parsed if isinstance(parsed, dict | list) else arguments
    return {**call, "function": {**function, "arguments": arguments}}


def _shown(value: object) -> str:
    """A value in an error: its kind, never the caller's text at length."""
    return (
        repr(value)[:40]
        if isinstance(value, str | int | float | bool | None)
        else str(type(value).__name__)
    )
