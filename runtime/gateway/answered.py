"""The requests that one worker has answered lately, as digests, by the ids of their answers."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Final

from runtime.gateway.keys import Key
from runtime.gateway.wire.diagnose import Parts

MAX_ANSWERED: Final = 4096
MAX_BYTES: Final = 16 << 20
"""Of all digests."""


class Answered:
    """Those that are kept: the latest, of all keys together. A key finds its own alone."""

    def __init__(self, max_answered: int = MAX_ANSWERED, max_bytes: int = MAX_BYTES) -> None:
        self._max = max_answered
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._kept: OrderedDict[tuple[str, str], Parts] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, key: Key, answer_id: str) -> Parts | None:
        """The request that was answered with this id."""
        return self._kept.get((key.name, answer_id))

    def put(self, key: Key, answer_id: str, parts: Parts) -> None:
        """Keep one, in place of the oldest."""
        self._drop((key.name, answer_id))
        self._kept[key.name, answer_id] = parts
        self._n_bytes += parts.n_bytes
        while len(self._kept) > self._max or (
            self._n_bytes > self._max_bytes and len(self._kept) > 1
        ):
            self._drop(next(iter(self._kept)))

    def set_tokens(self, key: Key, answer_id: str, n_tokens: int | None) -> None:
        """Its prompt was rendered: so many tokens."""
        parts = self._kept.get((key.name, answer_id))
        if parts is not None:
            self._kept[key.name, answer_id] = replace(parts, n_tokens=n_tokens)

    def _drop(self, place: tuple[str, str]) -> None:
        gone = self._kept.pop(place, None)
        self._n_bytes -= 0 if gone is None else gone.n_bytes
