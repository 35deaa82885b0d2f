"""Named rules that make a conversation the same as an earlier one, so that its prefix is warm.

Agents write things into the beginning of a prompt that differ from session to session and have no
meaning for a model: who is billed, today's date, tools in another order. A rule takes out, or
moves, one such thing; which rules are applied is ``gateway.canonicalise``, and ``rules`` of a key.
An answer names those that changed something.

A rule is a pure function from a conversation to a conversation, in the runtime's form, and applied
to what it has made it changes nothing. What is not in that form is left as it is: the runtime
refuses it, and names the place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from runtime.gateway.wire.wanted import Wanted

BILLING: Final = "x-anthropic-billing-header:"
MAX_DATE_LINE: Final = 120
"""Characters. A longer line is about more than the date."""
_SYSTEM: Final = ("system", "developer")
_DATE: Final = re.compile(
    r"\W*(the\s+)?(today(['\u2019]s\s+date)?|(current|local)(\s+local)?\s+(date|time|datetime)"
    r"(\s*(and|/|&)\s*time)?)(\s+is\b|\s*[:=]).*\d.*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages and tools as they are given to the runtime."""

    messages: list[Any]
    tools: list[Any]


Rule = Callable[[Conversation], Conversation]
"""Returns the same object where there is nothing to change."""


def canonical(wanted: Wanted, names: Iterable[str]) -> Wanted:
    """The request after these rules, in their order; ``rules`` has the names of those that acted.

    Only for chats: what has no messages is returned as it is.
    """
    if wanted.kind != "chat":
        return wanted
    tools = wanted.options.get("tools")
    found = [Conversation(one, tools or []) for one in wanted.inputs]
    fired: list[str] = []
    for name in names:
        changed = [RULES[name](one) for one in found]
        if any(new is not old for new, old in zip(changed, found, strict=True)):
            fired.append(name)
        found = changed
    if not fired:
        return wanted
    options = dict(wanted.options)
    if tools:
        options["tools"] = found[0].tools
    rules = wanted.rules + tuple(one for one in fired if one not in wanted.rules)
    inputs = tuple(one.messages for one in found)
    return replace(wanted, inputs=inputs, options=options, rules=rules)


# ── claude-billing ──────────────────────────────────────────────────────────────────────────────


def without_billing(given: Conversation) -> Conversation:
    """Without the line for a biller that Claude Code puts before its system text.

    It differs in three digits from session to session, and all that follows it is the same.
    """
    kept: list[Any] = []
    has_changed = False
    for message in given.messages:
        texts = _texts(message) if _is_system(message) else None
        rest = None if texts is None else [_without_header(text) for text in texts]
        if texts is None or rest is None or rest == texts:
            kept.append(message)
            continue
        has_changed = True
        left = [text for text, before in zip(rest, texts, strict=True) if text or not before]
        if left:
            kept.append(_with_texts(message, left))
    return replace(given, messages=kept) if has_changed and kept else given


def _without_header(text: str) -> str:
    while text.lstrip().startswith(BILLING):
        text = text.lstrip().partition("\n")[2].lstrip("\n")
    return text


# ── sort-tools ──────────────────────────────────────────────────────────────────────────────────


def with_sorted_tools(given: Conversation) -> Conversation:
    """Tools in the order of their names: some hosts list them in another one each time."""
    ordered = sorted(given.tools, key=_tool_name)
    is_same = all(one is other for one, other in zip(ordered, given.tools, strict=True))
    return given if is_same else replace(given, tools=ordered)


def _tool_name(tool: object) -> str:
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    return name if isinstance(name, str) else ""


# ── date-to-end ─────────────────────────────────────────────────────────────────────────────────


def with_date_at_end(given: Conversation) -> Conversation:
    """Lines with today's date from the leading system text at the end of the last user's message.

    Then another day changes nothing before that message. The price: in the next turn that message
    is the last one no more, and is read again without the date.
    """
    messages = given.messages
    at = next((n for n in range(len(messages) - 1, -1, -1) if _is_of(messages[n], ("user",))), None)
    if at is None or _texts(messages[at]) is None:
        return given
    n_lead = next((n for n, one in enumerate(messages) if not _is_system(one)), len(messages))
    dates: list[str] = []
    lead = [_without_dates(one, dates) for one in messages[:n_lead]]
    if not dates:
        return given
    kept = [one for one in lead if one is not None]
    asked = _with_more(messages[at], dates)
    return replace(given, messages=[*kept, *messages[n_lead:at], asked, *messages[at + 1 :]])


def _without_dates(message: Any, dates: list[str]) -> Any:
    """The message without those lines, which are added to ``dates``; None if that is all of it."""
    texts = _texts(message)
    if texts is None:
        return message
    left: list[str] = []
    n_before = len(dates)
    for text in texts:
        lines = text.split("\n")
        rest = [line for line in lines if not _is_date(line)]
        dates += [line.strip() for line in lines if _is_date(line)]
        if len(rest) == len(lines) or any(line.strip() for line in rest):
            left.append("\n".join(rest))
    if len(dates) == n_before:
        return message
    return _with_texts(message, left) if left else None


def _is_date(line: str) -> bool:
    return len(line) <= MAX_DATE_LINE and _DATE.fullmatch(line) is not None


def _with_more(message: dict[str, Any], lines: list[str]) -> dict[str, Any]:
    content, text = message.get("content"), "\n".join(lines)
    if isinstance(content, list):
        return {**message, "content": [*content, {"type": "text", "text": text}]}
    return {**message, "content": f"{content}\n\n{text}" if content else text}


