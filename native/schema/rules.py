"""The rules of a grammar (GBNF), what JSON always needs among them, and their text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from native.schema import charsets
from native.schema.charsets import Ranges
from native.schema.refused import Refused

MAX_PARTS = 1_000_000
BLOCK = 500
"""Repetitions that are written out at once; the parser takes at most 2,000."""
UNREACHED = 10_000_000
"""Characters or items; no reply has as many, so a limit above is no limit."""


@dataclass(frozen=True, slots=True)
class Ref:
    """A rule, and how often: ``suffix`` is ``*``, ``+``, ``{m,n}`` or nothing."""

    name: str
    suffix: str = ""


Part = str | Ref
Sequence_ = tuple[Part, ...]
"""Texts of the grammar and rules, one after the other."""

_HEX = "[0-9a-fA-F]"
_UNICODE = (
    f'"u" ([0-9abcefABCEF] {_HEX}{{3}} | [dD] [0-7] {_HEX}{{2}} '
    f'| [dD] [89abAB] {_HEX}{{2}} "\\\\u" [dD] [c-fC-F] {_HEX}{{2}})'
)
_RAW: Ranges = charsets.without(
    charsets.ALL, charsets.normal([(0, 0x1F), (34, 34), (92, 92), (127, 127)])
)
_SHORT = {"\b": "b", "\t": "t", "\n": "n", "\f": "f", "\r": "r", '"': '"', "\\": "\\"}


def literal(text: str) -> str:
    """A grammar's literal of exactly this text."""
    for char, escaped in (
        ("\\", "\\\\"),
        ('"', '\\"'),
        ("\n", "\\n"),
        ("\r", "\\r"),
        ("\t", "\\t"),
    ):
        text = text.replace(char, escaped)
    return f'"{text}"'


def _class_char(code: int) -> str:
    char = chr(code)
    if char.isascii() and char.isalnum():
        return char
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"
    )


def char_class(ranges: Ranges) -> str:
    """A grammar's class of these characters."""
    parts = (_class_char(a) if a == b else f"{_class_char(a)}-{_class_char(b)}" for a, b in ranges)
    return f"[{''.join(parts)}]"


ALWAYS: dict[str, list[Sequence_]] = {
    "space": [(), ('" "',), ('"\\n"{1,2} [ \\t]{0,20}',)],
    "char": [(char_class(_RAW),), (f'"\\\\" (["\\\\bfnrt] | {_UNICODE})',)],
    "string": [('"\\""', Ref("char", "*"), '"\\""')],
    "integer": [('"-"? ([0] | [1-9] [0-9]{0,15})',)],
    "number": [(Ref("integer"), '("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?')],
    "boolean": [('"true"',), ('"false"',)],
    "null": [('"null"',)],
    "pair": [(Ref("string"), '":"', Ref("space"), Ref("value"))],
    "pair-more": [('","', Ref("space"), Ref("pair"))],
    "object": [
        ('"{"', Ref("space"), '"}"'),
        ('"{"', Ref("space"), Ref("pair"), Ref("pair-more", "*"), Ref("space"), '"}"'),
    ],
    "value-more": [('","', Ref("space"), Ref("value"))],
    "array": [
        ('"["', Ref("space"), '"]"'),
        ('"["', Ref("space"), Ref("value"), Ref("value-more", "*"), Ref("space"), '"]"'),
    ],
    "value": [(Ref(n),) for n in ("object", "array", "string", "number", "boolean", "null")],
}
"""Rules of JSON itself. Blanks are few, so that no model spends its reply on them."""


