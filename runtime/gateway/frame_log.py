"""The last frames of a response, each with its number, from which readers are shown it. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

LOG_BYTES: Final = 4 << 20
"""Of the frames of one response; the oldest go first."""


class FrameLog:
    """The last frames of one response, each with its number from 0."""

    def __init__(self, max_bytes: int = LOG_BYTES) -> None:
        self._max_bytes = max_bytes
        self._frames: deque[bytes] = deque()
        self.first = 0
        """Number of the oldest that is kept."""
        self.n_bytes = 0

    @property
    def next(self) -> int:
        """Number of the next one that comes."""
        return self.first + len(self._frames)

    def add(self, frames: Sequence[bytes]) -> None:
        """Append; the last one always stays, however big."""
        self._frames.extend(frames)
        self.n_bytes += sum(map(len, frames))
        while self.n_bytes > self._max_bytes and len(self._frames) > 1:
            self.n_bytes -= len(self._frames.popleft())
            self.first += 1

    def since(self, number: int) -> bytes:
        """The frame with this number, and all after it."""
        start = max(0, number - self.first)
        return b"".join(self._frames[at] for at in range(start, len(self._frames)))
