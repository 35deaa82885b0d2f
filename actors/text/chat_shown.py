"""Whether a template printed what the caller sent: found out by rendering with marked words.

A template may leave out messages of a role it has no case for, calls of tools, the tools themselves
or documents, and raise nothing. The model then answers as if they had not been sent. So what may be
left out is given once more with a word of its own in each part, and a part whose word is missing,
and without which or with which the prompt is the same, is refused by name.

Most of it needs no second rendering: where it lies in the part of the prompt that is known to be
its own (``text.parts``), it was printed.

What is left out by design stays so: thoughts of earlier turns, and text beside calls where the
template has no place for it (``actors.text.chat_shape`` gives it one where it can).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from actors.messages.errors import UnsupportedRequest
from actors.text.chat_continuation import prompt_text
from actors.text.chat_request import Chat
from actors.text.chat_template import ChatTemplate, TemplateFailed, TemplateStopped
from actors.text.parts import TOOLS, Parts

_MAX_SINGLE: Final = 8  # renderings for parts that are looked at one by one
_PLAIN: Final = re.compile(r"[A-Za-z0-9 ,.]+")  # written the same in JSON and elsewhere
_LONG: Final = 16
_LONG_NAME: Final = 6
_WORD: Final = "zqshown{}z"


class NotShown(UnsupportedRequest):
    """The template leaves out what the caller sent; the text names it."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a conversation that a template may leave out."""

    name: str
    marked: Callable[[Chat, str], Chat]
    """The conversation with a word added to this part."""
    other: Callable[[Chat], Chat]
    """The conversation with this part changed, or without it."""


def check_shown(
    template: ChatTemplate, chat: Chat, text: str, *, thinks: bool, parts: Parts | None = None
) -> None:
    """``text`` is the chat as the template renders it; NotShown, TemplateStopped.

    ``thinks``: the model has markers of thinking; others are known by their template. ``parts``:
    those of the text, if they are known.
    """
    _check_variables(template, chat, thinks=thinks)
    own = _Own(text, parts or Parts(()))
    suspects = list(_suspects(chat, text, own))
    if not suspects:
        return
    words = [_WORD.format(number) for number in range(len(suspects))]
    marked = chat
    for part, word in zip(suspects, words, strict=True):
        marked = part.marked(marked, word)
    printed = _rendered(template, marked) or ""
    missing = [part for part, word in zip(suspects, words, strict=True) if word not in printed]
    for part in missing[:_MAX_SINGLE]:
        if _rendered(template, part.other(chat)) == text:
            raise NotShown(
                f"{part.name} would not reach the model: its chat template leaves that out. "
                f"{_advice(part.name)}"
            )


def _check_variables(template: ChatTemplate, chat: Chat, *, thinks: bool) -> None:
    own = {"tools", "documents", "enable_thinking"}
    unknown = sorted(set(chat.extras) - own - template.variables)
    if unknown:
        known = sorted(template.variables - own - {"messages", "add_generation_prompt"})
        raise NotShown(
            f"template_kwargs[{unknown[0]!r}] has no effect: this model's chat template reads no "
            f"variable of that name. It reads {', '.join(known) or 'none'}"
        )
    shape = chat.shape
    thinks = thinks or bool(shape.marks or shape.efforts or shape.keeps_thought)
    wish, name = chat.extras.get("enable_thinking"), "enable_thinking"
    has_switch = bool({name, shape.thinking} & template.variables or shape.no_effort)
    if wish is None and chat.effort is not None:
        wish, name = chat.effort != "none", "reasoning_effort"
        has_switch = has_switch or bool(wish and shape.efforts)
    if wish is None or has_switch:
        return
    if bool(wish) != thinks:
        can = "switch thinking off" if thinks else "make this model think"
        given = chat.effort if name == "reasoning_effort" else wish
        raise NotShown(f"{name}={given!r} has no effect: this model's chat template cannot {can}")


