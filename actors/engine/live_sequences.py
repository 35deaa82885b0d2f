"""The live tier: sequences of one context, and the prefixes they share.

Runs on the engine thread. When a request ends, its sequence may stay as an *idle* one, until its
cells or its id are needed or keeping it has cost as much as getting it back. A new request tags the
cells of the longest live prefix as its own (``seq_copy``: no KV moves), also those of a request
that still reads the same prompt: then it *follows* that one, and takes what is there after each
step. A follower computes nothing while its leader, which was started before it, goes ahead; when
the leader ends early, the next one leads from where it stopped.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from actors.engine.batch_plan import Admission
from actors.engine.cell_sharing import (
    Candidate,
    Stretch,
    Stretches,
    best_source,
    between,
    cells_in_use,
    is_worn_out,
    make_room,
    to_drop,
    worst_first,
)
from actors.engine.request import Request
from actors.kv.deferred_tails import LateTail, LateTails
from cache import tokens as token_bytes
from cache.answers import Miss, MissReason
from cache.keys import BLOCK_TOKENS
from cache.policy import LivePolicy
from native.backend import Backend


@dataclass(slots=True, eq=False)
class IdleSequence:
    """What an ended request left in the context."""

    seq: int
    tokens: bytes
    stretches: Stretches
    used_at: float
    n_stored_blocks: int
    steps: int = 0
    session: str | None = None
    """The conversation that will go on in it, most likely."""
    late_tail: LateTail | None = None
    """Its end, not stored yet."""

    @property
    def packed_tokens(self) -> bytes:
        return self.tokens

    def will_store(self, end: int) -> bool:
        """Whether a row that reaches beyond its first ``end`` tokens is stored, or will be."""
        is_late = self.late_tail is not None and self.late_tail.end > end
        return is_late or self.n_stored_blocks * BLOCK_TOKENS >= end

    @property
    def is_pinned(self) -> bool:
        return self.session is not None

    @property
    def n_kv(self) -> int:
        return token_bytes.count(self.tokens)

    @property
    def is_stored(self) -> bool:
        return self.n_stored_blocks >= self.n_kv // BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class _Source:
    """A sequence to share from, and how far it goes the same way."""

    holder: Request | IdleSequence
    common: int
    is_whole: bool
    """Whether it holds the whole prompt, the last token too."""
    ends: bool
    """Whether it ends there rather than going on with other tokens."""

    @property
    def ready(self) -> int:
        return min(self.common, self.holder.n_kv)


@dataclass(slots=True)
class LiveSequences:
    """Hands out the sequences of ``backend``; knows which cells they share."""

    backend: Backend
    policy: LivePolicy = field(default_factory=LivePolicy)
    idle: list[IdleSequence] = field(default_factory=list)
    tails: LateTails | None = None
    """Decides when the ends of idle sequences are stored."""
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
        due_at = self.tails.due_at() if self.tails is not None else None
        return min(times if due_at is None else [*times, due_at], default=None)

    # ── starting ────────────────────────────────────────────────────────────────────────────────

    def place(
        self, request: Request, admission: Admission, running: Sequence[Request], *, lookup: bool
    ) -> bool:
        """Give a request its sequence, with the live prefix it can share; False: not yet.

        With ``lookup`` the cache is asked next, unless it could add nothing; only what is ready is
        shared before it has answered, and ``settle`` does the rest.
        """
        whole = None if self.backend.info.can_cut else self._own_whole(request)
        if whole is not None:
            return self._go_on_in(whole, request, admission, running)
        source = self._source(request, running)
        upto = 0
        if source is not None:
            is_enough = source.common >= max(1, request.n_usable)
            upto = source.ready if lookup and not is_enough else source.common
        own = Stretch(next(self._origins), upto, admission.n_cells)
        shared = between(source.holder.stretches, 0, upto) if source is not None else ()
        order = [self.idle[at] for at in worst_first(self.idle)]
        held_by = source.holder if source is not None and upto else None
        at = order.index(held_by) if isinstance(held_by, IdleSequence) else None
        gone = self._room((*shared, own), running, order, at)
        if gone is None:
            return False
        for index in gone:
            if index != at:
                self._drop(order[index])
        if isinstance(held_by, IdleSequence) and at in gone:
            self._take_over(request, held_by, upto)
        else:
            request.seq = self._free.pop()
        request.n_cells = admission.n_cells
        request.stretches = (*between(shared, 0, request.n_kv), own)
        if source is not None and upto:
            self._join(request, source, upto)
        return True

    def _take_over(self, request: Request, one: IdleSequence, upto: int) -> None:
        """The request goes on in the idle sequence itself, since there is no room beside it."""
        if self.tails is not None:
            self.tails.leave(one, request)
        self.idle.remove(one)
        self.backend.seq_remove(one.seq, upto, -1)
        request.seq = one.seq
        request.n_kv = request.n_live = request.n_reused = upto

    def _own_whole(self, request: Request) -> IdleSequence | None:
        """The sequence of the request's session, if the prompt goes on where it ends."""
        prompt = request.packed_prompt
        return next(
            (
                one
                for one in self.idle
                if one.session is not None
                and one.session == request.session
                and len(one.tokens) < len(prompt)
                and prompt.startswith(one.tokens)
            ),
            None,
        )

    def _go_on_in(
        self,
        one: IdleSequence,
        request: Request,
        admission: Admission,
        running: Sequence[Request],
    ) -> bool:
        """Continue a sequence that cannot be shared, because this memory cannot be cut."""
        order = [self.idle[at] for at in worst_first(self.idle) if self.idle[at] is not one]
        own = Stretch(next(self._origins), one.n_kv, admission.n_cells)
        self._free.append(one.seq)  # it is the one that the request takes
        gone = self._room((*one.stretches, own), running, order, None)
        self._free.remove(one.seq)
        if gone is None:
            return False
        for index in gone:
            self._drop(order[index])
        self._take_over(request, one, one.n_kv)
        request.is_sticky = True
        request.n_stored_blocks = one.n_stored_blocks
        request.n_cells = admission.n_cells
        request.stretches = (*one.stretches, own)
        request.missed(Miss(MissReason.DIVERGES, one.n_kv))
        return True

    def _room(
        self,
        wanted: Stretches,
        running: Sequence[Request],
        order: Sequence[IdleSequence],
        source: int | None,
    ) -> list[int] | None:
        gone: list[int] | None = None
        # A restore may need up to a block more than it keeps; idle sequences make room for that.
        for spare in (BLOCK_TOKENS, 0):
            gone = make_room(
                wanted,
                [one.stretches for one in running],
                [one.stretches for one in order],
                n_cells=self.backend.info.n_ctx - spare,
                free_sequences=len(self._free),
                source=source,
            )
            if gone is not None:
                break
        return gone

    def is_complete(self, request: Request) -> bool:
        """Whether the cache could add nothing to what is shared already."""
        if request.is_sticky and not self.backend.info.can_cut:
            return True  # a state is restored into an empty sequence only
        return max(request.n_kv, request.share_upto) >= max(1, request.n_usable)

    def settle(self, request: Request, running: Sequence[Request]) -> None:
        """Share what is live beyond what the request holds, and follow who is reading it."""
        request.following = None
        request.share_upto = request.n_kv
        if request.n_live < request.n_kv:  # the rest was restored, into cells of its own
            own = Stretch(next(self._origins), request.n_live, request.n_cells)
            request.stretches = (*between(request.stretches, 0, request.n_live), own)
        source = self._source(request, running)
        if source is not None and source.common > request.n_kv:
            self._join(request, source, source.common)

    def follow(self, running: Sequence[Request]) -> list[Request]:
        """Give followers what their leaders have read since; those that got further."""
        advanced = []
        for request in running:
            if request.following is None:
                continue
            before = request.n_kv
            leader = request.following
            if leader.seq is None or leader.is_finished:
                self.settle(request, running)
            else:
                self._copy(request, leader, min(leader.n_kv, request.share_upto))
                if request.n_kv >= request.share_upto:
                    request.following = None
            if request.n_kv > before:
                advanced.append(request)
        return advanced

    # ── ending ──────────────────────────────────────────────────────────────────────────────────

    def retire(self, request: Request, running: Sequence[Request], *, keep: bool) -> None:
        """A request ends: its sequence stays idle, or is free again."""
        if request.seq is None:
            return
        seq, request.seq, request.following = request.seq, None, None
        n_kv, policy = request.n_kv, self.policy
        is_useful = self.backend.info.can_cut or request.session is not None
        one = IdleSequence(
            seq,
            token_bytes.pack(request.tokens[:n_kv]),
            between(request.stretches, 0, n_kv),
            time.monotonic(),
            request.n_stored_blocks,
            session=request.session,
            late_tail=request.late_tail,
        )
        if keep and policy.max_idle and n_kv >= policy.min_tokens and is_useful:
            self.end_session(request.session)
            self.idle.append(one)
            if self.tails is not None:
                self.tails.keep(one)
            held = [one.stretches for one in running if one.seq is not None]
            now, n_ctx = time.monotonic(), self.backend.info.n_ctx
            for one in [self.idle[at] for at in to_drop(self.idle, held, policy, n_ctx, now)]:
                self._drop(one)
        else:
            if self.tails is not None and keep:
                self.tails.leave(one)
            elif self.tails is not None:
                self.tails.forget(one)
            self.backend.seq_remove(seq, 0, -1)
            self._free.append(seq)

    def stepped(self, n: int = 1) -> None:
        """The engine ran ``n`` steps beside the idle sequences, or time has passed (0)."""
        now = time.monotonic()
        for one in list(self.idle):
            one.steps += n
            if is_worn_out(one, self.policy, now):
                self._drop(one)
        if self.tails is not None:
            self.tails.write_due(now)

    def drop_idle(self, *, unstored: bool = False) -> bool:
        """Free all idle sequences; whether there were any. Their ends are stored if need be."""
        idle = list(self.idle)
        for one in idle:
            if unstored and self.tails is not None:
                self.tails.forget(one)
            self._drop(one)
        return bool(idle)

    def forget_all(self, running: Sequence[Request]) -> None:
        """The context is a new, empty one: nothing idle is left, and who runs starts anew."""
        for one in self.idle:
            if self.tails is not None:
                self.tails.forget(one)
        self.idle.clear()
        taken = {request.seq for request in running}
        self._free = [seq for seq in range(self.backend.info.n_seq_max) if seq not in taken]
        for request in running:
            request.lose_context()
            request.stretches = (Stretch(next(self._origins), 0, request.n_cells),)

    def end_session(self, session: str | None) -> None:
        """Its sequence is like any other idle one from now on, or of no use to anybody."""
        for one in [one for one in self.idle if one.session == session and session is not None]:
            one.session = None
            if not self.backend.info.can_cut:
                self._drop(one)

    def longest_match(self, tokens: bytes) -> int:
        """How many leading tokens of these packed ones are in the context, of idle sequences."""
        return max((token_bytes.common_prefix(tokens, one.tokens) for one in self.idle), default=0)

    def _drop(self, one: IdleSequence) -> None:
        if self.tails is not None:
            self.tails.leave(one)
        self.idle.remove(one)
        self.backend.seq_remove(one.seq, 0, -1)
        self._free.append(one.seq)

    # ── sharing ─────────────────────────────────────────────────────────────────────────────────

    def _source(self, request: Request, running: Sequence[Request]) -> _Source | None:
        """The live sequence that goes furthest the same way, among those started before."""
        if not self.backend.info.can_cut:
            return None
        earlier = itertools.takewhile(lambda other: other is not request, running)
        # Of equal ones its own session's comes first.
        idle = sorted(self.idle, key=lambda one: not one.session or one.session != request.session)
        holders: list[Request | IdleSequence] = [*idle, *earlier]
        sources = [self._compare(request, holder) for holder in holders]
        candidates = [Candidate(one.common, one.ready) for one in sources]
        best = best_source(candidates, min_tokens=self.policy.min_tokens)
        return None if best is None else sources[best]

    def _compare(self, request: Request, holder: Request | IdleSequence) -> _Source:
        prompt = request.packed_prompt
        theirs = holder.tokens if isinstance(holder, IdleSequence) else holder.packed_prompt
        same, whole = token_bytes.common_prefix(prompt, theirs), len(request.tokens)
        if isinstance(holder, Request) and (holder.seq is None or holder.is_finished):
            same = min(same, holder.n_kv)
        common = min(same, request.n_usable)
        return _Source(holder, common, same == whole, same == token_bytes.count(theirs))

    def _join(self, request: Request, source: _Source, upto: int) -> None:
        """Make the cells from the request's end up to ``upto`` its own too, now or as they come."""
        start, holder = request.n_kv, source.holder
        self._copy(request, holder, min(upto, holder.n_kv))
        if upto > start:
            request.stretches = (
                *between(request.stretches, 0, start),
                *between(holder.stretches, start, upto),
                Stretch(next(self._origins), upto, request.n_cells),
            )
        if isinstance(holder, IdleSequence):
            holder.used_at, holder.steps = time.monotonic(), 0
            request.is_sticky = request.session is not None and request.session == holder.session
        elif request.n_kv < upto:
            request.following = holder
        request.share_upto = upto
        known = min(holder.n_stored_blocks, upto // BLOCK_TOKENS)
        request.n_stored_blocks = max(request.n_stored_blocks, known)
        if upto == source.common:
            reason = MissReason.NOT_STORED if source.ends else MissReason.DIVERGES
            request.missed(None if source.is_whole else Miss(reason, source.common))

    def _copy(self, request: Request, holder: Request | IdleSequence, upto: int) -> None:
        start = request.n_kv
        if upto > start and holder.seq is not None:
            self.backend.seq_copy(holder.seq, request.kv_seq, start, upto)
            request.n_kv = upto
            request.n_reused += upto - start
            request.n_live += upto - start
