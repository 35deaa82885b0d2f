"""The cases of llama.cpp's own tests of replies, read out of the archive's ``tests/test-chat.cpp``.

Nothing of that file is in the repository. Its cases are chains of calls on literals, with a few
helpers and constants; this reads as much C++ as that takes. What it cannot read is counted.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

_TOKEN: Final = re.compile(
    r"""
    (?P<raw>R"(?P<mark>[^\s()\\]{0,16})\((?P<body>.*?)\)(?P=mark)")
    |(?P<text>"(?:[^"\\]|\\.)*")
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*(?:::[A-Za-z_][A-Za-z0-9_]*)*)
    |(?P<number>-?\d+(?:\.\d+)?)
    |(?P<comment>//[^\n]*|/\*.*?\*/)
    |(?P<sign>\S)
    """,
    re.VERBOSE | re.DOTALL,
)


class Unreadable(Exception):
    """C++ that this does not read."""


@dataclass(frozen=True)
class Message:
    content: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, str, str], ...] = ()
    role: str = "assistant"

    def plain(self) -> dict[str, Any]:
        """As an API has it."""
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning:
            out["reasoning_content"] = self.reasoning
        return out


@dataclass
class Case:
    """One reply and what it is expected to be."""

    template: str
    reply: str
    tools: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    expected: Message = field(default_factory=Message)


@dataclass(frozen=True)
class _Tester:
    path: str


@dataclass(frozen=True)
class _Symbol:
    name: str


def cases_of(source: str) -> tuple[list[Case], int]:
    """All cases, and how many could not be read."""
    walker = _Walker(list(_tokens(source)))
    walker.run(0, len(walker.tokens))
    return walker.cases, walker.n_unreadable


def _tokens(source: str) -> Iterator[tuple[str, str]]:
    for found in _TOKEN.finditer(source):
        kind = found.lastgroup
        if found["raw"] is not None:
            yield "text", found["body"]
        elif found["text"] is not None:
            yield "text", _unescaped(found["text"])
        elif kind is not None and kind != "comment":
            yield kind, found[0]


def _unescaped(literal: str) -> str:
    """C's escapes are Python's, but for lines that end in a backslash."""
    return str(ast.literal_eval(literal.replace("\\\n", "").replace("\\?", "?")))


def _simple(content: str = "", reasoning: str = "", name: str = "", arguments: str = "",
            call_id: str = "") -> Message:  # fmt: skip
    calls = ((name, arguments, call_id),) if name or call_id else ()
    return Message(content, reasoning, calls)


_HELPERS: Final[dict[str, Callable[..., Any]]] = {
    "simple_assist_msg": _simple,
    "message_with_tool_calls": lambda name, arguments: _simple("", "", name, arguments),
    "message_with_tool_calls_and_reasoning": lambda name, arguments, reasoning: _simple(
        "", reasoning, name, arguments
    ),
    "message_with_reasoning_content_and_multiple_tool_calls": lambda reasoning, content, calls: (
        Message(content, reasoning, tuple((name, arguments, "") for name, arguments in calls))
    ),
    "message_with_content_and_tool_call": lambda content, name, arguments: _simple(
        content, "", name, arguments
    ),
    "message_with_reasoning_and_tool_call": lambda reasoning, name, arguments: _simple(
        "", reasoning, name, arguments
    ),
    "std::string": lambda text="": text,
}


class _Walker:
    """Goes over the file, keeps what names stand for, and stops at the cases."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens = tokens
        self.cases: list[Case] = []
        self.n_unreadable = 0
        self._names: dict[str, Any] = {"true": True, "false": False}
        self._functions: dict[str, tuple[str, int, int]] = {}
        self._at = 0

    # ── statements ──────────────────────────────────────────────────────────────────────────────

    def run(self, start: int, end: int) -> None:
        self._at = start
        while self._at < end:
            here = self._at
            try:
                if not self._statement():
                    self._at = here + 1
            except (Unreadable, IndexError, TypeError, ValueError):
                self._at = here + 1

    def _statement(self) -> bool:
        kind, text = self.tokens[self._at]
        if kind != "name":
            return False
        if text == "for":
            return self._loop()
        if text == "static" and self._texts(3)[1:2] == ["void"]:
            return self._function()
        following = self._texts(3)[1:]
        if isinstance(self._names.get(text), _Tester) and following == [".", "test"]:
            return self._case(self._names[text])
        if text in self._functions and following[:1] == ["("]:
            return self._called(text)
        return self._definition()

    def _texts(self, n: int) -> list[str]:
        return [text for _, text in self.tokens[self._at : self._at + n]]

    def _definition(self) -> bool:
        """``TYPE NAME = VALUE;`` or ``TYPE NAME{…};``, of types that cases use."""
        kind = self.tokens[self._at][1]
        if kind not in ("common_chat_tool", "common_chat_msg", "auto", "char", "std::string",
                        "std::vector"):  # fmt: skip
            return False
        at = self._at + 1
        while self.tokens[at][1] in ("*", "&", "<", ">", "common_chat_tool"):
            at += 1
        name = self.tokens[at]
        if name[0] != "name" or self.tokens[at + 1][1] not in ("=", "{"):
            return False
        self._at = at + 1 + (self.tokens[at + 1][1] == "=")
        value = self._value()
        if kind in ("common_chat_tool", "common_chat_msg") and isinstance(value, list):
            value = _tool(value) if kind == "common_chat_tool" else _message(value)
        self._names[name[1]] = value
        return True

    def _loop(self) -> bool:
        """``for (TYPE NAME : {A, B}) {…}``"""
        at = self._at
        while self.tokens[at][1] != ":":
            if self.tokens[at][1] in (";", "{"):
                return False
            at += 1
        name = self.tokens[at - 1][1]
        self._at = at + 1
        values = self._value()
        if not isinstance(values, list) or self._texts(2) != [")", "{"]:
            return False
        start, end = self._at + 2, self._closing(self._at + 1)
        for value in values:
            self._names[name] = value
            self.run(start, end)
        self._at = end
        return True

    def _function(self) -> bool:
        """``static void NAME(const std::string & PARAMETER, …) {…}`` runs where it is called."""
        name, at = self.tokens[self._at + 2][1], self._at + 3
        if [text for _, text in self.tokens[at : at + 4]] != ["(", "const", "std::string", "&"]:
            return False
        parameter = self.tokens[at + 4][1]
        while self.tokens[at][1] != "{":
            at += 1
        end = self._closing(at)
        self._functions[name] = (parameter, at + 1, end)
        self._at = end
        return True

    def _called(self, name: str) -> bool:
        self._at += 1
        arguments = self._arguments()
        parameter, start, end = self._functions[name]
        after = self._at
        self._names[parameter] = arguments[0]
        self.run(start, end)
        self._at = after
        return True

    def _closing(self, at: int) -> int:
        depth = 0
        while True:
            kind, text = self.tokens[at]
            if kind == "sign":
                depth += (text == "{") - (text == "}")
            if depth == 0:
                return at
            at += 1

    # ── cases ───────────────────────────────────────────────────────────────────────────────────

    def _case(self, tester: _Tester) -> bool:
        start = self._at
        try:
            self._at += 3
            case = Case(tester.path, *self._arguments())
            while self.tokens[self._at][1] == ".":
                method = self.tokens[self._at + 1][1]
                self._at += 2
                _set(case, method, self._arguments())
            self.cases.append(case)
        except (Unreadable, TypeError, ValueError):
            self.n_unreadable += 1
            self._at = start
            while self.tokens[self._at] != ("sign", ";"):
                self._at += 1
        return True

    # ── values ──────────────────────────────────────────────────────────────────────────────────

    def _arguments(self) -> list[Any]:
        if self.tokens[self._at][1] != "(":
            raise Unreadable("no arguments")
        return self._list(")")

    def _list(self, closing: str) -> list[Any]:
        self._at += 1
        out: list[Any] = []
        while self.tokens[self._at] != ("sign", closing):
            out.append(self._value())
            if self.tokens[self._at] == ("sign", ","):
                self._at += 1
        self._at += 1
        return out

    def _value(self) -> Any:
        value = self._term()
        while self.tokens[self._at] == ("sign", "+"):
            self._at += 1
            value = value + self._term()
        return value

    def _term(self) -> Any:
        kind, text = self.tokens[self._at]
        if kind == "text":
            parts = []
            while self.tokens[self._at][0] == "text":
                parts.append(self.tokens[self._at][1])
                self._at += 1
            return "".join(parts)
        if kind == "number":
            self._at += 1
            return json.loads(text)
        if (kind, text) == ("sign", "{"):
            return self._list("}")
        if kind != "name":
            raise Unreadable(text)
        self._at += 1
        if self.tokens[self._at] == ("sign", "("):
            return self._call(text)
        if text in self._names:
            return self._names[text]
        return _Symbol(text)

    def _call(self, name: str) -> Any:
        arguments = self._arguments()
        if name == "peg_tester" and isinstance(arguments[0], str):
            return _Tester(arguments[0])
        if name not in _HELPERS:
            raise Unreadable(name)
        return _HELPERS[name](*arguments)


def _tool(value: list[Any]) -> dict[str, Any]:
    name, description, parameters = value
    function = {"name": name, "description": description, "parameters": json.loads(parameters)}
    return {"type": "function", "function": function}


def _message(value: list[Any]) -> Message:
    role, content, parts = value[:3]
    joined = "\n".join(text for _, text in parts)
    return Message(content or joined, role=role)


def _set(case: Case, method: str, arguments: list[Any]) -> None:
    value = arguments[0] if arguments else True
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, _Symbol) and not one.name.startswith("COMMON_"):
            raise Unreadable(one.name)
    before = case.expected
    if method == "expect":
        case.expected = value
    elif method == "expect_content":
        case.expected = Message(value, before.reasoning, before.calls)
    elif method == "expect_reasoning":
        case.expected = Message(before.content, value, before.calls)
    elif method == "expect_tool_calls":
        calls = tuple((name, arguments, str(one or "")) for name, arguments, one in value)
        case.expected = Message(before.content, before.reasoning, calls)
    elif method == "tools":
        case.tools = [_tool(one) if isinstance(one, list) else one for one in value]
    elif method == "messages":
        case.messages = value
    elif method not in ("run", "expect_reconstruction"):
        case.settings[method] = value.name if isinstance(value, _Symbol) else value