class _Own:
    """What is proven to be printed, since it lies in the part of the prompt that is its own.

    Only what is long enough not to be there for another reason, and is nothing else besides.
    """

    def __init__(self, text: str, parts: Parts) -> None:
        self._parts: dict[str, list[str]] = {}
        self._has_content = {part.name for part in parts.found if part.content is not None}
        for part in parts.found:
            self._parts.setdefault(part.name, []).append(text[part.start : part.end])

    def shows_tools(self, tools: Any) -> bool:
        """Whether the first of them is there with its description: names are in any case."""
        tool = tools[0] if isinstance(tools, list) else None
        first = tool.get("function", tool) if isinstance(tool, dict) else None
        described = first.get("description") if isinstance(first, dict) else None
        texts = _PLAIN.findall(described) if isinstance(described, str) else []
        words = max(texts, key=len, default="").strip()
        return len(words) >= _LONG and self._count(words, TOOLS) > 0

    def has_content(self, at: int) -> bool:
        """Whether a message's content is there, perhaps because of something else."""
        return f"messages[{at}]" in self._has_content

    def shows_content(self, at: int, message: dict[str, Any]) -> bool:
        # Thoughts of earlier turns are left out by design.
        content = str(message["content"]).rpartition("</think>")[2].strip()
        others = _texts({key: one for key, one in message.items() if key != "content"})
        is_only_one = len(content) >= _LONG and not any(content in one for one in others)
        return is_only_one and self._count(content, f"messages[{at}]") > 0

    def shows_call(self, at: int, number: int, message: dict[str, Any]) -> bool:
        names = [call["function"]["name"] for call in message["tool_calls"]]
        name = names[number]
        if len(name) < _LONG_NAME:
            return False
        n_elsewhere = sum(one.count(name) for one in _texts(message)) - names.count(name)
        n_named = sum(name in one for one in names)
        is_only_named = n_elsewhere == n_named - names.count(name)
        return is_only_named and self._count(name, f"messages[{at}]") >= n_named

    def _count(self, text: str, name: str) -> int:
        return sum(one.count(text) for one in self._parts.get(name, ()))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def _suspects(chat: Chat, text: str, own: _Own) -> Iterator[_Part]:
    tools = chat.extras.get("tools")
    if tools and not own.shows_tools(tools):
        yield _extra("tools")
    if chat.extras.get("documents"):
        yield _extra("documents")
    for at, message in enumerate(chat.sent):
        role, content, calls = message["role"], message["content"], message.get("tool_calls") or []
        is_usual = role in ("user", "assistant") or (role == "system" and at == 0)
        is_shown = is_usual and bool(content) and (own.has_content(at) or content.strip() in text)
        if content and not calls and not is_shown and not own.shows_content(at, message):
            yield _changeable(f"messages[{at}] (role {role})", _content_marker(at))
        for number in range(len(calls)):
            if own.shows_call(at, number, message):
                continue
            yield _changeable(f"messages[{at}].tool_calls[{number}]", _call_marker(at, number))


def _changeable(name: str, marked: Callable[[Chat, str], Chat]) -> _Part:
    return _Part(name, marked, lambda chat: marked(chat, _WORD.format(0)))


def _extra(key: str) -> _Part:
    def marked(chat: Chat, word: str) -> Chat:
        first, *others = chat.extras[key]
        changed = _described(first, word) if key == "tools" else _with_word(first, word)
        return replace(chat, extras={**chat.extras, key: [changed, *others]})

    def without(chat: Chat) -> Chat:
        return replace(chat, extras={k: v for k, v in chat.extras.items() if k != key})

    return _Part(key, marked, without)


def _described(tool: dict[str, Any], word: str) -> dict[str, Any]:
    """A tool with a word in its description; templates look at most other fields."""
    function = tool.get("function")
    if isinstance(function, dict):
        return {**tool, "function": _described(function, word)}
    return {**tool, "description": f"{tool.get('description', '')} {word}"}


def _content_marker(at: int) -> Callable[[Chat, str], Chat]:
    def marked(chat: Chat, word: str) -> Chat:
        message = chat.sent[at]
        return _changed(chat, at, {**message, "content": f"{message['content']} {word}"})

    return marked


def _call_marker(at: int, number: int) -> Callable[[Chat, str], Chat]:
    def marked(chat: Chat, word: str) -> Chat:
        message = chat.sent[at]
        calls = list(message["tool_calls"])
        function = calls[number]["function"]
        named = {**function, "name": function["name"] + word}
        calls[number] = {**calls[number], "function": named}
        return _changed(chat, at, {**message, "tool_calls": calls})

    return marked


def _changed(chat: Chat, at: int, message: dict[str, Any]) -> Chat:
    return replace(chat, sent=[*chat.sent[:at], message, *chat.sent[at + 1 :]])


def _with_word(value: Any, word: str) -> Any:
    """The same value with a word after every text in it."""
    if isinstance(value, str):
        return value + word
    if isinstance(value, list):
        return [_with_word(item, word) for item in value]
    if isinstance(value, dict):
        return {key: _with_word(item, word) for key, item in value.items()}
    return value


def _rendered(template: ChatTemplate, chat: Chat) -> str | None:
    """The prompt; ``None`` if the template refuses this form of the conversation."""
    try:
        return prompt_text(template, chat.reshaped())[0]
    except TemplateStopped:
        raise
    except (TemplateFailed, UnsupportedRequest):
        return None


def _advice(name: str) -> str:
    if name in ("tools", "documents"):
        return f"Leave out {name}, or write them into a message"
    if "tool_calls" in name:
        return "Write the call into the content of the message"
    if name.endswith("(role system)"):
        return "Give one system message, as the first one, or put the text into a user message"
    return "Put the text into a user message"