class Rules:
    """The rules made so far; those of JSON itself are always among them."""

    def __init__(self) -> None:
        self._rules: dict[str, list[Sequence_]] = dict(ALWAYS)
        self._same: dict[tuple[object, ...], str] = {}
        self._chars: dict[Ranges, Ref] = {charsets.ALL: Ref("char")}
        self._n_parts = 0

    def new(self, kind: str) -> str:
        """The name of a rule that is still to be added."""
        name = f"{kind}-{len(self._rules)}"
        self._rules[name] = []
        return name

    def add(self, name: str, sequences: Iterable[Sequence_]) -> None:
        self._rules[name] = list(sequences)
        self._n_parts += sum(len(sequence) + 1 for sequence in self._rules[name])
        if self._n_parts > MAX_PARTS:
            raise Refused("#", "makes too large a grammar; use lower limits or fewer alternatives")

    def shared(self, kind: str, sequences: Sequence[Sequence_]) -> Ref:
        """A rule of these sequences; equal ones share one rule."""
        key = (kind, *sequences)
        if key not in self._same:
            self._same[key] = self.new(kind)
            self.add(self._same[key], sequences)
        return Ref(self._same[key])

    # --- repetition ------------------------------------------------------------------------------

    def repeated(self, item: str, least: int, most: int | None) -> Sequence_:
        """``least`` to ``most`` (None: any number) of a rule that is not empty."""
        if most is None or most >= UNREACHED:
            return (*self._exactly(item, least), Ref(item, "*"))
        return (*self._exactly(item, least), *self._up_to(item, most - least))

    def _exactly(self, item: str, n: int) -> Sequence_:
        if n <= BLOCK:
            return (Ref(item, f"{{{n}}}"),) if n else ()
        blocks, rest = divmod(n, BLOCK)
        block = self.shared("block", [(Ref(item, f"{{{BLOCK}}}"),)])
        return (*self._exactly(block.name, blocks), *self._exactly(item, rest))

    def _up_to(self, item: str, n: int) -> Sequence_:
        if n <= BLOCK:
            return (Ref(item, f"{{0,{n}}}"),) if n else ()
        blocks, rest = divmod(n, BLOCK)
        block = self.shared("block", [(Ref(item, f"{{{BLOCK}}}"),)]).name
        fewer = (*self._up_to(block, blocks - 1), *self._up_to(item, BLOCK - 1))
        full = (*self._exactly(block, blocks), *self._up_to(item, rest))
        return (self.shared("upto", [fewer, full]),)

    # --- characters and texts --------------------------------------------------------------------

    def chars(self, ranges: Ranges) -> Ref:
        """One character of a JSON string that is in ``ranges``, as it may be written there."""
        known = self._chars.get(ranges)
        if known is None:
            known = self._chars[ranges] = self._new_chars(ranges)
        return known

    def _new_chars(self, ranges: Ranges) -> Ref:
        raw = charsets.both(ranges, charsets.normal([*_RAW, (127, 127)]))
        found: list[Sequence_] = [(char_class(raw),)] if raw else []
        escaped = [
            chr(code)
            for low, high in charsets.without(ranges, raw)
            for code in range(low, high + 1)
        ]
        short = "".join(_SHORT[char] for char in escaped if char in _SHORT)
        if short:
            found.append((literal("\\"), char_class(charsets.of(short))))
        for high in (0, 1):
            digits = [
                f"{ord(c) & 15:x}" for c in escaped if c not in _SHORT and ord(c) >> 4 == high
            ]
            if digits:
                found.append((literal(f"\\u00{high}"), char_class(charsets.of("".join(digits)))))
        return self.shared("chars", found)

    def texts(self, texts: Iterable[str]) -> Sequence_:
        """One of ``texts``; parts that begin alike are one part, so that no text is read twice."""
        unique = sorted(set(texts))
        if len(unique) == 1:
            return (literal(unique[0]),) if unique[0] else ()
        first, last = unique[0], unique[-1]
        n = 0
        while n < min(len(first), len(last)) and first[n] == last[n]:
            n += 1
        by_char: dict[str, list[str]] = {}
        for text in unique:
            by_char.setdefault(text[n : n + 1], []).append(text[n:])
        sequences = [self.texts(group) for group in by_char.values()]
        branch = self.shared("text", sequences)
        return (literal(first[:n]), branch) if n else (branch,)

    # --- the whole -------------------------------------------------------------------------------

    def productive(self) -> set[str]:
        """Rules that some finite text obeys."""
        users: dict[str, list[tuple[str, int]]] = {}
        missing: dict[tuple[str, int], int] = {}
        found: list[str] = []
        for name, sequences in self._rules.items():
            for index, sequence in enumerate(sequences):
                refs = {part.name for part in sequence if isinstance(part, Ref)}
                missing[name, index] = len(refs)
                if not refs:
                    found.append(name)
                for ref in refs:
                    users.setdefault(ref, []).append((name, index))
        done: set[str] = set()
        while found:
            name = found.pop()
            if name in done:
                continue
            done.add(name)
            for user in users.get(name, ()):
                missing[user] -= 1
                if missing[user] == 0:
                    found.append(user[0])
        return done

    def text(self, root: str, alive: set[str]) -> str:
        """The grammar of ``root``, without what no finite text obeys."""
        lines = [f"root ::= {root}"]
        todo, seen = [root], {root}
        while todo:
            name = todo.pop()
            shown = []
            for sequence in self._rules[name]:
                refs = [part.name for part in sequence if isinstance(part, Ref)]
                if not all(ref in alive for ref in refs):
                    continue
                shown.append(" ".join(_shown(part) for part in sequence) or '""')
                fresh = [ref for ref in dict.fromkeys(refs) if ref not in seen]
                seen.update(fresh)
                todo += fresh
            lines.append(f"{name} ::= {' | '.join(dict.fromkeys(shown))}")
        return "\n".join(lines) + "\n"


def _shown(part: Part) -> str:
    return part if isinstance(part, str) else part.name + part.suffix
