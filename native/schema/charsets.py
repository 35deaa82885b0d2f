"""Sets of characters as sorted, disjoint ranges of code points. Surrogates are no characters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache

Ranges = tuple[tuple[int, int], ...]
"""Inclusive ranges, sorted, not adjacent."""

LAST = 0x10FFFF
ALL: Ranges = ((0, 0xD7FF), (0xE000, LAST))


def normal(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """``ranges`` sorted and joined, without surrogates."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return both(tuple(joined), ALL)


def both(a: Ranges, b: Ranges) -> Ranges:
    """The characters of ``a`` that are in ``b``."""
    out: list[tuple[int, int]] = []
    i = j = 0
    while i < len(a) and j < len(b):
        low, high = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if low <= high:
            out.append((low, high))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return tuple(out)


def without(a: Ranges, b: Ranges) -> Ranges:
    """The characters of ``a`` that are not in ``b``."""
    gaps: list[tuple[int, int]] = []
    at = 0
    for low, high in b:
        if at < low:
            gaps.append((at, low - 1))
        at = high + 1
    if at <= LAST:
        gaps.append((at, LAST))
    return both(a, tuple(gaps))


def has(ranges: Ranges, char: str) -> bool:
    code = ord(char)
    return any(low <= code <= high for low, high in ranges)


def of(chars: str) -> Ranges:
    """The characters of a text."""
    return normal((ord(char), ord(char)) for char in chars)


DIGIT: Ranges = of("0123456789")
WORD: Ranges = normal([(48, 57), (65, 90), (95, 95), (97, 122)])
_SPACE_OF_BOTH = "\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000"
SPACE: Ranges = normal([*of(_SPACE_OF_BOTH), (0x2000, 0x200A)])
DOT: Ranges = without(ALL, of("\n\r\u2028\u2029"))


def _where(runs: str) -> Ranges:
    """The characters that a regular expression of Python's finds in runs."""
    found: list[tuple[int, int]] = []
    for low, high in ALL:
        every = "".join(map(chr, range(low, high + 1)))
        found += [(low + m.start(), low + m.end() - 1) for m in re.finditer(runs, every)]
    return normal(found)


@cache
def negated(letter: str) -> Ranges:
    r"""``\D``, ``\W`` or ``\S``: what ECMA 262 and Python's ``re`` agree on.

    ECMA means ASCII digits and letters only, Python those of Unicode; a text of the characters that
    both exclude satisfies either.
    """
    if letter == "D":
        return without(ALL, _where(r"\d+"))
    if letter == "W":
        return without(ALL, _where(r"\w+"))
    spaces = (*SPACE, *of("\ufeff\x85\x1c\x1d\x1e\x1f"))
    return without(ALL, normal(spaces))


@cache
def category(name: str) -> Ranges | None:
    r"""The characters of a Unicode general category (``\p{Lu}``), or None: there is no such one."""
    found = normal(
        (code, code)
        for low, high in ALL
        for code in range(low, high + 1)
        if unicodedata.category(chr(code)).startswith(name)
    )
    return found if name and len(name) <= 2 and found else None
