"""The cache of a model that cannot be cut: links, and a few states of whole sequences.

A state must be taken while the sequence stands exactly there, and room for it in the arena is
granted later. So ``reached`` copies it into memory of the request, and ``write`` from there into
the slab. Which positions, and under which tokens: ``actors.kv.checkpoint_plan``.

A restored state replaces nothing: the sequence is empty before, and after any failure. What is not
proven valid (head, checksum, key, namespace, every token of the row, every number of the state that
has a right value, the positions afterwards) is not used, and the next shorter one is tried.
"""

from __future__ import annotations

import time
from dataclasses import replace

from actors import messages as m
from actors.kv.checkpoint_plan import Stops, blocks_between, is_rung, query
from actors.kv.reader import RowReader, slowness
from actors.kv.request_cache import Grant, RequestCache
from actors.kv.restore_cost import Piece, Rates
from actors.kv.restore_plan import Restored
from actors.kv.row_plan import LINK_META_BYTES, RowPlan
from actors.kv.row_writer import RowWriter
from actors.kv.store import ROWS_PER_MESSAGE
from cache import refs, tokens
from cache.answers import BlockRef, Miss, MissReason
from cache.errors import CacheError
from cache.prefix import TIP_MARK
from cache.rows import row_bytes
from native.backend import Backend
from native.errors import NativeError, StateRefused

HELD_BYTES_LIMIT = 256 << 20
"""States that one request may hold until they are written; the shortest give way."""


