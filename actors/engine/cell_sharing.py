"""Sharing cells between sequences of one context, as functions of values.

A prefix that several sequences hold lies in the same cells. Each sequence is therefore described by
*stretches*: runs of positions whose cells were, or will be, filled together. Two sequences that
share a prefix hold stretches of the same origin; counting each origin once gives the cells that are
really needed. No clock, no thread, no native code: ``engine.live_sequences`` has those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from actors.kv.namespace import Namespace
from actors.kv.timeline import Stretches
from cache.policy import LivePolicy


def cells_in_use(held: Iterable[Stretches]) -> int:
    """Cells needed by all these sequences together, shared ones counted once.

    Holders of one origin normally overlap; where they do not, the gap is counted too.
    """
    hulls: dict[int, tuple[int, int]] = {}
    for stretches in held:
        for one in stretches:
            low, high = hulls.get(one.origin, (one.start, one.end))
            hulls[one.origin] = (min(low, one.start), max(high, one.end))
    return sum(high - low for low, high in hulls.values())


# ── starting a request ──────────────────────────────────────────────────────────────────────────


def make_room(
    wanted: Stretches,
    running: Sequence[Stretches],
    idle: Sequence[Stretches],
    *,
    n_cells: int,
    free_sequences: int,
    source: int | None = None,
) -> list[int] | None:
    """Which idle sequences to drop so that ``wanted`` fits; ``None`` when it cannot fit yet.

    ``idle`` is ordered, least valuable first; ``source`` is the one that is about to be shared: it
    goes last, and then the request takes it over. Nothing goes for a request that cannot start.
    """
    kept = [index for index in range(len(idle)) if index != source]
    if source is not None:
        kept.append(source)
    gone: list[int] = []
    while True:
        held = [wanted, *running, *(idle[index] for index in kept)]
        if free_sequences + len(gone) > 0 and cells_in_use(held) <= n_cells:
            return gone
        if not kept:
            return None
        gone.append(kept.pop(0))


# ── keeping idle sequences ──────────────────────────────────────────────────────────────────────


class Idle(Protocol):
    """What is decided about: a sequence whose request has ended."""

    @property
    def stretches(self) -> Stretches: ...

    @property
    def packed_tokens(self) -> bytes:
        """Packed, all that the sequence holds."""
        ...

    @property
    def namespace(self) -> Namespace:
        """That of its request; sequences of different ones share nothing."""
        ...

    @property
    def is_stored(self) -> bool:
        """Whether its full blocks are in the cache too, so that losing it costs a restore."""
        ...

    @property
    def is_pinned(self) -> bool:
        """Whether it belongs to a session: kept before others, however many steps it costs."""
        ...

    @property
    def used_at(self) -> float:
        """Seconds on the engine's clock."""
        ...

    @property
    def steps(self) -> int:
        """Steps the engine has run beside it since."""
        ...


def worst_first(idle: Sequence[Idle]) -> list[int]:
    """Indexes in the order of reclaiming: of sessions last, stored ones first, then by last use."""
    return sorted(
        range(len(idle)),
        key=lambda at: (idle[at].is_pinned, not idle[at].is_stored, idle[at].used_at),
    )


def is_worn_out(one: Idle, policy: LivePolicy, now: float) -> bool:
    """Whether keeping it has cost about what getting it back would cost, or it is too old."""
    if now - one.used_at >= policy.idle_s:
        return True
    allowed = policy.idle_steps_stored if one.is_stored else policy.idle_steps_unstored
    return not one.is_pinned and one.steps >= allowed


def to_drop(
    idle: Sequence[Idle], running: Sequence[Stretches], policy: LivePolicy, n_cells: int, now: float
) -> list[int]:
    """Indexes of idle sequences that are not kept any longer.

    Those that another one contains, worn-out ones, and the worst beyond the policy's limits.
    """
    gone = [
        at
        for at, one in enumerate(idle)
        if is_worn_out(one, policy, now) or _is_contained(at, idle)
    ]
    order = [at for at in worst_first(idle) if at not in gone]
    busy = cells_in_use(running)
    while order:
        held = [*running, *(idle[at].stretches for at in order)]
        extra = cells_in_use(held) - busy
        if len(order) <= policy.max_idle and extra <= policy.max_idle_share * n_cells:
            break
        gone.append(order.pop(0))
    return gone


def _is_contained(at: int, idle: Sequence[Idle]) -> bool:
    """Whether a longer idle sequence, or a later one of the same tokens, begins with this one."""
    mine, namespace = idle[at].packed_tokens, idle[at].namespace
    return any(
        other.packed_tokens.startswith(mine)
        and (len(other.packed_tokens) > len(mine) or index > at)
        for index, other in enumerate(idle)
        if index != at and other.namespace == namespace
    )


# ── choosing what to share ──────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Candidate:
    """A live sequence that begins like a new prompt."""

    common: int
    """Tokens it shares, or will share once it has read its own prompt."""
    ready: int
    """Tokens of those that are in the context now."""


def best_source(candidates: Sequence[Candidate], *, min_tokens: int) -> int | None:
    """Index of the one to share from: the most in common, then the most that is ready now."""
    best = max(
        range(len(candidates)),
        key=lambda at: (candidates[at].common, candidates[at].ready, -at),
        default=None,
    )
    return best if best is not None and candidates[best].common >= min_tokens else None
