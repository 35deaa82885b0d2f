"""Which part of a conversation wrote which part of its prompt.

A template's loops over the messages are marked while it renders (``text.chat_template``), which
costs no second rendering: a message's part begins where a loop turns to it, and ends where it turns
to the next one. What no loop wrote is looked through for the texts of messages that have no part
yet, which is mostly the system message, and for the names of the tools. The rest is the template's.

A part whose text lies somewhere else is not believed: the message has none then, and ``unknown``
has its name. Pure: positions count characters of the rendered text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from actors.text.chat_request import Chat
from actors.text.template_marks import Mark

TOOLS: Final = "tools"
DOCUMENTS: Final = "documents"
TEMPLATE: Final = "template"
REPLY: Final = "reply"
_RULES: Final = ("system", "developer")
_MOST: Final = 32
_MOST_SEARCHED: Final = 1 << 29
"""Characters, in a fraction of a second."""


@dataclass(frozen=True, slots=True)
class Part:
    """One stretch of a prompt."""

    name: str
    """``messages[3]``, as numbered in what was sent; ``tools``, ``documents`` with what introduces
    them; ``template``: what the template writes by itself; ``reply``: what begins the reply."""
    start: int
    end: int
    content: tuple[int, int] | None = None
    """Where the content of the message is, if it is there once, as it was sent."""

    def holds(self, start: int, end: int) -> bool:
        return self.start <= start and end <= self.end


@dataclass(frozen=True, slots=True)
class Parts:
    """All of a prompt, from its first character to the last, in order and without gaps."""

    found: tuple[Part, ...]
    unknown: tuple[str, ...] = ()
    """What was sent and has no part: it is not known where it is, or it is nowhere."""
    restarts: tuple[int, ...] = ()
    """Numbers of the parts that another prompt is most likely to share all before of, ascending:
    where the messages begin, where the last one of a user does, and the last of all."""
    tools: tuple[str, ...] = ()
    """Names of the tools."""


def parts_of(chat: Chat, text: str, marks: Sequence[Mark]) -> Parts:
    """The parts of a rendered conversation; ``marks`` are those of its rendering."""
    found = _Search(chat, text)
    found.take_marks(marks)
    found.find_messages()
    found.doubt()
    found.find_named(TOOLS, _names(chat.extras.get("tools")))
    found.find_named(DOCUMENTS, list(_texts(chat.extras.get("documents")))[:1])
    return found.parts()


def with_tools(chat: Chat, text: str, parts: Parts) -> Parts:
    """The same with a part for each tool, ``tools[0]`` and so on, where each is written as JSON."""
    at = next((at for at, one in enumerate(parts.found) if one.name == TOOLS), None)
    tools = chat.variables()["tools"]
    if at is None:
        return parts
    whole = parts.found[at]
    for written in _as_json(tools):
        cut: list[Part] = []
        end = whole.start
        for number, one in enumerate(written):
            start = text.find(one, end, whole.end)
            if start < 0:
                break
            cut += [Part(TOOLS, end, start)] if start > end else []
            end = start + len(one)
            cut.append(Part(f"{TOOLS}[{number}]", start, end))
        else:
            cut += [Part(TOOLS, end, whole.end)] if end < whole.end else []
            shift = len(cut) - 1
            restarts = tuple(one + shift if one > at else one for one in parts.restarts)
            found = (*parts.found[:at], *cut, *parts.found[at + 1 :])
            return replace(parts, found=found, restarts=restarts)
    return parts


def _as_json(tools: Sequence[Any]) -> Iterator[list[str]]:
    """The ways in which templates write tools as JSON: each tool, or its function."""
    functions = [one.get("function", one) for one in tools]
    for values in (tools, functions):
        for indent in (None, 4, 2):
            alone = [json.dumps(one, ensure_ascii=False, indent=indent) for one in values]
            yield alone
            if indent:  # as items of a list
                yield [one.replace("\n", "\n" + " " * indent) for one in alone]


def _names(tools: Sequence[dict[str, Any]] | None) -> list[str]:
    return [one["function"]["name"] for one in tools or ()]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.strip():
        yield value.strip()
    elif isinstance(value, list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


class _Stretch(NamedTuple):
    """``owner`` is the number of a message, a name, or ``None`` for the template."""

    start: int
    end: int
    owner: int | str | None = None


class _Search:
    """A prompt, cut into stretches that are attributed step by step."""

    def __init__(self, chat: Chat, text: str) -> None:
        self._chat = chat
        self._text = text
        self._contents = [(one["content"] or "").strip() for one in chat.sent]
        self._stretches = [_Stretch(0, len(text))]
        self._content: dict[int, tuple[int, int]] = {}
        self._unknown: set[str] = set()
        self._n_searched = 0
        self._reached: dict[int, int] = {}
        """Of the template's messages that are made of several, the one whose text was last."""

    def take_marks(self, marks: Sequence[Mark]) -> None:
        """Cut where loops turned to messages. Nothing is known of empty ones yet."""
        n_messages = len(self._chat.origins)
        self._stretches = []
        before = Mark(0, -1, -1)
        for mark in [*marks, Mark(len(self._text), -1, -1)]:
            if mark.at > before.at:
                message = before.outer
                if before.inner != before.outer and not self._looks_up(before, mark.at):
                    message = before.inner
                if 0 <= message < n_messages:
                    self._add_message(message, before.at, mark.at)
                else:
                    self._add(before.at, mark.at, None)
            before = mark
        for one in self._stretches:
            if isinstance(one.owner, int):
                self._find_content(one.owner, one.start, one.end)

    def _looks_up(self, mark: Mark, end: int) -> bool:
        """Whether an inner loop only looked something up in a message, such as a call's name."""
        if not 0 <= mark.inner < len(self._chat.origins):
            return True
        contents = [self._contents[one] for one in self._chat.origins[mark.inner]]
        texts = [one for one in contents if one] or contents
        return all(self._text.find(one, mark.at, end) < 0 for one in texts)

    def _add_message(self, message: int, start: int, end: int) -> None:
        """A stretch of one of the template's messages, which may be made of several.

        The next of them begins where its content does. Texts that are not found are not looked for
        without end.
        """
        origins = self._chat.origins[message]
        last = self._reached.get(message, 0)
        at, n_missed = start, 0
        for number in range(last, len(origins)) if len(origins) > 1 else ():
            content = self._contents[origins[number]]
            found = self._text.find(content, at, end) if content else -1
            if found < 0:
                n_missed += bool(content)
                if n_missed > _MOST:
                    break
                continue
            if number > last:
                self._add(start, found, origins[last])
                start, last = found, number
            at = found + len(content)
        self._reached[message] = last
        self._add(start, end, origins[last])

    def _add(self, start: int, end: int, owner: int | None) -> None:
        if start == end:
            return
        last = self._stretches[-1] if self._stretches else None
        if last is not None and last.owner == owner:
            self._stretches[-1] = last._replace(end=end)
        else:
            self._stretches.append(_Stretch(start, end, owner))

    def _find_content(self, number: int, start: int, end: int) -> None:
        """Note where a message's content is between two positions, if it is there once."""
        content = self._contents[number]
        at = self._text.find(content, start, end) if content else -1
        if at >= 0 and self._text.find(content, at + 1, end) < 0:
            self._content[number] = at, at + len(content)

    def find_messages(self) -> None:
        """Look for messages that no loop wrote: outside of loops, and before other messages.

        Not for hundreds of them: each is looked for everywhere.
        """
        owned = {one.owner for one in self._stretches}
        left = [at for at, one in enumerate(self._contents) if one and at not in owned]
        for number in left if len(left) <= 2 * _MOST else [*left[:_MOST], *left[-_MOST:]]:
            content = self._contents[number]
            found = [
                at
                for at, one in enumerate(self._stretches)
                if self._text.find(content, one.start, self._free_until(one)) >= 0
            ]
            if len(found) == 1:
                self._cut_out(number, found[0])

    def _free_until(self, one: _Stretch) -> int:
        """Up to where a stretch may hold something of another message: before its own content."""
        if one.owner is None:
            return one.end
        content = self._content.get(one.owner) if isinstance(one.owner, int) else None
        return one.start if content is None or not one.start <= content[0] < one.end else content[0]

    def _cut_out(self, number: int, at: int) -> None:
        """A message's content is once in a stretch of the template, or of another message."""
        inside = self._stretches[at]
        self._find_content(number, inside.start, self._free_until(inside))
        if number not in self._content:
            return
        start, end = self._content[number]
        if inside.owner is not None:
            start = inside.start  # what introduces the other message introduces this one
        self._cut(at, start, end, number)

    def doubt(self) -> None:
        """Take parts from messages whose text lies elsewhere, and note those that have none."""
        own: dict[int, list[_Stretch]] = {}
        for one in self._stretches:
            if isinstance(one.owner, int):
                own.setdefault(one.owner, []).append(one)
        nowhere: set[int | str | None] = set()
        for number, content in enumerate(self._contents):
            is_here = number in own
            if is_here and content and number not in self._content:
                is_here = self._is_in(own[number], content)
            if not is_here:
                nowhere.add(number)
                self._unknown.add(_message_name(number))
        if nowhere & own.keys():
            self._stretches = [
                one._replace(owner=None) if one.owner in nowhere else one for one in self._stretches
            ]

    def _is_in(self, own: Sequence[_Stretch], content: str) -> bool:
        """Whether a content, or what a template leaves of it, is in these stretches.

        A template may leave out thoughts of earlier turns, or write a text in another form. What it
        has left of it is then nowhere else; that is not looked for in long prompts without end.
        """
        line = max(content.splitlines(), key=len).strip()
        if any(self._text.find(line, one.start, one.end) >= 0 for one in own):
            return True
        self._n_searched += len(self._text)
        return self._n_searched <= _MOST_SEARCHED and line not in self._text

    def find_named(self, name: str, words: Sequence[str]) -> None:
        """Find the stretch that holds these words, such as names of tools.

        It may be a part of what a loop wrote: before the content of a message, or behind that of a
        system message.
        """
        if not self._chat.extras.get(name):
            return
        for at, one in enumerate(self._stretches if words else ()):
            for start, end in self._free(one):
                if all(self._text.find(word, start, end) >= 0 for word in words):
                    self._cut(at, start, end, name)
                    return
        self._unknown.add(name)

    def _free(self, one: _Stretch) -> Iterator[tuple[int, int]]:
        """Where a stretch may hold something that is of no message."""
        if one.owner is None:
            yield one.start, one.end
            return
        if not isinstance(one.owner, int):
            return
        content, message = self._content.get(one.owner), self._chat.sent[one.owner]
        if content is None or not one.start <= content[0] < one.end:
            return
        if not message.get("tool_calls"):
            yield one.start, content[0]
        if message["role"] in _RULES:
            yield content[1], one.end

    def _cut(self, at: int, start: int, end: int, owner: int | str) -> None:
        """Attribute a part of a stretch to another one."""
        one = self._stretches[at]
        cut = (
            _Stretch(one.start, start, one.owner),
            _Stretch(start, end, owner),
            _Stretch(end, one.end, one.owner),
        )
        self._stretches[at : at + 1] = [part for part in cut if part.start < part.end]

    def parts(self) -> Parts:
        found = tuple(self._named())
        return Parts(
            found,
            tuple(sorted(self._unknown, key=lambda name: (len(name), name))),
            tuple(self._restarts(found)),
            tuple(_names(self._chat.extras.get("tools"))),
        )

    def _named(self) -> Iterator[Part]:
        last = len(self._stretches) - 1
        for at, one in enumerate(self._stretches):
            if isinstance(one.owner, int):
                content = self._content.get(one.owner)
                is_here = content is not None and one.start <= content[0] < one.end
                name = _message_name(one.owner)
                yield Part(name, one.start, one.end, content if is_here else None)
                continue
            is_reply = at == last and at > 0 and self._chat.add_generation_prompt
            name = one.owner or (REPLY if is_reply else TEMPLATE)
            yield Part(name, one.start, one.end)

    def _restarts(self, found: Sequence[Part]) -> list[int]:
        places = {part.name: at for at, part in reversed(list(enumerate(found)))}
        roles = [one["role"] for one in self._chat.sent]
        first = next((at for at, role in enumerate(roles) if role not in _RULES), None)
        user = next((at for at in reversed(range(len(roles))) if roles[at] == "user"), None)
        wanted = {one for one in (first, user, len(roles) - 1) if one is not None}
        known = (places.get(_message_name(one)) for one in wanted)
        return sorted(at for at in known if at is not None and found[at].start)


def _message_name(number: int) -> str:
    return f"messages[{number}]"
