r"""Regular expressions of JSON schemas: the regular part of ECMA 262 and of Python's ``re``.

Read: characters, classes, ``.``, ``\d \D \w \W \s \S``, ``\p{Lu}``, escapes, groups, alternation,
quantifiers, ``^`` and ``$``. Not regular, or with a meaning that differs between dialects, and
refused by name and position: look-around (but for look-aheads right behind ``^``), back-references,
word boundaries, flags.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from native.schema import charsets
from native.schema.charsets import Ranges

MAX_REPEAT = 1000
MAX_STATES = 20_000
MAX_NESTING = 50
_PLAIN_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0"}
_CLASSES = {"d": charsets.DIGIT, "w": charsets.WORD, "s": charsets.SPACE}
_QUANTIFIER = re.compile(r"\{(\d+)(,(\d*))?\}")
_NAMED_GROUP = re.compile(r"\?P?<[A-Za-z_]\w*>")
_HEX = {"x": re.compile(r"[0-9A-Fa-f]{2}"), "u": re.compile(r"[0-9A-Fa-f]{4}")}
_LONG_HEX = re.compile(r"\{([0-9A-Fa-f]{1,6})\}")
_PROPERTY = re.compile(r"\{(?:gc=|General_Category=)?([A-Za-z]+)\}")


class BadPattern(Exception):
    """Why a pattern is refused, with its position."""


@dataclass(slots=True)
class Nfa:
    """States are numbers. ``jumps`` cost nothing: always, at the start ``^`` or the end ``$``."""

    steps: list[list[tuple[Ranges, int]]]
    jumps: list[list[tuple[str, int]]]
    start: int = 0
    final: int = 0

    def new(self) -> int:
        if len(self.steps) >= MAX_STATES:
            raise BadPattern(f"it is too large: its repetitions make more than {MAX_STATES} states")
        self.steps.append([])
        self.jumps.append([])
        return len(self.steps) - 1


Piece = tuple[int, int]
"""The first and the last state of a part."""


def parse(pattern: str, *, wide: bool = False) -> Nfa:
    """The automaton of all texts in which ``pattern`` is found, anywhere if it has no anchors.

    Where dialects differ, those of all of them, or with ``wide`` those of any.
    """
    nfa = Nfa([], [])
    start, final = nfa.new(), nfa.new()
    nfa.steps[start].append((charsets.ALL, start))
    nfa.steps[final].append((charsets.ALL, final))
    reader = _Reader(pattern, nfa, wide=wide)
    first, last = reader.alternatives(0)
    if reader.at < len(pattern):
        raise reader.bad("a closing bracket that opens nowhere")
    nfa.jumps[start].append(("", first))
    nfa.jumps[last].append(("", final))
    nfa.start, nfa.final = start, final
    return nfa


def leading_conditions(pattern: str) -> tuple[list[tuple[bool, str]], str]:
    """The look-aheads right behind ``^``, each with whether it is wanted, and the rest.

    ``^(?=.*[A-Z])(?!x).{8,}$``: these are conditions on the whole text, so they are patterns of
    their own. Others are no part of a regular expression.
    """
    found: list[tuple[bool, str]] = []
    at = 1
    while pattern.startswith("^") and pattern.startswith(("(?=", "(?!"), at):
        end = _end_of_group(pattern, at)
        if end is None:
            return [], pattern
        found.append((pattern[at + 2] == "=", pattern[at + 3 : end]))
        at = end + 1
    rest = pattern[at:]
    if not found or _end_of_group(f"({rest}", 0, stop="|") is not None:
        return [], pattern
    return found, f"^{rest}"


def _end_of_group(pattern: str, at: int, stop: str = ")") -> int | None:
    """Where ``stop`` stands in the group that opens at ``at``, outside of its inner groups."""
    depth, in_class, escaped = 0, False, False
    for index in range(at, len(pattern)):
        char = pattern[index]
        if escaped or in_class or char == "\\":
            in_class = in_class and (escaped or char != "]")
            escaped = char == "\\" and not escaped
            continue
        in_class = char == "["
        depth -= char == ")"
        if char == stop and depth == (0 if stop == ")" else 1):
            return index
        depth += char == "("
    return None


class _Reader:
    def __init__(self, pattern: str, nfa: Nfa, *, wide: bool) -> None:
        self.pattern = pattern
        self.nfa = nfa
        self.at = 0
        self.wide = wide

    def bad(self, why: str, at: int | None = None) -> BadPattern:
        return BadPattern(f"{why} at position {self.at if at is None else at} of the pattern")

    def peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def alternatives(self, depth: int) -> Piece:
        if depth > MAX_NESTING:
            raise self.bad(f"groups nested more than {MAX_NESTING} deep")
        first, last = self.nfa.new(), self.nfa.new()
        while True:
            begin, end = self.sequence(depth)
            self.nfa.jumps[first].append(("", begin))
            self.nfa.jumps[end].append(("", last))
            if self.peek() != "|":
                return first, last
            self.at += 1

    def sequence(self, depth: int) -> Piece:
        first = last = self.nfa.new()
        while self.peek() not in ("", "|", ")"):
            begin, end = self.repeated(depth)
            self.nfa.jumps[last].append(("", begin))
            last = end
        return first, last

    def repeated(self, depth: int) -> Piece:
        begin_at = self.at
        piece = self.atom(depth)
        wanted = self.quantifier()
        if wanted is None:
            return piece
        least, most = wanted
        if self.peek() == "?":
            self.at += 1  # lazy: the same texts
        if self.peek() == "+":
            raise self.bad("a possessive quantifier")
        if self.peek() in ("*", "?") or self.quantifier() is not None:
            raise self.bad("a quantifier of a quantifier")
        after = self.at
        copies = [piece]

        def copy() -> Piece:
            if copies:
                return copies.pop()
            self.at = begin_at
            return self.atom(depth)

        out = self.repeat(copy, least, most)
        self.at = after
        return out

    def repeat(self, copy: Callable[[], Piece], least: int, most: int | None) -> Piece:
        jumps = self.nfa.jumps
        first = last = self.nfa.new()
        for _ in range(least):
            begin, end = copy()
            jumps[last].append(("", begin))
            last = end
        out = self.nfa.new()
        jumps[last].append(("", out))
        if most is None:
            begin, end = copy()
            jumps[last].append(("", begin))
            jumps[end].append(("", begin))
            jumps[end].append(("", out))
            return first, out
        for _ in range(most - least):
            begin, end = copy()
            jumps[last].append(("", begin))
            jumps[end].append(("", out))
            last = end
        return first, out

    def quantifier(self) -> tuple[int, int | None] | None:
        char = self.peek()
        if char and char in "*+?":
            self.at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        found = _QUANTIFIER.match(self.pattern, self.at)
        if found is None:
            if self.pattern.startswith("{,", self.at):
                raise self.bad("a quantifier that dialects read differently (write {0,n})")
            return None
        least = int(found[1][:9])
        most = least if found[2] is None else int(found[3][:9]) if found[3] else None
        if most is not None and most < least:
            raise self.bad("a quantifier {m,n} whose n is less than its m")
        if max(least, most or 0) > MAX_REPEAT:
            raise self.bad(f"a quantifier of more than {MAX_REPEAT}")
        self.at = found.end()
        return least, most

    def atom(self, depth: int) -> Piece:
        char = self.peek()
        if char == "(":
            return self.group(depth)
        if char in ("^", "$"):
            self.at += 1
            first, last = self.nfa.new(), self.nfa.new()
            self.nfa.jumps[first].append((char, last))
            if char == "$" and self.wide:  # Python's may stand before a line's end
                before = self.nfa.new()
                self.nfa.steps[first].append((charsets.of("\n"), before))
                self.nfa.jumps[before].append((char, last))
            return first, last
        if char in ("*", "+", "?") or _QUANTIFIER.match(self.pattern, self.at):
            raise self.bad("a quantifier of nothing")
        return self.one_of(self.char_set())

    def one_of(self, ranges: Ranges) -> Piece:
        first, last = self.nfa.new(), self.nfa.new()
        self.nfa.steps[first].append((ranges, last))
        return first, last

    def group(self, depth: int) -> Piece:
        opened = self.at
        self.at += 1
        named = _NAMED_GROUP.match(self.pattern, self.at)
        if named:
            self.at = named.end()
        elif self.pattern.startswith("?:", self.at):
            self.at += 2
        elif self.peek() == "?":
            mark = self.pattern[self.at : self.at + 3]
            around = mark[1:2] in ("=", "!") or mark[1:] in ("<=", "<!")
            raise self.bad("a look-around" if around else f"a flag or group ({mark}", opened)
        inner = self.alternatives(depth + 1)
        if self.peek() != ")":
            raise self.bad("a group that is not closed", opened)
        self.at += 1
        return inner

    def char_set(self) -> Ranges:
        char = self.peek()
        if char == "[":
            return self.bracket()
        if char == "\\":
            return self.escape(in_brackets=False)
        self.at += 1
        if char == ".":
            return charsets.without(charsets.ALL, charsets.of("\n")) if self.wide else charsets.DOT
        return charsets.of(char)

    def bracket(self) -> Ranges:
        opened = self.at
        self.at += 1
        inverted = self.peek() == "^"
        self.at += inverted
        if self.peek() == "]" or self.pattern.startswith("[:", self.at):
            raise self.bad("a class that dialects read differently (escape the bracket)")
        found: list[tuple[int, int]] = []
        self.wide ^= inverted  # what is excluded is read the other way
        while self.peek() != "]":
            if not self.peek():
                raise self.bad("a class that is not closed", opened)
            found += self.bracket_part()
        self.at += 1
        self.wide ^= inverted
        ranges = charsets.normal(found)
        return charsets.without(charsets.ALL, ranges) if inverted else ranges

    def bracket_part(self) -> list[tuple[int, int]]:
        low = self.bracket_char()
        if self.peek() != "-" or self.pattern[self.at + 1 : self.at + 2] in ("]", ""):
            return list(low)
        self.at += 1
        high = self.bracket_char()
        if any(len(end) != 1 or end[0][0] != end[0][1] for end in (low, high)):
            raise self.bad("a range between classes (escape the hyphen)")
        if high[0][0] < low[0][0]:
            raise self.bad("a range that counts down")
        return [(low[0][0], high[0][0])]

    def bracket_char(self) -> Ranges:
        if self.peek() == "\\":
            return self.escape(in_brackets=True)
        self.at += 1
        return charsets.of(self.pattern[self.at - 1])

    def escape(self, *, in_brackets: bool) -> Ranges:
        start = self.at
        char = self.pattern[start + 1 : start + 2]
        self.at += 2
        if char in _CLASSES:
            if not self.wide:
                return _CLASSES[char]
            return charsets.without(charsets.ALL, charsets.negated(char.upper()))
        if char and char in "DWS":
            plain = _CLASSES[char.lower()]
            return charsets.without(charsets.ALL, plain) if self.wide else charsets.negated(char)
        if char == "0" and self.peek().isdigit():
            raise self.bad("an octal escape", start)
        if char in _PLAIN_ESCAPES:
            return charsets.of(_PLAIN_ESCAPES[char])
        if char == "b" and in_brackets:
            return charsets.of("\b")
        if char and char in "xu":
            return self.numbered(char, start)
        if char and char in "pP":
            return self.unicode_class(char, start)
        if not char or char.isalnum():
            raise self.bad(_escape_name(char), start)
        return charsets.of(char)

    def numbered(self, kind: str, start: int) -> Ranges:
        long = _LONG_HEX.match(self.pattern, self.at) if kind == "u" else None
        found = long or _HEX[kind].match(self.pattern, self.at)
        if found is None:
            raise self.bad("half an escape", start)
        self.at = found.end()
        code = int(found[1] if long else found[0], 16)
        low = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})").match(self.pattern, self.at)
        if 0xD800 <= code < 0xDC00 and low:
            self.at = low.end()
            code = 0x10000 + ((code - 0xD800) << 10) + int(low[1], 16) - 0xDC00
        if code > charsets.LAST or 0xD800 <= code < 0xE000:
            raise self.bad("an escape that is no character", start)
        return ((code, code),)

    def unicode_class(self, kind: str, start: int) -> Ranges:
        found = _PROPERTY.match(self.pattern, self.at)
        ranges = charsets.category(found[1]) if found else None
        if found is None or ranges is None:
            raise self.bad("a Unicode property other than a general category like L or Lu", start)
        self.at = found.end()
        return ranges if kind == "p" else charsets.without(charsets.ALL, ranges)


def _escape_name(char: str) -> str:
    if char.isdigit() or char == "k":
        return f"a back-reference \\{char}"
    if char in ("b", "B"):
        return f"a word boundary \\{char}"
    if char in ("A", "Z", "z"):
        return f"an anchor \\{char} (write ^ or $)"
    return f"an unknown escape \\{char}" if char else "half an escape"
