"""The live tier: sequences of one context, and the prefixes they share.

Runs on the engine thread; times are seconds on its clock, passed in. When a request ends, its
sequence may stay as an *idle* one, until its cells or its id are needed or keeping it has cost as
much as getting it back. A new request tags the cells of the longest live prefix as its own
(``seq_copy``: no KV moves), also those of a request that still reads the same prompt: then it
*follows* that one, and takes what is there after each step. A follower computes nothing while its
leader, which was started before it, is ahead; when the leader ends early, the next one leads from
where it stopped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from actors.engine.cell_sharing import (
    cells_in_use,
    is_worn_out,
    make_room,
    to_drop,
    worst_first,
)
from actors.engine.placement import (
    Arrival,
    Holder,
    Placement,
    Room,
    Source,
    by_session,
    find_source,
    place,
    place_uncut,
)
from actors.engine.request import Request
from actors.kv.deferred_tails import DeferredTails
from actors.kv.namespace import PLAIN, Namespace
from actors.kv.request_cache import DeferredTail
from actors.kv.timeline import Stretch, Stretches, between
from cache import tokens as token_bytes
from cache.answers import Miss, MissReason
from cache.keys import BLOCK_TOKENS
from cache.policy import LivePolicy
from native.backend import Backend


@dataclass(slots=True, eq=False)
class IdleSequence:
    """What an ended request left in the context."""

    seq: int
    packed_tokens: bytes
    stretches: Stretches
    used_at: float
    n_stored_blocks: int
    steps: int = 0
    session: str | None = None
    """The conversation that most likely continues in it."""
    deferred_tail: DeferredTail | None = None
    """Its end, not stored yet."""
    namespace: Namespace = PLAIN
    """That of its request."""

    def will_store(self, end: int) -> bool:
        """Whether a row that reaches beyond its first ``end`` tokens is stored, or will be."""
        tail = self.deferred_tail
        is_deferred = tail is not None and tail.end > end
        return is_deferred or self.n_stored_blocks * BLOCK_TOKENS >= end

    @property
    def is_pinned(self) -> bool:
        return self.session is not None

    @property
    def n_kv(self) -> int:
        return token_bytes.count(self.packed_tokens)

    @property
    def n_shareable(self) -> int:
        return self.n_kv

    @property
    def is_stored(self) -> bool:
        return self.n_stored_blocks >= self.n_kv // BLOCK_TOKENS

    @property
    def leader(self) -> Request | None:
        return None

    def was_shared(self, now: float) -> None:
        self.used_at, self.steps = now, 0


@dataclass(frozen=True, slots=True)
class RunningSequence:
    """The sequence of a request that runs, as one to share from."""

    request: Request

    @property
    def seq(self) -> int | None:
        return self.request.line.seq

    @property
    def packed_tokens(self) -> bytes:
        return self.request.line.packed_prompt

    @property
    def stretches(self) -> Stretches:
        return self.request.line.stretches

    @property
    def n_kv(self) -> int:
        return self.request.line.n_kv

    @property
    def n_shareable(self) -> int:
        line = self.request.line
        is_over = line.seq is None or self.request.is_finished
        return line.n_kv if is_over else token_bytes.count(line.packed_prompt)

    @property
    def n_stored_blocks(self) -> int:
        return self.request.cache.n_stored_blocks

    @property
    def session(self) -> str | None:
        return self.request.spec.session

    @property
    def namespace(self) -> Namespace:
        return self.request.cache.namespace

    @property
    def leader(self) -> Request | None:
        return self.request

    def was_shared(self, now: float) -> None:
        """Nothing: it is in use."""


class Shareable(Holder, Protocol):
    """A sequence that a request can share with."""

    @property
    def seq(self) -> int | None: ...

    @property
    def n_stored_blocks(self) -> int: ...

    @property
    def leader(self) -> Request | None:
        """The request that fills it, to be followed; ``None`` where nothing comes any more."""
        ...

    def was_shared(self, now: float) -> None:
        """A request has taken cells of it."""
        ...


@dataclass(slots=True)
class LiveSequences:
    """Hands out the sequences of ``backend``, and counts the cells that they share."""

    backend: Backend
    policy: LivePolicy
    tails: DeferredTails
    """Decides when the ends of idle sequences are stored."""
    idle: list[IdleSequence] = field(default_factory=list)
    _free: list[int] = field(init=False)
    _origins: Iterator[int] = field(default_factory=itertools.count, init=False)

    def __post_init__(self) -> None:
        self._free = list(range(self.backend.info.n_seq_max))

    def counts(self) -> dict[str, int]:
        idle = list(self.idle)
        return {
            "idle_sequences": len(idle),
            "idle_cells": cells_in_use(one.stretches for one in idle),
        }

    def expires_at(self) -> float | None:
        """When the next idle sequence becomes too old, or its end is to be stored."""
        times = [one.used_at + self.policy.idle_s for one in self.idle]
        due_at = self.tails.due_at()
        return min(times if due_at is None else [*times, due_at], default=None)

    # ── starting ────────────────────────────────────────────────────────────────────────────────

    def place(
        self,
        request: Request,
        n_cells: int,
        running: Sequence[Request],
        now: float,
        *,
        spare: int,
        lookup: bool,
    ) -> bool:
        """Give a request its sequence, with the live prefix it can share; False: not yet.

        It gets ``n_cells``, and ``spare`` cells stay free besides. With ``lookup`` the cache is
        asked next, unless it could add nothing; only what is ready is shared before it has
        answered, and ``settle`` does the rest.
        """
        arrival = self._arrival(request, n_cells)
        room = self._room(running, spare, len(self._free))
        earlier = [RunningSequence(one) for one in running]
        found = self._find_place(arrival, earlier, room, lookup=lookup)
        if found is None:
            return False
        self._apply(request, found, earlier, n_cells, room.origin, now)
        return True

    def would_fit(
        self, request: Request, n_cells: int, kept: Sequence[Request], n_freed: int, *, spare: int
    ) -> bool:
        """Whether a request could start beside ``kept`` only, with ``n_freed`` more sequences."""
        room = self._room(kept, spare, len(self._free) + n_freed)
        earlier = [RunningSequence(one) for one in kept]
        arrival = self._arrival(request, n_cells)
        return self._find_place(arrival, earlier, room, lookup=True) is not None

    def _find_place(
        self, arrival: Arrival, running: Sequence[RunningSequence], room: Room, *, lookup: bool
    ) -> Placement | None:
        if not self.backend.info.can_cut:
            return place_uncut(arrival, self.idle, room)
        min_tokens = self.policy.min_tokens
        return place(arrival, self.idle, running, room, min_tokens=min_tokens, lookup=lookup)

    def grow(self, request: Request, n_cells: int, running: Sequence[Request]) -> bool:
        """Give a running request more cells, in place of idle sequences if need be; False: no."""
        order = worst_first(self.idle)
        gone = make_room(
            request.line.with_cells(n_cells),
            [one.line.stretches for one in running if one is not request],
            [self.idle[at].stretches for at in order],
            n_cells=self.backend.info.n_ctx,
            free_sequences=1,  # it has its own
        )
        if gone is None:
            return False
        for one in [self.idle[order[at]] for at in gone]:
            self._drop(one)
        request.line.grow(n_cells)
        return True

    def grow_alone(self, request: Request, n_cells: int) -> None:
        """The same for one that has the context to itself: that always works.

        Counting may find too few cells: where it holds an origin with gaps, they count.
        """
        if not self.grow(request, n_cells, [request]):
            self.drop_idle()
            request.line.grow(n_cells)

    def _arrival(self, request: Request, n_cells: int) -> Arrival:
        line = request.line
        return Arrival(
            line.packed_prompt,
            len(line.tokens),
            request.cache.n_usable,
            n_cells,
            request.spec.session,
            request.cache.namespace,
        )

    def _room(self, running: Sequence[Request], spare: int, free_sequences: int) -> Room:
        return Room(
            tuple(one.line.stretches for one in running),
            self.backend.info.n_ctx - spare,
            free_sequences,
            next(self._origins),
        )

    def _apply(
        self,
        request: Request,
        found: Placement,
        running: Sequence[RunningSequence],
        n_cells: int,
        origin: int,
        now: float,
    ) -> None:
        line, source = request.line, found.source
        order = by_session(self.idle, request.spec.session)
        holders: list[Shareable] = [*(self.idle[at] for at in order), *running]
        taken = None if found.takes is None else self.idle[found.takes]
        for one in [self.idle[at] for at in found.dropped]:
            self._drop(one)
        if taken is None:
            line.placed(self._free.pop(), (Stretch(origin, 0, n_cells),), n_cells)
        else:
            # There is no room beside the idle sequence, so the request becomes its owner.
            self.tails.leave(taken, request.cache)
            self.idle.remove(taken)
            self.backend.seq_remove(taken.seq, found.upto, -1)
            shared = between(taken.stretches, 0, found.upto)
            line.placed(taken.seq, (*shared, Stretch(origin, found.upto, n_cells)), n_cells)
            line.took_over(found.upto)
        if taken is not None and found.is_continuation:
            line.share(line.share_upto, is_sticky=True)
            request.cache.stored_upto(taken.n_stored_blocks)
            request.cache.missed(Miss(MissReason.DIVERGES, found.upto))
        elif source is not None and found.upto:
            self._join(request, holders[source.index], source, found.upto, now)

    def is_complete(self, request: Request) -> bool:
        """Whether the cache could add nothing to what is shared already."""
        line = request.line
        if line.is_sticky and not self.backend.info.can_cut:
            return True  # a state is restored into an empty sequence only
        return max(line.n_kv, line.share_upto) >= max(1, request.cache.n_usable)

    # ── sharing ─────────────────────────────────────────────────────────────────────────────────

    def settle(self, request: Request, running: Sequence[Request], now: float) -> None:
        """Share what is live beyond what the request holds, and follow a request that reads it."""
        request.following = None
        line = request.line
        line.share(line.n_kv, is_sticky=line.is_sticky)
        if line.n_live < line.n_kv:  # the rest was restored, into cells of its own
            own = Stretch(next(self._origins), line.n_live, line.n_cells)
            line.use_cells((*between(line.stretches, 0, line.n_live), own))
        if not self.backend.info.can_cut:
            return
        earlier = itertools.takewhile(lambda other: other is not request, running)
        order = by_session(self.idle, request.spec.session)
        holders: list[Shareable] = [
            *(self.idle[at] for at in order),
            *(RunningSequence(one) for one in earlier),
        ]
        arrival = self._arrival(request, line.n_cells)
        source = find_source(arrival, holders, min_tokens=self.policy.min_tokens)
        if source is not None and source.common > line.n_kv:
            self._join(request, holders[source.index], source, source.common, now)

    def follow(self, running: Sequence[Request], now: float) -> list[Request]:
        """Give followers what their leaders have read since; those that got further."""
        advanced = []
        for request in running:
            leader, line = request.following, request.line
            if leader is None:
                continue
            before = line.n_kv
            if leader.line.seq is None or leader.is_finished:
                self.settle(request, running, now)
            else:
                self._copy(request, leader.line.seq, min(leader.line.n_kv, line.share_upto))
                if line.n_kv >= line.share_upto:
                    request.following = None
            if line.n_kv > before:
                advanced.append(request)
        return advanced

    def _join(
        self, request: Request, holder: Shareable, source: Source, upto: int, now: float
    ) -> None:
        """Make the cells from the request's end up to ``upto`` its own too, now or as they come."""
        line = request.line
        start = line.n_kv
        if holder.seq is not None:
            self._copy(request, holder.seq, min(upto, holder.n_kv))
        if upto > start:
            own = Stretch(next(self._origins), upto, line.n_cells)
            line.use_cells(
                (*between(line.stretches, 0, start), *between(holder.stretches, start, upto), own)
            )
        holder.was_shared(now)
        is_sticky = line.is_sticky
        if holder.leader is None:
            session = request.spec.session
            is_sticky = session is not None and session == holder.session
        elif line.n_kv < upto:
            request.following = holder.leader
        line.share(upto, is_sticky=is_sticky)
        request.cache.stored_upto(min(holder.n_stored_blocks, upto // BLOCK_TOKENS))
        if upto == source.common:
            reason = MissReason.NOT_STORED if source.ends else MissReason.DIVERGES
            request.cache.missed(None if source.is_whole else Miss(reason, source.common))

    def _copy(self, request: Request, seq: int, upto: int) -> None:
        line = request.line
        if upto > line.n_kv:
            self.backend.seq_copy(seq, line.kv_seq, line.n_kv, upto)
            line.shared(upto)

    # ── ending ──────────────────────────────────────────────────────────────────────────────────

    def retire(
        self, request: Request, running: Sequence[Request], now: float, *, keep: bool
    ) -> None:
        """A request ends or steps aside: its sequence stays idle, or is free again."""
        line, policy = request.line, self.policy
        seq = line.left()
        request.following = None
        if seq is None:
            return
        is_useful = self.backend.info.can_cut or request.spec.session is not None
        one = IdleSequence(
            seq,
            line.packed(0, line.n_kv),
            between(line.stretches, 0, line.n_kv),
            now,
            request.cache.n_stored_blocks,
            session=request.spec.session,
            deferred_tail=request.cache.deferred_tail,
            namespace=request.cache.namespace,
        )
        keep = keep and not request.spec.drop_live
        if keep and policy.max_idle and line.n_kv >= policy.min_tokens and is_useful:
            self.end_session(one.session, one.namespace.salt)
            self.idle.append(one)
            self.tails.keep(one, now)
            held = [other.line.stretches for other in running if other.line.seq is not None]
            n_ctx = self.backend.info.n_ctx
            for other in [self.idle[at] for at in to_drop(self.idle, held, policy, n_ctx, now)]:
                self._drop(other)
            return
        if keep:
            self.tails.leave(one)
        else:
            self.tails.forget(one)
        self.backend.seq_remove(seq, 0, -1)
        self._free.append(seq)

    def stepped(self, n: int, now: float) -> None:
        """The engine ran ``n`` steps beside the idle sequences, or time has passed (0)."""
        for one in list(self.idle):
            one.steps += n
            if is_worn_out(one, self.policy, now):
                self._drop(one)
        self.tails.write_due(now)

    def drop_idle(self, *, unstored: bool = False) -> bool:
        """Free all idle sequences; whether there were any. Their ends are stored if need be."""
        idle = list(self.idle)
        for one in idle:
            if unstored:
                self.tails.forget(one)
            self._drop(one)
        return bool(idle)

    def forget_all(self, running: Sequence[Request]) -> None:
        """The context is a new, empty one: nothing idle is left, and all requests start again."""
        for one in self.idle:
            self.tails.forget(one)
        self.idle.clear()
        taken = {request.line.seq for request in running}
        self._free = [seq for seq in range(self.backend.info.n_seq_max) if seq not in taken]
        for request in running:
            request.lose_context()
            request.line.lost(Stretch(next(self._origins), 0, request.line.n_cells))

    def end_session(self, session: str | None, salt: bytes = b"") -> None:
        """Its sequence is like any other idle one from now on; of no use if it cannot be cut."""
        if session is None:
            return
        theirs = [one for one in self.idle if one.session == session]
        for one in [one for one in theirs if one.namespace.salt == salt]:
            one.session = None
            if not self.backend.info.can_cut:
                self._drop(one)

    def longest_match(
        self, packed: bytes, namespace: Namespace, running: Sequence[Request] = ()
    ) -> int:
        """How many leading tokens of these packed ones idle sequences of a namespace hold.

        Those that ``running`` requests of it hold, or will have read, count too.
        """
        held = [one.packed_tokens for one in self.idle if one.namespace == namespace]
        held += [one.line.packed_prompt for one in running if one.cache.namespace == namespace]
        return max((token_bytes.common_prefix(packed, one) for one in held), default=0)

    def _drop(self, one: IdleSequence) -> None:
        self.tails.leave(one)
        self.idle.remove(one)
        self.backend.seq_remove(one.seq, 0, -1)
        self._free.append(one.seq)
