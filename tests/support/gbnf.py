"""A second reader of grammars (GBNF), slow and plain: which texts they accept, and random ones.

It shares no code with the product, so that the product's matcher is not tested against
itself.
"""

from __future__ import annotations

import heapq
import random
import re
from functools import cached_property

Ranges = tuple[tuple[int, int], ...]
Element = Ranges | str
"""Characters, or the name of a rule."""
Stack = tuple[Element, "Stack"] | None
"""What is still to be matched, linked; None: nothing."""

_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_TOKEN = re.compile(
    r"""\s*(?:(?P<name>[A-Za-z0-9-]+)|(?P<text>"(?:\\.|[^"\\])*")|(?P<set>\[(?:\\.|[^\]\\])*\])"""
    r"""|(?P<times>\{[0-9]+(?:,[0-9]*)?\}|[*+?])|(?P<mark>[()|]))""",
    re.DOTALL,
)
_CHAR = re.compile(r"\\x([\da-fA-F]{2})|\\u([\da-fA-F]{4})|\\U([\da-fA-F]{8})|\\(.)|(.)", re.DOTALL)


class Grammar:
    def __init__(self, text: str) -> None:
        self.rules: dict[str, list[tuple[Element, ...]]] = {}
        for line in text.splitlines():
            name, _, body = line.partition(" ::= ")
            self._tokens = self._split(body)
            self._at = 0
            self.rules[name] = self._alternatives()
            assert self._at == len(self._tokens), line
        self._closed: dict[Stack, frozenset[Stack]] = {}

    # --- reading -----------------------------------------------------------------------------

    def _split(self, body: str) -> list[tuple[str, str]]:
        tokens, at = [], 0
        while body[at:].strip():
            found = _TOKEN.match(body, at)
            assert found is not None, body[at : at + 40]
            assert found.lastgroup is not None
            tokens.append((found.lastgroup, found[found.lastgroup]))
            at = found.end()
        return tokens

    def _alternatives(self) -> list[tuple[Element, ...]]:
        found = [self._sequence()]
        while self._at < len(self._tokens) and self._tokens[self._at][1] == "|":
            self._at += 1
            found.append(self._sequence())
        return found

    def _sequence(self) -> tuple[Element, ...]:
        out: list[Element] = []
        while self._at < len(self._tokens):
            kind, word = self._tokens[self._at]
            if word in ("|", ")") and kind == "mark":
                break
            self._at += 1
            item = self._item(kind, word)
            if self._at < len(self._tokens) and self._tokens[self._at][0] == "times":
                item = (self._repeat(item, self._tokens[self._at][1]),)
                self._at += 1
            out += item
        return tuple(out)

    def _item(self, kind: str, word: str) -> tuple[Element, ...]:
        if kind == "name":
            return (word,)
        if kind == "text":
            return tuple(((code, code),) for code in _codes(word[1:-1]))
        if kind == "set":
            return (_ranges(word[1:-1]),)
        inner = self._alternatives()
        assert self._tokens[self._at][1] == ")"
        self._at += 1
        return (self._new(inner),)

    def _new(self, alternatives: list[tuple[Element, ...]]) -> str:
        name = f"_{len(self.rules)}"
        self.rules[name] = alternatives
        return name

    def _repeat(self, item: tuple[Element, ...], times: str) -> str:
        if times in "*+?":
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[times]
        else:
            low, comma, high = times[1:-1].partition(",")
            least = int(low)
            most = int(high) if high else None if comma else least
        if most is None:
            tail = self._new([])
            self.rules[tail] = [(), (*item, tail)]
        else:
            tail = self._new([()])
            for _ in range(most - least):
                tail = self._new([(), (*item, tail)])
        return self._new([(*item * least, tail)])

    # --- matching ----------------------------------------------------------------------------

    def _close(self, stack: Stack) -> frozenset[Stack]:
        if stack in self._closed:
            return self._closed[stack]
        found, seen, todo = set(), {stack}, [stack]
        while todo:
            one = todo.pop()
            if one is None or not isinstance(one[0], str):
                found.add(one)
                continue
            for alternative in self.rules[one[0]]:
                deeper = one[1]
                for element in reversed(alternative):
                    deeper = (element, deeper)
                if deeper not in seen:
                    seen.add(deeper)
                    todo.append(deeper)
        return self._closed.setdefault(stack, frozenset(found))

    def _step(self, stacks: frozenset[Stack], char: str) -> frozenset[Stack]:
        code = ord(char)
        after: set[Stack] = set()
        for stack in stacks:
            if stack is not None and any(low <= code <= high for low, high in _chars_of(stack)):
                after |= self._close(stack[1])
        return frozenset(after)

    def accepts(self, text: str) -> bool:
        stacks = self._close(("root", None))
        for char in text:
            stacks = self._step(stacks, char)
        return None in stacks

    def random_text(self, rng: random.Random, length: int = 60) -> str:
        """Some text that the grammar accepts, of about ``length`` characters if it may be."""
        said = ""
        stacks = self._close(("root", None))
        while True:
            if None in stacks and (len(stacks) == 1 or len(said) >= length or rng.random() < 0.3):
                return said
            open_ = sorted((one for one in stacks if one is not None), key=repr)
            if len(said) >= length:
                open_ = [min(open_, key=self._cost)]
            chosen = rng.choice(open_)
            low, high = rng.choice(_chars_of(chosen))
            said += chr(rng.randint(low, min(high, low + 120) if rng.random() < 0.9 else high))
            stacks = self._step(stacks, said[-1])

    def _cost(self, stack: Stack) -> int:
        total = 0
        while stack is not None:
            total += self._costs[stack[0]] if isinstance(stack[0], str) else 1
            stack = stack[1]
        return total

    @cached_property
    def _costs(self) -> dict[str, int]:
        """Of each rule the length of its shortest text."""
        users: dict[str, list[tuple[str, int]]] = {}
        left: dict[tuple[str, int], list[int]] = {}
        ready: list[tuple[int, str]] = []
        for name, alternatives in self.rules.items():
            for index, alternative in enumerate(alternatives):
                names = [e for e in alternative if isinstance(e, str)]
                left[name, index] = [len(names), len(alternative) - len(names)]
                for one in names:
                    users.setdefault(one, []).append((name, index))
                if not names:
                    heapq.heappush(ready, (len(alternative), name))
        costs: dict[str, int] = {}
        while ready:
            cost, name = heapq.heappop(ready)
            if name in costs:
                continue
            costs[name] = cost
            for user in users.get(name, ()):
                left[user][0] -= 1
                left[user][1] += cost
                if left[user][0] == 0:
                    heapq.heappush(ready, (left[user][1], user[0]))
        return costs


