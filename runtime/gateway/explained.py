"""The answers that one worker has given lately, explained: found by the ids of answers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from runtime.client.results import Completion
from runtime.gateway.keys import Key
from runtime.gateway.wire.bodies import encode
from runtime.gateway.wire.own import explanation
from runtime.gateway.wire.wanted import Head, Wanted

MAX_EXPLAINED: Final = 1024
MAX_BYTES: Final = 4 << 20
"""Of all explanations, as JSON."""


@dataclass(frozen=True, slots=True)
class _Kept:
    request: str
    body: bytes


class Explained:
    """Those that are kept: the latest, of all keys together. A key finds its own alone."""

    def __init__(self, max_explained: int = MAX_EXPLAINED, max_bytes: int = MAX_BYTES) -> None:
        self._max = max_explained
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        """By the name of a key and the id of an answer, without the prefix that an API has."""
        self._answers: dict[tuple[str, str], str] = {}
        """Ids of answers by those of their requests."""

    def __len__(self) -> int:
        return len(self._kept)

    def note(
        self, key: Key, request: str, head: Head, wanted: Wanted, done: Mapping[int, Completion]
    ) -> None:
        """Replies to a request have ended. ``request``: its id; empty: it has none."""
        if not (head.explains and done):
            return
        self._drop((key.name, head.id))
        found = encode(explanation(request, head, wanted, done))
        self._kept[key.name, head.id] = _Kept(request, found)
        self._n_bytes += len(found)
        if request:
            self._answers[key.name, request] = head.id
        while len(self._kept) > self._max or (
            self._n_bytes > self._max_bytes and len(self._kept) > 1
        ):
            self._drop(next(iter(self._kept)))

    def find(self, key: Key, name: str) -> bytes | None:
        """The explanation of a request, as JSON: by its id, or its answer's with any prefix."""
        answer = self._answers.get((key.name, name), name)
        bare = answer.rpartition("-")[2].rpartition("_")[2]
        found = self._kept.get((key.name, bare))
        return None if found is None else found.body

    def find_any(self, name: str) -> bytes | None:
        """The same whichever key it was for: for administrators."""
        for key, _ in reversed(self._kept):
            found = self.find(Key(key), name)
            if found is not None:
                return found
        return None

    def _drop(self, place: tuple[str, str]) -> None:
        gone = self._kept.pop(place, None)
        if gone is not None:
            self._n_bytes -= len(gone.body)
            self._answers.pop((place[0], gone.request), None)
