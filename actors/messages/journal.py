"""The reply of a running request, noted where it survives the death of its model.

Inflight makes one small memory file per request and sends the model its path below ``/proc``. The
engine notes the exact tokens of the prompt once, and each token that it accepts, before the caller
receives it: one system call of a microsecond each, and no message. When the model dies, its next
incarnation reads here where to continue. The memory file is gone with inflight, unless a model
still has it open; then callers ask again with what they have received.

file, u32 little-endian: the number of prompt tokens, those, then every accepted token. Its size
is the count of them, so nothing has to be written twice: a file that ends inside the prompt, or
inside a token, was cut there by the end of its writer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from cache import tokens as token_bytes

_WORD: Final = 4
_MAX_TOKENS: Final = 1 << 28  # more than any context; a number beyond it is no count


@dataclass(frozen=True, slots=True)
class Noted:
    """What a journal holds."""

    prompt: tuple[int, ...] = ()
    """Empty: the request had not started."""
    accepted: tuple[int, ...] = ()
    """Tokens of the reply, in order, with one that ends it and shows nothing (end of text)."""


class JournalKeeper:
    """Holds the memory file of one request; inflight's side."""

    def __init__(self) -> None:
        """Raises OSError where this process may open no more files."""
        self._fd = os.memfd_create("llama-actors-journal", os.MFD_CLOEXEC)
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"

    def n_accepted(self) -> int:
        """How many tokens of the reply are noted; cheap."""
        head = os.pread(self._fd, _WORD, 0)
        if len(head) < _WORD:
            return 0
        n_prompt = int.from_bytes(head, "little")
        return max(0, os.fstat(self._fd).st_size // _WORD - 1 - n_prompt)

    def read(self) -> Noted:
        return _parse(os.pread(self._fd, os.fstat(self._fd).st_size, 0))

    def close(self) -> None:
        os.close(self._fd)


class JournalWriter:
    """Appends to the memory file of one request; the engine's side."""

    def __init__(self, fd: int, noted: Noted, end: int) -> None:
        self._fd = fd
        self._end = end
        self._is_full = False
        self.noted = noted
        """What was there when it was opened."""

    @classmethod
    def open(cls, path: str) -> Self:
        """Open what inflight keeps; raises OSError when that is gone."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            noted = _parse(os.pread(fd, os.fstat(fd).st_size, 0))
        except BaseException:
            os.close(fd)
            raise
        n_words = 1 + len(noted.prompt) + len(noted.accepted) if noted.prompt else 0
        return cls(fd, noted, n_words * _WORD)

    def begin(self, prompt: Sequence[int], accepted: Sequence[int]) -> None:
        """Note the prompt's exact tokens, and those of a continued reply; unless they are noted."""
        if self._end:
            return
        self._append(token_bytes.pack([len(prompt), *prompt, *accepted]))

    def append(self, token: int) -> None:
        """Note one accepted token; it survives this process from here on."""
        self._append(token.to_bytes(_WORD, "little"))

    def _append(self, data: bytes) -> None:
        """No memory for it: the reply continues, and would be resumed from where the notes end."""
        if self._is_full:
            return
        try:
            written = os.pwrite(self._fd, data, self._end)
        except OSError:
            written = 0
        self._end += written
        self._is_full = written < len(data)

    def close(self) -> None:
        os.close(self._fd)


def _parse(data: bytes) -> Noted:
    words = token_bytes.unpack(data[: len(data) // _WORD * _WORD])
    if not words or not 0 < words[0] <= _MAX_TOKENS or len(words) < 1 + words[0]:
        return Noted()
    n_prompt = words[0]
    return Noted(tuple(words[1 : 1 + n_prompt]), tuple(words[1 + n_prompt :]))