def _chars_of(stack: tuple[Element, Stack]) -> Ranges:
    assert not isinstance(stack[0], str)
    return stack[0]


def _codes(body: str) -> list[int]:
    return [code for code, _ in _chars(body)]


def _chars(body: str) -> list[tuple[int, bool]]:
    """Code points, and whether each was written as it is (a hyphen then makes a range)."""
    out = []
    for found in _CHAR.finditer(body):
        number = found[1] or found[2] or found[3]
        if number:
            out.append((int(number, 16), False))
        elif found[4]:
            out.append((ord(_ESCAPES.get(found[4], found[4])), False))
        else:
            out.append((ord(found[5]), True))
    return out


def _ranges(body: str) -> Ranges:
    chars = _chars(body)
    is_other = chars[:1] == [(ord("^"), True)]
    out, at = [], int(is_other)
    while at < len(chars):
        low = chars[at][0]
        if at + 2 < len(chars) and chars[at + 1] == (ord("-"), True):
            out.append((low, chars[at + 2][0]))
            at += 3
        else:
            out.append((low, low))
            at += 1
    return _others(out) if is_other else tuple(out)


def _others(ranges: list[tuple[int, int]]) -> Ranges:
    bounds = [-1, *(end for one in sorted(ranges) for end in one), 0x110000]
    gaps = zip(bounds[::2], bounds[1::2], strict=True)
    return tuple((low + 1, high - 1) for low, high in gaps if low + 1 < high)
