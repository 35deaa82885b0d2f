"""A chat request as callers send it, checked: messages, tools, and what else a template may see.

Pure: JSON bytes in, one value or a ``BadChat`` out that names the place. Nothing is dropped: keys
that are unknown here reach the template as they came.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from actors.text.chat_form import (
    Continuing,
    Shape,
    described_tool,
    flat_tool,
    in_form,
)
from actors.text.chat_messages import MAX_MESSAGES, REASONING, BadChat, messages_from, tools_from
from actors.text.chat_thinking import EFFORTS, thinking_variables
from actors.text.tool_choice import ToolChoice, tool_choice_from

__all__ = ["MAX_CHAT_BYTES", "MAX_MESSAGES", "BadChat", "Chat", "Shape", "chat_from"]

MAX_CHAT_BYTES: Final = 16 << 20
_KNOWN: Final = (
    "messages", "tools", "deferred_tools", "tool_choice", "parallel_tool_calls", "documents",
    "template_kwargs",
    "chat_template_kwargs", "add_generation_prompt", "continue_final_message", "enable_thinking",
    "reasoning_effort", "chat_template",
)  # fmt: skip
_REPLACED: Final = {
    "functions": 'send "tools": [{"type": "function", "function": …}]',
    "function_call": "send tool_choice, and the functions as tools",
}
_USUAL: Final = Shape()
_OURS: Final = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"})
_CONTINUED: Final[Mapping[object, Continuing | None]] = {
    "content": "content", "reasoning": "reasoning", REASONING: "reasoning",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chat:
    """What a template is rendered with."""

    messages: list[dict[str, Any]]
    """As the template gets them."""
    add_generation_prompt: bool = True
    extras: Mapping[str, Any] = field(default_factory=dict)
    """tools, documents, enable_thinking and the rest of the template's variables."""
    shape: Shape = _USUAL
    sent: list[dict[str, Any]] = field(default_factory=list, repr=False)
    """The messages as they were sent, checked; a content that was not sent is ``None``."""
    origins: tuple[tuple[int, ...], ...] = ()
    """Of each message that the template gets, the numbers of those sent that it is made of."""
    template: str | None = None
    """A Jinja text to render with, in place of the model's."""
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    strict: frozenset[str] = frozenset()
    """Names of tools whose schema must be held to the letter."""
    deferred: tuple[dict[str, Any], ...] = ()
    """Tools that the messages describe and the template does not get."""
    continuing: Continuing | None = None
    """What of the last message the reply continues."""
    effort: str | None = None
    """``reasoning_effort``, one of EFFORTS."""

    def shaped(self, shape: Shape) -> Chat:
        """The same conversation in the form that a template of this shape expects."""
        if shape == self.shape:
            return self
        return replace(self, shape=shape).reshaped()

    def reshaped(self) -> Chat:
        """The same after a change of ``sent``."""
        messages, origins = in_form(self.sent, self.shape, self.continuing)
        return replace(self, messages=messages, origins=tuple(origins))

    @property
    def has_tools(self) -> bool:
        return bool(self.callable_tools)

    @property
    def callable_tools(self) -> list[dict[str, Any]]:
        """All that a reply may call."""
        return [*(self.extras.get("tools") or ()), *self.deferred]

    @property
    def has_calls(self) -> bool:
        """Whether tools were called before."""
        return any(one["role"] == "tool" or one.get("tool_calls") for one in self.sent)

    def _tools(self) -> dict[str, object]:
        shape, tools = self.shape, self.extras.get("tools")
        if tools and shape.describes_all:
            tools = [described_tool(one) for one in tools]
        if tools and shape.flat_tools:
            tools = [flat_tool(one) for one in tools]
        return {"tools": tools or (None if shape.no_tools == "null" else [])}

    def variables(self) -> dict[str, Any]:
        """What the template finds under which name; ``tools`` is none when there are none."""
        return {
            **thinking_variables(self.extras.get("enable_thinking"), self.effort, self.shape),
            "documents": None,
            **self._tools(),
            **{key: value for key, value in self.extras.items() if key != "tools"},
            "messages": self.messages,
            "add_generation_prompt": self.add_generation_prompt,
        }


