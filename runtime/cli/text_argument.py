"""Texts of the command line and of standard input."""

from __future__ import annotations

import contextlib
import sys
from typing import Final

from runtime import errors
from runtime.settings import arguments

MAX_STDIN_CHARS: Final = 64 << 20


def text_argument(text: str) -> str:
    """A text from the command line; ``-`` is all of standard input.

    Raises InvalidRequest where it holds bytes that are not characters.
    """
    if text != "-":
        return given_text("the text of the command line", text)
    read = sys.stdin.read(MAX_STDIN_CHARS + 1)
    if len(read) > MAX_STDIN_CHARS:
        raise errors.InvalidRequest(f"standard input has more than {MAX_STDIN_CHARS} characters")
    return given_text("standard input", read)


def given_text(name: str, text: str) -> str:
    """A text as it was meant: UTF-8 is accepted whatever the locale's encoding is."""
    with contextlib.suppress(UnicodeError):
        return text.encode("ascii", "surrogateescape").decode("utf-8")
    return arguments.text(name, text)
