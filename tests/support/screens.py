"""What a program shows at a terminal."""

from __future__ import annotations

import os
import select
import time


class Screen:
    """The output of a terminal, read piece by piece."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = ""

    def read_until(self, words: str, within_s: float = 30.0) -> None:
        assert self.shows(words, within_s), self._rest

    def shows(self, words: str, within_s: float) -> bool:
        """Read until these words, drop what is before them; False: they did not come in time."""
        deadline = time.monotonic() + within_s
        while words not in self._rest:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._fd], [], [], left)[0]:
                return False
            self._rest += os.read(self._fd, 4096).decode("utf-8", "replace")
        self._rest = self._rest.partition(words)[2]
        return True
