"""Imported first: are our packages ours, or is another project's module found in their place?

``shadowing`` names modules of other projects that would be imported in place of ours.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import signal
import sys
from typing import Final

PACKAGES: Final = ("actors", "cache", "native", "supervision")
DEPENDENCIES: Final = (
    "blake3",
    "cffi",
    "click",
    "jinja2",
    "msgpack",
    "msgspec",
    "rich",
    "thespian",
)
USAGE: Final = 2
INTERRUPTED: Final = 130


def is_starting() -> bool:
    """Whether the interpreter is about to run ``-m runtime``, and imports the package for that."""
    words = getattr(sys, "orig_argv", [])
    pairs = itertools.pairwise(words)
    asked = any(flag[:1] == "-" and flag[-1:] == "m" and name == "runtime" for flag, name in pairs)
    return asked and sys.argv[:1] == ["-m"]


def end_quietly() -> bool:
    """Until a command runs, Ctrl-C ends the process without a word, unless it is ignored."""
    catches = signal.getsignal(signal.SIGINT) in (signal.default_int_handler, quit_quietly)
    if catches:
        signal.signal(signal.SIGINT, quit_quietly)
    return catches


def shadowing() -> str | None:
    """What is imported in place of a package of ours, and what to do; None where nothing is."""
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for name in PACKAGES:
        found = _found(name)
        if found is not None and _place(found) != os.path.realpath(home):
            return _sentence(found, name)
    first = os.path.realpath(sys.path[0] or os.curdir) if sys.path else home
    if first != os.path.realpath(home):
        for name in DEPENDENCIES:
            found = _found(name)
            if found is not None and _place(found) == first:
                return _sentence(found, name)
    return None


def _found(name: str) -> str | None:
    """The file that an import of this name runs."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return None if spec is None else spec.origin


def _place(origin: str) -> str:
    """The folder where a package or module was found; it may itself be a link to elsewhere."""
    where = os.path.abspath(origin)
    if os.path.basename(where) == "__init__.py":
        where = os.path.dirname(where)
    return os.path.realpath(os.path.dirname(where))


def _sentence(found: str, name: str) -> str:
    return (
        f"{found} is imported in place of the package {name!r} that llama-actors needs; "
        "rename it, start from another folder, or use `python -P -m runtime`"
    )


def quit_quietly(_number: int, _frame: object) -> None:
    os._exit(INTERRUPTED)


if is_starting():
    end_quietly()
_found_instead = shadowing()
if _found_instead is not None:
    if is_starting():  # a person reads one line, and no traceback
        sys.stderr.write(f"error: {_found_instead}\n")
        raise SystemExit(USAGE)
    raise ImportError(_found_instead)
