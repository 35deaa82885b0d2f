"""Where a request that starts gets its sequence, as a function of values.

It shares the cells of the longest live prefix. Room is made by dropping idle sequences, the least
valuable first; the one that is shared goes last, and then the request takes it over. No clock, no
thread, no native code: ``engine.live_sequences`` has those, and applies what is decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from actors.engine.cell_sharing import Candidate, Idle, best_source, make_room, worst_first
from actors.kv.namespace import PLAIN, Namespace
from actors.kv.timeline import Stretch, Stretches, between
from cache import tokens as token_bytes
from cache.keys import BLOCK_TOKENS


class Holder(Protocol):
    """A sequence of the context whose cells can be shared."""

    @property
    def packed_tokens(self) -> bytes:
        """What it holds, or will hold once it has read its prompt."""
        ...

    @property
    def n_shareable(self) -> int:
        """Tokens of those that it holds, or will."""
        ...

    @property
    def n_kv(self) -> int:
        """Tokens that it holds now."""
        ...

    @property
    def stretches(self) -> Stretches: ...

    @property
    def session(self) -> str | None: ...

    @property
    def namespace(self) -> Namespace:
        """That of its request; sequences of different ones share nothing."""
        ...


class IdleHolder(Holder, Idle, Protocol):
    """One whose request has ended."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that starts."""

    packed_tokens: bytes
    """Its prompt, and its reply from before an interruption."""
    n_tokens: int
    """All its tokens."""
    n_usable: int
    """Tokens of its prompt that may be reused."""
    n_cells: int
    """Cells to start with."""
    session: str | None = None
    namespace: Namespace = PLAIN


@dataclass(frozen=True, slots=True)
class Source:
    """A sequence to share from, and how far it goes the same way."""

    index: int
    """Among the holders that were compared."""
    common: int
    ready: int
    """Tokens of those that are in the context now."""
    is_whole: bool
    """Whether it holds the whole prompt, the last token too."""
    ends: bool
    """Whether it ends there rather than continuing with other tokens."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What a request gets, and what that costs the idle sequences; indexes are of those."""

    dropped: tuple[int, ...]
    takes: int | None = None
    """The idle sequence that becomes the request's; ``None``: a free one."""
    source: Source | None = None
    upto: int = 0
    """Positions of the source, or of the sequence it takes, that are shared at once."""
    is_continuation: bool = False
    """It takes its session's sequence as a whole, since this memory cannot be cut."""


@dataclass(frozen=True, slots=True)
class Room:
    """The context: what runs in it, and how much of it there is."""

    running: tuple[Stretches, ...]
    n_cells: int
    free_sequences: int
    origin: int
    """Of cells that are filled from now on."""


def find_source(arrival: Arrival, holders: Sequence[Holder], *, min_tokens: int) -> Source | None:
    """The sequence with most in common, of at least ``min_tokens``; of equal ones the first."""
    sources = [_compare(arrival, at, holder) for at, holder in enumerate(holders)]
    best = best_source([Candidate(one.common, one.ready) for one in sources], min_tokens=min_tokens)
    return None if best is None else sources[best]


def _compare(arrival: Arrival, index: int, holder: Holder) -> Source:
    theirs = holder.packed_tokens
    is_alike = arrival.namespace == holder.namespace
    agreed = token_bytes.common_prefix(arrival.packed_tokens, theirs) if is_alike else 0
    same = min(agreed, holder.n_shareable)
    common = min(same, arrival.n_usable)
    return Source(
        index,
        common,
        ready=min(common, holder.n_kv),
        is_whole=same == arrival.n_tokens,
        ends=same == token_bytes.count(theirs),
    )


def by_session(idle: Sequence[Holder], session: str | None) -> list[int]:
    """Indexes of idle sequences, those of this session first."""
    return sorted(
        range(len(idle)), key=lambda at: not idle[at].session or idle[at].session != session
    )


def place(
    arrival: Arrival,
    idle: Sequence[IdleHolder],
    running: Sequence[Holder],
    room: Room,
    *,
    min_tokens: int,
    lookup: bool,
) -> Placement | None:
    """Find a place in memory that can be cut; ``None``: not yet.

    ``running`` were started before. With ``lookup`` the cache is asked next, unless it could add
    nothing, and only what is ready is shared before it has answered.
    """
    order = by_session(idle, arrival.session)
    holders: list[Holder] = [*(idle[at] for at in order), *running]
    source = find_source(arrival, holders, min_tokens=min_tokens)
    if source is None:
        gone = _room(arrival, (), idle, room, 0, None)
        return None if gone is None else Placement(gone)
    is_enough = source.common >= max(1, arrival.n_usable)
    upto = source.ready if lookup and not is_enough else source.common
    shared = between(holders[source.index].stretches, 0, upto)
    held_by = order[source.index] if upto and source.index < len(order) else None
    gone = _room(arrival, shared, idle, room, upto, held_by)
    if gone is None:
        return None
    return Placement(
        tuple(at for at in gone if at != held_by),
        takes=held_by if held_by in gone else None,
        source=source,
        upto=upto,
    )


def place_uncut(arrival: Arrival, idle: Sequence[IdleHolder], room: Room) -> Placement | None:
    """Find a place in memory that cannot be cut; ``None``: not yet.

    Nothing is shared there, but a request may continue the sequence of its session where it ends.
    """
    own = _own_sequence(arrival, idle)
    if own is None:
        gone = _room(arrival, (), idle, room, 0, None)
        return None if gone is None else Placement(gone)
    n_held = idle[own].n_kv
    others = [at for at in range(len(idle)) if at != own]
    fresh = Stretch(room.origin, n_held, arrival.n_cells)
    gone = _make_room((*idle[own].stretches, fresh), [idle[at] for at in others], room, None, 1)
    if gone is None:
        return None
    dropped = tuple(others[at] for at in gone)
    return Placement(dropped, takes=own, upto=n_held, is_continuation=True)


def _own_sequence(arrival: Arrival, idle: Sequence[IdleHolder]) -> int | None:
    """The sequence of the request's session, if the prompt continues where it ends."""
    prompt = arrival.packed_tokens
    return next(
        (
            at
            for at, one in enumerate(idle)
            if one.session is not None
            and one.session == arrival.session
            and one.namespace == arrival.namespace
            and len(one.packed_tokens) < len(prompt)
            and prompt.startswith(one.packed_tokens)
        ),
        None,
    )


def _room(
    arrival: Arrival,
    shared: Stretches,
    idle: Sequence[IdleHolder],
    room: Room,
    upto: int,
    source: int | None,
) -> tuple[int, ...] | None:
    fresh = Stretch(room.origin, upto, arrival.n_cells)
    return _make_room((*shared, fresh), idle, room, source, 0)


def _make_room(
    stretches: Stretches,
    idle: Sequence[IdleHolder],
    room: Room,
    source: int | None,
    extra_sequences: int,
) -> tuple[int, ...] | None:
    """Idle sequences to drop so that these stretches fit, in order; ``None``: they cannot yet."""
    order = worst_first(idle)
    # A restore may need up to a block more than it keeps; idle sequences make room for that.
    for spare in (BLOCK_TOKENS, 0):
        gone = make_room(
            stretches,
            room.running,
            [idle[at].stretches for at in order],
            n_cells=room.n_cells - spare,
            free_sequences=room.free_sequences + extra_sequences,
            source=None if source is None else order.index(source),
        )
        if gone is not None:
            return tuple(order[at] for at in gone)
    return None
