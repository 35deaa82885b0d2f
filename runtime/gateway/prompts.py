"""The prompts of the last requests of one worker, in its memory: only with ``gateway.prompts``.

They are shown to administrators, and never written anywhere.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from runtime.gateway.wire.wanted import Wanted

MAX_PROMPTS: Final = 64
MAX_BYTES: Final = 16 << 20
"""Of their bodies."""
MAX_EARLIER: Final = 16


@dataclass(frozen=True, slots=True)
class KeptPrompt:
    """What one request has asked."""

    request: str
    answer: str
    key: str
    model: str
    asked: Wanted
    """As it came."""
    wanted: Wanted
    """After the canonical rules."""
    rules: tuple[str, ...]
    """Canonical rules of its gateway and its key."""
    n_bytes: int


class Prompts:
    """Of one worker; the latest."""

    def __init__(self, max_prompts: int = MAX_PROMPTS, max_bytes: int = MAX_BYTES) -> None:
        self._max, self._max_bytes = max_prompts, max_bytes
        self._kept: OrderedDict[str, KeptPrompt] = OrderedDict()
        self._n_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def note(self, one: KeptPrompt) -> None:
        """A request has come."""
        self._drop(one.request)
        if one.n_bytes > self._max_bytes:
            return
        self._kept[one.request] = one
        self._n_bytes += one.n_bytes
        while len(self._kept) > self._max or self._n_bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, request: str) -> None:
        gone = self._kept.pop(request, None)
        self._n_bytes -= 0 if gone is None else gone.n_bytes

    def find(self, name: str) -> KeptPrompt | None:
        """That of a request, by its id."""
        return self._kept.get(name)

    def earlier(self, one: KeptPrompt) -> list[KeptPrompt]:
        """The last ones of the same key and model that came before it, the latest first."""
        found: list[KeptPrompt] = []
        is_before = False
        for other in reversed(self._kept.values()):
            if is_before and (other.key, other.model) == (one.key, one.model):
                found.append(other)
            is_before = is_before or other is one
        return found[:MAX_EARLIER]
