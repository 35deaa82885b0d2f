"""Limits for untrusted templates: steps, time, and what they may build.

A chat template comes with a model file and is a program. Jinja's sandbox keeps it from reaching
objects that it should not see, but not from endless loops or from making strings of gigabytes.
Three things stop it here: every line of Python that runs for it is counted (a trace function on its
thread), every string and list that it builds is charged, and operations that could build something
huge in one go are sized before they run.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import length_hint
from types import FrameType
from typing import Any, Final

from jinja2.utils import Namespace

MAX_RENDER_S: Final = 5.0
MAX_LINES: Final = 20_000_000
MAX_CHARS_BUILT: Final = 128 << 20  # in all; a growing text that is copied per message counts often
MAX_OUTPUT_CHARS: Final = 16 << 20
MAX_NUMBER_BITS: Final = 4096
_LOOK_EVERY: Final = 512  # lines between two looks at the clock
_ITEM_CHARS: Final = 16  # what an item of a list costs, counted in characters
_NESTING: Final = (list, dict, tuple, Namespace)
_WIDTH: Final = re.compile(r"\d{4,}")
_PADDING: Final = frozenset({"ljust", "rjust", "center", "zfill", "expandtabs"})


class OverBudget(BaseException):
    """The template used up what it may use. Not an Exception, so that nothing in it can hide it."""


@dataclass(slots=True)
class Budget:
    """What one compilation or rendering may still use."""

    until: float
    """Monotonic seconds."""
    lines: int = MAX_LINES
    chars: int = MAX_CHARS_BUILT
    countdown: int = _LOOK_EVERY

    def charge(self, n_chars: int) -> None:
        """Count characters that are about to be built, or OverBudget."""
        self.chars -= n_chars
        if self.chars < 0:
            raise OverBudget(f"it builds more than {MAX_CHARS_BUILT} characters")

    def charge_value(self, value: object) -> None:
        """Count a value that was built."""
        if isinstance(value, str | bytes):
            self.charge(len(value))
        elif isinstance(value, list | tuple | dict | set):
            self.charge(_ITEM_CHARS * len(value))

    def charge_printed(self, value: object) -> None:
        """Count what printing a value will build: lists hold others many times over."""
        if type(value) not in _NESTING:  # what the caller sent is a tree, and is there already
            return
        stack: list[object] = [value]
        while stack:
            one = stack.pop()
            self.charge_value(one)
            if isinstance(one, dict):
                stack += [*one.keys(), *one.values()]
            elif isinstance(one, list | tuple):
                stack += one
            elif isinstance(one, Namespace):
                stack.append(object.__getattribute__(one, "_Namespace__attrs"))

    def trace(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
        """Count a line of Python; a trace function of ``sys.settrace``."""
        del frame, event, arg
        self.countdown -= 1
        if self.countdown <= 0:
            self._look()
        return self.trace

    def trace_calls(self, frame: FrameType, event: str, arg: object) -> None:
        """Count a call of Python; a trace function that looks at no lines."""
        del frame, event, arg
        self.countdown -= 1
        if self.countdown <= 0:
            self._look()

    def _look(self) -> None:
        self.countdown = _LOOK_EVERY
        self.lines -= _LOOK_EVERY
        if self.lines < 0:
            raise OverBudget(f"it takes more than {MAX_LINES} steps")
        if time.monotonic() > self.until:
            raise OverBudget(f"it takes longer than {MAX_RENDER_S:g} seconds")


@contextlib.contextmanager
def limited(*, calls_only: bool = False) -> Iterator[Budget]:
    """Everything inside, on this thread, is counted; what is too much raises OverBudget.

    ``calls_only`` is for compiling: the loops that run then are Jinja's, each round of them calls,
    and counting their lines takes several times as long as the work.
    """
    budget = Budget(time.monotonic() + MAX_RENDER_S)
    before = sys.gettrace()
    sys.settrace(budget.trace_calls if calls_only else budget.trace)
    try:
        yield budget
    finally:
        sys.settrace(before)


def size_of_binop(operator: str, left: Any, right: Any) -> int:
    """Characters that ``left operator right`` will build; OverBudget for what cannot be bounded."""
    match operator:
        case "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, str | bytes | list | tuple) and isinstance(times, int):
                    return _size(sequence) * max(0, times)
            return _bounded_bits(_bits(left) + _bits(right))
        case "+":
            return _size(left) + _size(right)
        case "**":
            return _bounded_bits(_bits(left) * (right if isinstance(right, int) else 1))
        case "%" if isinstance(left, str):
            return size_of_format(left, right)
        case _:
            return 0


def size_of_call(function: Any, args: tuple[Any, ...]) -> int:
    """Characters that a method of ``str``, ``list`` or ``dict`` may add to what it was given."""
    function = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    if isinstance(owner, list | dict):
        return _size_of_growth(name, args)
    if not isinstance(owner, str | bytes):
        return 0
    if name in _PADDING:
        width = max((arg for arg in args if isinstance(arg, int)), default=8)
        return len(owner) + width * (1 + str(owner).count("\t"))
    if name in ("format", "format_map"):
        return size_of_format(str(owner), args)
    if name == "replace" and len(args) >= 2 and isinstance(args[1], str):
        return size_of_replace(str(owner), args[0], args[1])
    if name == "join" and args and isinstance(args[0], list | tuple):
        return len(owner) * len(args[0]) + sum(map(_size, args[0]))
    return 0


def _size_of_growth(name: str, args: tuple[Any, ...]) -> int:
    """What a template's own list or dictionary grows by."""
    if name in ("append", "insert", "setdefault"):
        return _ITEM_CHARS
    if name in ("extend", "update"):
        return _ITEM_CHARS * sum(1 + length_hint(one) for one in args)
    return 0


def size_of_replace(text: str, old: object, new: str) -> int:
    """Characters that ``text.replace(old, new)`` will build."""
    found = text.count(old) if isinstance(old, str) else 0
    return len(text) + found * len(new)


def size_of_format(pattern: str, values: object) -> int:
    """Characters of a formatted text; widths of four and more digits are refused."""
    if _WIDTH.search(pattern) or "*" in pattern:
        raise OverBudget("it formats with a width of four digits or more")
    n_fields = pattern.count("%") + pattern.count("{")
    return len(pattern) + n_fields * 1000 + _size(values)


def _size(value: object) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    return _ITEM_CHARS * len(value) if isinstance(value, list | tuple | dict) else 0


def _bounded_bits(bits: int) -> int:
    if bits > MAX_NUMBER_BITS:
        raise OverBudget(f"it computes with numbers of more than {MAX_NUMBER_BITS} bits")
    return max(0, bits)


def _bits(value: object) -> int:
    return value.bit_length() if isinstance(value, int) else 0