class CheckpointStore:
    """Rows of a model whose memory is saved as checkpoints."""

    def __init__(
        self,
        backend: Backend,
        plan: RowPlan,
        reader: RowReader,
        writer: RowWriter,
        rates: Rates,
        unusable_because: MissReason | None,
    ) -> None:
        self._backend = backend
        self._plan = plan
        self._policy = plan.policy
        self._block = plan.block_tokens
        self._reader = reader
        self._writer = writer
        self.rates = rates
        self.unusable_because = unusable_because

    # ── taking states ───────────────────────────────────────────────────────────────────────────

    def next_stop(self, request: RequestCache) -> int | None:
        if not self._is_worth_it(request):
            return None
        return self._stops(request).after(request.line.n_kv)

    def reached(self, request: RequestCache) -> None:
        if not self._is_worth_it(request):
            return
        at = request.line.n_kv
        if at < request.line.n_prompt:
            if self._stops(request).is_stop(at):
                self._hold(request, at)
            return
        blocks, rest = divmod(at, self._block)
        if rest or blocks <= request.n_stored_blocks or not self._policy.save_while_generating:
            return
        # The next turn continues from the last of these; one that is no rung was kept till now.
        older = [p for p in request.states if p >= request.line.n_prompt and not self._is_rung(p)]
        if self._hold(request, at, while_generating=True):
            for position in older:
                request.states.pop(position, None)

    def ends(self, request: RequestCache) -> None:
        """Take the state at the end of the reply: the next turn continues there.

        Not where more tokens are in the context than the caller has seen: it cannot be cut back.
        """
        at = request.line.n_kv
        is_whole = at == request.save_upto and at > request.line.n_prompt
        if not self._is_worth_it(request) or not is_whole or not self._policy.save_finish_tail:
            return
        if self._hold(request, at):
            for position in [p for p in request.states if request.line.n_prompt <= p < at]:
                if not self._is_rung(position):
                    del request.states[position]

    def leaves(self, request: RequestCache) -> None:
        """Take the state where it can be found again: before the last token, or at a block."""
        at = request.line.n_kv
        is_block = not at % self._block and at // self._block > request.n_stored_blocks
        if self._is_worth_it(request) and (at == len(request.line.tokens) - 1 or is_block):
            self._hold(request, at)

    def _is_worth_it(self, request: RequestCache) -> bool:
        is_usable = self.unusable_because is None
        return is_usable and request.line.n_prompt >= self._policy.min_tokens

    def _stops(self, request: RequestCache) -> Stops:
        line = request.line
        return Stops(
            n_prompt=line.n_prompt,
            block_tokens=self._block,
            grows=self._backend.info.state_grows,
            n_stored_blocks=request.n_stored_blocks,
            has_tip=line.n_reused == line.n_prompt - 1 or not self._policy.save_prompt_tail,
            restarts=frozenset(at // self._block for at in request.restarts),
        )

    def _is_rung(self, position: int) -> bool:
        blocks, rest = divmod(position, self._block)
        return not rest and is_rung(blocks, self._backend.info.state_grows)

    def _hold(
        self, request: RequestCache, position: int, *, while_generating: bool = False
    ) -> bool:
        """Copy the sequence's state; whether it was worth it, and possible."""
        try:
            size = self._backend.checkpoint_bytes(request.line.kv_seq)
            if size > HELD_BYTES_LIMIT:
                return False
            if while_generating and position // self._block % blocks_between(size):
                return False
            while sum(map(len, request.states.values())) > HELD_BYTES_LIMIT - size:
                del request.states[min(request.states)]
            state = bytearray(size)
            self._backend.save_checkpoint(request.line.kv_seq, state)
        except NativeError:
            return False  # this position is stored as a link, the request is unharmed
        request.states[position] = state
        return True

    # ── looking up ──────────────────────────────────────────────────────────────────────────────

    def query(self, request: RequestCache) -> bytes:
        return tokens.pack(query(request.line.tokens, self._block))

    def restore(self, request: RequestCache, found: m.PrefixResolved) -> Restored:
        """Copy the longest usable checkpoint into the request's sequence, which is empty."""
        started = time.perf_counter()
        asked, n_tokens = self.query(request), len(request.line.tokens)
        root = self._plan.root_of(request.namespace)
        path = refs.unpack_blocks(found.blocks, root, asked)
        whole = [ref for ref in path if ref.n_used == ref.n_tokens or ref.is_tip]
        tried = self._restore_longest(request, whole)
        refused = {row.key for row in tried.refused}
        lost = min((ref.start for ref in path if ref.key in refused), default=None)
        known = [ref for ref in whole if ref.n_tokens == self._block and not ref.is_tip]
        n_known = len(known) if lost is None else min(len(known), lost // self._block)
        miss: Miss | None = None
        if tried.n_kv != n_tokens - 1:
            rejected = Miss(MissReason.ROW_REJECTED) if refused else tried.miss
            missed = _without_tip(found.miss, n_tokens - 1, self._block)
            miss = rejected or missed or Miss(MissReason.NO_CHECKPOINT_BEYOND, tried.n_kv)
        seconds = time.perf_counter() - started
        return replace(tried, miss=miss, n_stored_blocks=n_known, seconds=seconds)

    def _restore_longest(self, request: RequestCache, rows: list[BlockRef]) -> Restored:
        """Try the last row first. The sequence is empty again after each row that fails."""
        rejected: list[m.RowRejected] = []
        why: Miss | None = None
        for ref in reversed(rows):
            piece = Piece(ref.tier, ref.row_bytes, ref.start + ref.n_tokens)
            if _is_link(ref):
                continue
            if not self.rates.worth_restoring([piece]):
                why = Miss(MissReason.RESTORE_WOULD_BE_SLOWER, 0)
                continue
            started = time.perf_counter()
            try:
                reached = self._restore_row(request, ref)
            except StateRefused:
                rejected.append(m.RowRejected(ref.key, ref.tier, "state refused"))
                continue
            except (CacheError, OSError) as error:
                rejected.append(m.RowRejected(ref.key, ref.tier, str(error)))
                continue
            except NativeError as error:
                why = Miss(MissReason.NOT_RESTORED, detail=type(error).__name__)
                break
            if reached:
                return Restored(
                    why,
                    0,
                    n_kv=reached,
                    source=max("none", ref.tier, key=slowness),
                    refused=tuple(rejected),
                    read=(piece,),
                    read_seconds=time.perf_counter() - started,
                )
        return Restored(why, 0, n_kv=0, refused=tuple(rejected))

    def _restore_row(self, request: RequestCache, ref: BlockRef) -> int:
        """Restore a row's state; how many tokens the sequence holds then, 0 for a link."""
        n_tokens = ref.start + ref.n_tokens - ref.is_tip
        if not 1 <= n_tokens < len(request.line.tokens):
            return 0
        expected = request.line.packed(ref.start, n_tokens)
        root = self._plan.root_of(request.namespace)
        row = self._reader.open_checked(ref, root, TIP_MARK + expected if ref.is_tip else expected)
        try:
            held = row.header.id.n_tokens
            if held != ref.n_tokens:
                raise CacheError(f"the row holds {held} tokens, not {ref.n_tokens}")
            if not row.header.payload_bytes:
                return 0
            self._backend.restore_checkpoint(request.line.kv_seq, n_tokens, row.payload)
        finally:
            row.close()
        return n_tokens

    # ── saving ──────────────────────────────────────────────────────────────────────────────────

    def completes_block(self, request: RequestCache) -> bool:
        """While it generates, rungs only: what is between two checkpoints is of no use alone."""
        blocks, rest = divmod(request.line.n_kv, self._block)
        return (
            self.unusable_because is None
            and not rest
            and self._is_rung(request.line.n_kv)
            and (blocks > request.n_stored_blocks)
        )

    def new_rows(self, request: RequestCache) -> list[m.RowWanted]:
        if request.save_upto < self._policy.min_tokens:
            return []
        rows: list[m.RowWanted] = []
        for blocks in range(request.n_stored_blocks + 1, request.save_upto // self._block + 1):
            if len(rows) == ROWS_PER_MESSAGE:
                return rows
            start, end = (blocks - 1) * self._block, blocks * self._block
            state = request.states.get(end, b"")
            packed = request.line.packed(start, end)
            rows.append(self._plan.state_row(request, start, packed, len(state)))
        return rows + self._ends(request)

    def _ends(self, request: RequestCache) -> list[m.RowWanted]:
        """Rows that are no blocks: tips, and the link that ``finish_key`` names.

        The tip of the prompt, and that of all tokens where the request steps aside or has ended.
        """
        line, ends = request.line, list[m.RowWanted]()
        lasts = {line.n_prompt - 1}
        if request.is_finished or (request.is_leaving and line.n_kv == len(line.tokens) - 1):
            lasts.add(line.n_kv)
        for last in sorted(lasts & request.states.keys()):
            start = last // self._block * self._block
            if start == last and last // self._block > request.n_stored_blocks:
                continue  # its block has the state
            of_tip = TIP_MARK + line.packed(start, last)
            n_bytes = len(request.states[last])
            ends.append(self._plan.state_row(request, start, of_tip, n_bytes))
        upto = request.save_upto
        at = upto // self._block * self._block
        if request.is_finished and at < upto and self._policy.save_finish_tail:
            link = self._plan.state_row(request, at, request.line.packed(at, upto), 0)
            if link.key != request.stored_tail:
                ends.append(link)
        return ends

    def was_offered(self, request: RequestCache, row: m.RowWanted) -> None:
        request.states.pop(_end_of(row), None)
        if row.tokens.startswith(TIP_MARK):
            return
        if tokens.count(row.tokens) == self._block:
            request.n_stored_blocks = row.start // self._block + 1
        else:
            request.stored_tail = row.key

    def write(self, request: RequestCache, row: m.RowWanted, grant: Grant) -> bool:
        state: bytes | bytearray = b""
        if row.row_bytes != self._plan.state_row_bytes(row.tokens, 0):
            state = request.states.get(_end_of(row), b"")
            if row.row_bytes != self._plan.state_row_bytes(row.tokens, len(state)):
                return False  # it gave way to other states since it was offered
        return self._writer.write_state(row, grant, request.save_reason, state)


def _end_of(row: m.RowWanted) -> int:
    """How many tokens of the sequence come before the row's end."""
    return row.start + tokens.count(row.tokens) - row.tokens.startswith(TIP_MARK)


def _without_tip(miss: Miss | None, n_asked: int, block: int) -> Miss | None:
    """Where a prompt parted from what is stored, counted without the mark of its tip."""
    if miss is None or miss.at is None or miss.at <= n_asked // block * block:
        return miss
    return Miss(miss.reason, miss.at - 1)


def _is_link(ref: BlockRef) -> bool:
    return ref.row_bytes <= row_bytes(ref.n_tokens, LINK_META_BYTES)
