"""Which queued requests have their rows brought into RAM now. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

REQUESTS_AHEAD: Final = 8
"""From the front of the queue. Those behind them wait long enough to get their turn."""
TEXT_BYTES: Final = 32 << 10
"""Of prompts that are made tokens between two steps, a few milliseconds. A longer text is not made
tokens before its turn, as without prefetching."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request in the queue."""

    text_bytes: int
    """Of its prompt, where it is no tokens yet; else 0."""
    is_asked: bool
    """Its rows were asked for already."""
    is_held: bool
    """Its prompt depends on an answer that is awaited."""


def next_to_prefetch(queue: Sequence[Candidate]) -> list[int]:
    """Indexes of the requests whose rows are asked for before the next step, oldest first."""
    chosen: list[int] = []
    room = TEXT_BYTES
    for index, one in enumerate(queue[:REQUESTS_AHEAD]):
        if one.is_asked or one.is_held or one.text_bytes > room:
            continue
        chosen.append(index)
        room -= one.text_bytes
    return chosen
