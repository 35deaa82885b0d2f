"""Standard streams of a program: usable from the start, whatever the parent left of them.

A process may be started with descriptors 0 to 2 closed, with readers that have gone, or with an
output encoding that lacks characters. Then notes for people are dropped, characters are escaped,
and nothing else that is opened gets one of the three numbers.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import io
import os
import sys
from typing import Any, Final

ESCAPE: Final = "llama-actors.escape"
"""Name of the error handler that writes what an encoding lacks as JSON does: ``\\u00fc``."""


def prepare() -> None:
    """First in a program: open what is closed, and let no note for people raise."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number: fd
    codecs.register_error(ESCAPE, _escape)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _recorded(sys.stdout)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _forgiving(getattr(sys.stderr, "encoding", None) or "utf-8")


def output_error() -> OSError | None:
    """Why something that was printed could not be written, if so."""
    return _State.output_error


def drop_output() -> None:
    """Drop what is still to be printed, so that it causes no more errors."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def say(text: str) -> None:
    """Write a line to standard error, if it can be written."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


def above_standard(fd: int) -> int:
    """The same open file with a number above 2, where a program's standard streams are closed."""
    if fd > 2:
        return fd
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return moved


class _State:
    output_error: OSError | None = None


class _Recorded(io.FileIO):
    """Standard output; an error is kept, since the printing code may have dropped it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            _State.output_error = error
            raise


def _recorded(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Recorded(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors if _takes_everything(stream) else ESCAPE,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Forgiving(io.FileIO):
    """Drops what cannot be written: the reader has gone, or the disk is full."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            return super().write(data) or 0
        return len(data)


def _forgiving(encoding: str) -> io.TextIOWrapper:
    raw = _Forgiving(2, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=True,
        write_through=True,
    )


def _takes_everything(stream: io.TextIOWrapper) -> bool:
    """UTF-8 that also writes back file names as they were read."""
    return stream.encoding.lower().replace("-", "") == "utf8" and stream.errors != "strict"


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    escaped = (f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
    return "".join(escaped), error.end