def chat_from(raw: bytes | str) -> Chat:
    """Parse and check a request: ``{"messages": [...], "tools": [...], ...}``.

    A list alone is taken for the messages. ``template_kwargs``, or by its other name
    ``chat_template_kwargs``, become variables of the template.
    """
    plain = _parsed(raw)
    continuing = _continuing(plain)
    wants_reply = plain.get("add_generation_prompt")
    if not isinstance(wants_reply, bool | None):
        raise BadChat("add_generation_prompt must be true or false")
    if wants_reply and continuing:
        raise BadChat(
            "continue_final_message and add_generation_prompt exclude each other: the first "
            "continues the last message, the second begins one"
        )
    sent = messages_from(plain.get("messages"))
    template = plain.get("chat_template")
    if template is not None and not (isinstance(template, str) and template.strip()):
        raise BadChat("chat_template must be the text of a Jinja template")
    chat = Chat(
        [],
        not continuing if wants_reply is None else wants_reply,
        _extras(plain),
        sent=sent,
        template=template,
        continuing=_continued_part(sent[-1], continuing) if continuing else None,
        effort=_effort(plain.get("reasoning_effort")),
        tool_choice=tool_choice_from(plain.get("tool_choice"), plain.get("parallel_tool_calls")),
        strict=_strict_tools(plain.get("tools")) | _strict_tools(plain.get("deferred_tools")),
        deferred=tuple(tools_from(_objects(plain, "deferred_tools"))),
    )
    return chat.reshaped()


def _strict_tools(tools: object) -> frozenset[str]:
    """Names of tools whose schema must be held to the letter."""
    functions = [one.get("function", one) for one in tools or () if isinstance(one, dict)]  # type: ignore[attr-defined]
    named = (one for one in functions if isinstance(one, dict) and one.get("strict") is True)
    return frozenset(one["name"] for one in named if isinstance(one.get("name"), str))


def _parsed(raw: bytes | str) -> dict[str, Any]:
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
    for key, instead in _REPLACED.items():
        if plain.get(key) is not None:
            raise BadChat(f"{key} has been replaced in OpenAI's API: {instead}")
    unknown = sorted(set(plain) - set(_KNOWN) - set(_REPLACED))
    if unknown:
        raise BadChat(
            f"unknown key {unknown[0]!r}; known are {', '.join(_KNOWN)}; a template's own "
            "variables go into template_kwargs"
        )
    return plain


# ── what is continued ───────────────────────────────────────────────────────────────────────────


def _continuing(plain: dict[str, Any]) -> object:
    """``True`` for auto, ``"content"``, ``"reasoning"``, or something false."""
    asked = plain.get("continue_final_message")
    if asked is None or isinstance(asked, bool):
        return asked
    if asked == "auto":
        return True
    if isinstance(asked, str) and asked in _CONTINUED:
        return _CONTINUED[asked]
    raise BadChat(
        "continue_final_message must be true, false, content or reasoning_content, "
        f"not {str(asked)[:40]!r}"
    )


def _continued_part(last: dict[str, Any], asked: object) -> Continuing:
    """What of the last message is continued; a thought only where there is no content yet."""
    if last["role"] != "assistant":
        raise BadChat(
            "continue_final_message continues a message of the assistant, and the last one is of "
            f"the role {last['role']}"
        )
    if last.get("tool_calls"):
        raise BadChat("continue_final_message: a message that calls tools cannot be continued")
    has_thought, has_content = bool(last.get(REASONING)), bool(last["content"])
    if asked == "reasoning" and has_content:
        raise BadChat(
            "continue_final_message is reasoning, but the last message has content after its "
            "thought; leave the content out, or continue that"
        )
    is_thought = asked == "reasoning" or (asked is True and has_thought and not has_content)
    return "reasoning" if is_thought else "content"


def _effort(effort: object) -> str | None:
    if effort is None:
        return None
    if not isinstance(effort, str) or effort not in EFFORTS:
        raise BadChat(f"reasoning_effort must be one of {', '.join(EFFORTS)}")
    return effort


# ── the template's variables ────────────────────────────────────────────────────────────────────


def _extras(plain: dict[str, Any]) -> dict[str, Any]:
    extras = _kwargs(plain)
    for key in ("tools", "documents"):
        items = _objects(plain, key)
        if items:
            extras[key] = tools_from(items) if key == "tools" else items
    if isinstance(extras.get("thinking"), bool):  # DeepSeek's name of the same
        extras.setdefault("enable_thinking", extras.pop("thinking"))
    if plain.get("enable_thinking") is not None:
        extras["enable_thinking"] = plain["enable_thinking"]
    if extras.get("enable_thinking") and plain.get("reasoning_effort") == "none":
        raise BadChat("reasoning_effort is none, and enable_thinking is on; give one of them")
    return extras


def _objects(plain: dict[str, Any], key: str) -> list[dict[str, Any]]:
    items = plain.get(key)
    if items is None:
        return []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise BadChat(f"{key} must be a list of objects")
    return items


def _kwargs(plain: dict[str, Any]) -> dict[str, Any]:
    names = [one for one in ("template_kwargs", "chat_template_kwargs") if plain.get(one)]
    if len(names) > 1:
        raise BadChat("template_kwargs and chat_template_kwargs are the same; give one of them")
    kwargs = plain[names[0]] if names else {}
    if not isinstance(kwargs, dict):
        raise BadChat(f"{names[0]} must be an object")
    taken = sorted(_OURS & set(kwargs))
    if taken:
        raise BadChat(f"{names[0]} may not set {taken[0]!r}")
    return dict(kwargs)
