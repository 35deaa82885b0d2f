"""Who has the cells and sequences of a context, and who steps aside, as functions of values.

A request gets cells for what is known of it and a block more, and grows by blocks while it
generates. When cells run out, the least urgent request steps aside: it leaves its sequence, waits
in the queue at the place that its class and its arrival give it, and continues later.

Requests are ordered by *rank*: interactive before background, then by arrival. From that follows
that every request ends. The first of all is never put aside, and alone it has the whole context; so
it ends, and then another one is the first. No clock, no thread, no native code: ``engine.room`` has
those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from cache.keys import BLOCK_TOKENS

GROWTH_TOKENS: Final = BLOCK_TOKENS
"""Cells that a request gets ahead of its tokens. A bookkeeping of all sequences per block is
nothing; a block per request is the most that is reserved and not used."""
AHEAD_TOKENS: Final = 32
"""So many tokens before its cells are used up a request gets more where there are some: guesses
need cells too, and no other request steps aside for those."""
QUANTUM_ROWS: Final = BLOCK_TOKENS
"""Rows that a request may compute before it steps aside for one of its own class."""
REST_STEPS: Final = 31
"""Steps in a row that background requests leave out while interactive ones read their prompts.
Every 32nd step has a token of each, which costs the readers a few percent of it."""
PATIENCE_S: Final = 60.0
"""A background request that had no step for so long is interactive for its next quantum."""


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a prompt fits, and how many tokens it may generate."""

    fits: bool
    max_tokens: int = 0
    n_most: int = 0
    """Cells of the prompt and the longest reply."""
    is_cut: bool = False
    """Whether the context holds fewer tokens than were asked for, or none were asked for."""

    def cells_for(self, n_tokens: int, *, at_once: bool = False) -> int:
        """Cells to start with, for ``n_tokens`` that are known; ``at_once``: all of them."""
        return self.n_most if at_once else min(self.n_most, n_tokens + GROWTH_TOKENS)


def admit(n_prompt: int, max_tokens: int | None, n_ctx: int) -> Admission:
    """Fit a request into a context of ``n_ctx`` tokens.

    ``max_tokens`` of None, and more than fits, is what fits: the context then ends the reply. One
    that asks for no token needs room for its prompt alone.
    """
    room = n_ctx - n_prompt
    if room < (1 if max_tokens is None else min(1, max_tokens)):
        return Admission(fits=False)
    granted = room if max_tokens is None else min(max_tokens, room)
    return Admission(True, granted, n_prompt + granted, max_tokens is None or granted < max_tokens)


# ── cells while it runs ─────────────────────────────────────────────────────────────────────────


def must_grow(n_tokens: int, n_cells: int) -> bool:
    """Whether the next token of a request has no cell."""
    return n_tokens > n_cells


def grown(n_tokens: int, n_cells: int, n_most: int) -> int:
    """Cells that a request of ``n_tokens`` should have; ``n_cells`` where they are enough."""
    if n_cells >= min(n_tokens + AHEAD_TOKENS, n_most):
        return n_cells
    return min(n_most, max(n_cells, n_tokens) + GROWTH_TOKENS)


def spare_cells(running: Iterable[tuple[int, int]]) -> int:
    """Cells to leave free when a request starts, so that none has to step aside soon.

    ``running``: cells of each, and the most it may come to have. Each can then grow by a block,
    which is a quantum of the one that starts.
    """
    return sum(min(GROWTH_TOKENS, n_most - n_cells) for n_cells, n_most in running)


# ── who steps aside ─────────────────────────────────────────────────────────────────────────────


class Claim(NamedTuple):
    """One request that has a sequence."""

    is_background: bool
    number: int
    """Of its arrival."""
    n_rows: int = QUANTUM_ROWS
    """Rows that were computed for it since it started, or came back."""
    is_going: bool = False
    """Whether its cells will be free in a moment: it has ended, or steps aside already."""

    @property
    def rank(self) -> tuple[bool, int]:
        """Smaller is more urgent."""
        return (self.is_background, self.number)


def steps_aside(asker: int, running: Sequence[Claim]) -> int | None:
    """Which of ``running`` steps aside, since the next token of ``asker`` has no cell.

    The least urgent that is not more urgent than the asker, which may be the asker itself. Of its
    own class those stay that have not had a quantum yet: their cells are theirs already, so they
    get it. ``None``: wait, since cells become free soon.
    """
    if any(one.is_going for one in running):
        return None
    claim = running[asker]
    later = [at for at, one in enumerate(running) if one.rank > claim.rank]
    if not later:
        return asker if len(running) > 1 else None
    may_go = [
        at
        for at in later
        if running[at].is_background > claim.is_background or running[at].n_rows >= QUANTUM_ROWS
    ]
    return max(may_go, key=lambda at: running[at].rank, default=None)


def make_way(
    is_background: bool, running: Sequence[Claim], fits: Callable[[Sequence[int]], bool]
) -> tuple[int, ...]:
    """Which of ``running`` step aside for a request that cannot start beside them; perhaps none.

    Background requests step aside for an interactive one, as few as suffice. ``fits`` returns
    whether it can start when these step aside.
    """
    if is_background or any(one.is_going for one in running):
        return ()
    background = [at for at, one in enumerate(running) if one.is_background]
    background.sort(key=lambda at: running[at].rank, reverse=True)
    for n in range(1, len(background) + 1):
        if fits(background[:n]):
            return tuple(background[:n])
    return ()


# ── steps ───────────────────────────────────────────────────────────────────────────────────────


class Part(NamedTuple):
    """What a request would do in the next step."""

    is_background: bool
    is_reading: bool
    """Whether it has tokens of its prompt to read, or waits for the cache to know which."""


def must_rest(parts: Sequence[Part], n_rested: int) -> bool:
    """Whether background requests stay out of the next step, after ``n_rested`` without them.

    A first token of an interactive request is then as early as if they were not there. While
    interactive requests generate, background ones share their steps.
    """
    is_asked = any(one.is_reading and not one.is_background for one in parts)
    return is_asked and n_rested < REST_STEPS


def rested(n_rested: int, n_in_step: int, n_ready: int) -> int:
    """Steps in a row without background requests, after one of ``n_in_step`` of ``n_ready``."""
    if n_in_step == n_ready:
        return 0 if n_ready else n_rested
    return n_rested + (n_in_step > 0)