# ── stable-system ───────────────────────────────────────────────────────────────────────────────


def with_one_system_text(given: Conversation) -> Conversation:
    """One system text at the beginning, and no other.

    Clients cut that text into blocks in one way or another, and templates show blocks differently.
    What comes later as a system message, which many templates refuse, is a reminder in the text of
    a user: of the next one, or of the one before where a reply or nothing follows.
    """
    messages = given.messages
    n_lead = next((n for n, one in enumerate(messages) if not _is_system(one)), len(messages))
    lead = _joined(messages[:n_lead])
    rest = _without_later_system(messages[n_lead:])
    if lead is None and rest is None:
        return given
    kept = messages[:n_lead] if lead is None else lead
    return replace(given, messages=[*kept, *(messages[n_lead:] if rest is None else rest)])


def _joined(lead: list[Any]) -> list[Any] | None:
    """The leading system messages as one with one text; None: nothing is to be joined."""
    found = [_texts(one) for one in lead]
    texts = [text for one in found for text in one or ()]
    if max(len(texts), len(lead)) < 2 or None in found:
        return None
    return [{**lead[0], "content": "\n\n".join(text for text in texts if text)}]


def _without_later_system(messages: list[Any]) -> list[Any] | None:
    """System messages as reminders; None: there are none."""
    kept: list[Any] = []
    waiting: list[str] = []
    has_changed = False
    for message in messages:
        texts = _texts(message) if _is_system(message) else None
        if texts is not None:
            has_changed = True
            if text := "\n\n".join(one for one in texts if one):
                waiting.append(text)
            continue
        if waiting and _is_open_user(message):
            message = _with_reminders_first(message, waiting)  # noqa: PLW2901 - it replaces it
            waiting = []
        elif not _is_of(message, ("tool",)):  # the results of a call follow it at once
            _put_reminders(kept, waiting)
            waiting = []
        kept.append(message)
    _put_reminders(kept, waiting)
    return kept if has_changed else None


def _is_open_user(message: object) -> bool:
    """Whether it is a user's, and text can be added to it."""
    if not (isinstance(message, Mapping) and message.get("role") == "user"):
        return False
    return isinstance(message.get("content"), str | list | None)


def _reminder(text: str) -> str:
    return f"<system-reminder>\n{text}\n</system-reminder>"


def _with_reminders_first(message: dict[str, Any], waiting: list[str]) -> dict[str, Any]:
    content, text = message.get("content"), "\n\n".join(map(_reminder, waiting))
    if isinstance(content, list):
        return {**message, "content": [{"type": "text", "text": text}, *content]}
    return {**message, "content": f"{text}\n\n{content}" if content else text}


def _put_reminders(kept: list[Any], waiting: list[str]) -> None:
    """At the end of the last user's text, or as a message of a user."""
    if not waiting:
        return
    text = "\n\n".join(map(_reminder, waiting))
    if kept and _is_open_user(kept[-1]):
        kept[-1] = _with_more(kept[-1], [text])
    else:
        kept.append({"role": "user", "content": text})


# ── strip-ids ───────────────────────────────────────────────────────────────────────────────────


def with_counted_ids(given: Conversation) -> Conversation:
    """Tool calls, and their results, with ids that count them: ``call_0``, ``call_1`` and so on.

    For clients that make up other ids each time, with templates that show them. The price: a model
    that writes ids itself does not find its own calls, and reads them again.
    """
    names: dict[str, str] = {}

    def counted(found: str) -> str:
        return names.setdefault(found, f"call_{len(names)}")

    messages = [_with_ids(one, counted) for one in given.messages]
    is_same = all(one is other for one, other in zip(messages, given.messages, strict=True))
    return given if is_same else replace(given, messages=messages)


def _with_ids(message: Any, counted: Callable[[str], str]) -> Any:
    if not isinstance(message, Mapping):
        return message
    changed: dict[str, Any] = {}
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        found = [_with_id(one, "id", counted) for one in calls]
        if any(one is not other for one, other in zip(found, calls, strict=True)):
            changed["tool_calls"] = found
    named = _with_id(message, "tool_call_id", counted)
    return {**named, **changed} if changed else named


def _with_id(value: Any, key: str, counted: Callable[[str], str]) -> Any:
    """The same with another id there; the same object where it has none, or that one."""
    old = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(old, str) or not old or (new := counted(old)) == old:
        return value
    return {**value, key: new}


# ── texts of messages ───────────────────────────────────────────────────────────────────────────


def _is_of(message: object, roles: tuple[str, ...]) -> bool:
    return isinstance(message, Mapping) and message.get("role") in roles


def _is_system(message: object) -> bool:
    return _is_of(message, _SYSTEM)


def _texts(message: Mapping[str, Any]) -> list[str] | None:
    """The texts of a message; None where its content is of another form."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return [content or ""]
    if not isinstance(content, list):
        return None
    found = [one.get("text") if isinstance(one, Mapping) else None for one in content]
    texts = [one for one in found if isinstance(one, str)]
    return texts if len(texts) == len(found) else None


def _with_texts(message: Mapping[str, Any], texts: list[str]) -> dict[str, Any]:
    if isinstance(message.get("content"), list):
        return {**message, "content": [{"type": "text", "text": one} for one in texts]}
    return {**message, "content": texts[0]}


RULES: Final[Mapping[str, Rule]] = {
    "claude-billing": without_billing,
    "sort-tools": with_sorted_tools,
    "date-to-end": with_date_at_end,
    "stable-system": with_one_system_text,
    "strip-ids": with_counted_ids,
}
