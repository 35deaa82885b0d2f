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
import uuid

from actors import messages as m
from actors.engine.request import Request
from actors.kv.checkpoint_plan import Stops, blocks_between, is_rung, query, tip
from actors.kv.reader import slowness
from actors.kv.restore_cost import Piece
from actors.kv.store import ROWS_PER_MESSAGE, KvStore
from cache import keys, refs, tokens
from cache.answers import BlockRef, Miss, MissReason
from cache.arena import SlabWriter
from cache.errors import CacheError
from cache.rows import RowHeader, row_bytes
from native.errors import NativeError, StateRefused

HELD_BYTES_LIMIT = 256 << 20
"""States that one request may hold until they are written; the shortest give way."""
LINK_META_BYTES = 128
"""Metadata of a row is shorter, and every state that is worth opening a row for is longer."""


class CheckpointStore(KvStore):
    """Rows of a model whose memory is saved as checkpoints."""

    def _why_unusable(self) -> MissReason | None:
        if self._arena_path is None:
            return MissReason.CACHE_OFF
        return MissReason.MODEL_CANNOT_BE_CUT if self._backend.info.memory == "none" else None

    # ── taking states ───────────────────────────────────────────────────────────────────────────

    def next_stop(self, request: Request) -> int | None:
        if not self._is_worth_it(request):
            return None
        return self._stops(request).after(request.n_kv)

    def reached(self, request: Request) -> None:
        if not self._is_worth_it(request):
            return
        at = request.n_kv
        if at < request.n_prompt:
            if self._stops(request).is_stop(at):
                self._hold(request, at)
            return
        blocks, rest = divmod(at, self._block)
        if rest or blocks <= request.n_stored_blocks or not self._policy.save_while_generating:
            return
        # The next turn goes on from the last of these; one that is no rung was only kept till now.
        older = [p for p in request.states if p >= request.n_prompt and not self._is_rung(p)]
        if self._hold(request, at, while_generating=True):
            for position in older:
                request.states.pop(position, None)

    def _is_worth_it(self, request: Request) -> bool:
        return self.is_usable and request.n_prompt >= self._policy.min_tokens

    def _stops(self, request: Request) -> Stops:
        return Stops(
            n_prompt=request.n_prompt,
            block_tokens=self._block,
            grows=self._backend.info.state_grows,
            n_stored_blocks=request.n_stored_blocks,
            has_tip=request.n_reused == request.n_prompt - 1 or not self._policy.save_prompt_tail,
        )

    def _is_rung(self, position: int) -> bool:
        blocks, rest = divmod(position, self._block)
        return not rest and is_rung(blocks, self._backend.info.state_grows)

    def _hold(self, request: Request, position: int, *, while_generating: bool = False) -> bool:
        """Copy the sequence's state; whether it was worth it, and possible."""
        try:
            size = self._backend.checkpoint_bytes(request.kv_seq)
            if size > HELD_BYTES_LIMIT:
                return False
            if while_generating and position // self._block % blocks_between(size):
                return False
            while sum(map(len, request.states.values())) > HELD_BYTES_LIMIT - size:
                del request.states[min(request.states)]
            state = bytearray(size)
            self._backend.save_checkpoint(request.kv_seq, state)
        except NativeError:
            return False  # this position is stored as a link, the request is unharmed
        request.states[position] = state
        return True

    # ── looking up ──────────────────────────────────────────────────────────────────────────────

    def _query(self, request: Request) -> list[int]:
        return query(request.tokens, self._block)

    def restore(self, request: Request, found: m.PrefixResolved) -> list[m.RowRejected]:
        """Bring the longest usable checkpoint into the request's sequence; rows that failed."""
        started = time.perf_counter()
        asked = tokens.pack(self._query(request))
        rejected: list[m.RowRejected] = []
        path = refs.unpack_blocks(found.blocks, self._root, asked)
        whole = [ref for ref in path if ref.n_used == ref.n_tokens]
        reached, why = self._restore_longest(request, whole, asked, rejected)
        request.n_kv = request.n_reused = reached
        lost = min((ref.start for ref in path if self._is_among(ref, rejected)), default=None)
        known = [ref for ref in whole if ref.n_tokens == self._block and not _is_tip(ref, asked)]
        n_known = len(known) if lost is None else min(len(known), lost // self._block)
        request.n_stored_blocks = n_known
        if rejected:
            why = Miss(MissReason.ROW_REJECTED)
        if reached == len(request.tokens) - 1:
            request.missed(None)
        else:
            miss = _without_tip(found.miss, len(request.tokens) - 1, self._block)
            request.missed(why or miss or Miss(MissReason.NO_CHECKPOINT_BEYOND, reached))
        request.restore_ms = 1e3 * (time.perf_counter() - started)
        return rejected

    def _restore_longest(
        self, request: Request, rows: list[BlockRef], asked: bytes, rejected: list[m.RowRejected]
    ) -> tuple[int, Miss | None]:
        """Try the last row first; how many tokens are restored, and why no more if that is known.

        Rows that fail are added to ``rejected``; the sequence is empty again after each of them.
        """
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
                reached = self._restore_row(request, ref, asked)
            except StateRefused:
                rejected.append(m.RowRejected(ref.key, ref.tier, "state refused"))
                continue
            except (CacheError, OSError) as error:
                rejected.append(m.RowRejected(ref.key, ref.tier, str(error)))
                continue
            except NativeError as error:
                return 0, Miss(MissReason.NOT_RESTORED, detail=type(error).__name__)
            if reached:
                self.rates.saw_restore([piece], time.perf_counter() - started)
                request.source = max("none", ref.tier, key=slowness)
                return reached, why
        return 0, why

    @staticmethod
    def _is_among(ref: BlockRef, rejected: list[m.RowRejected]) -> bool:
        return any(row.key == ref.key for row in rejected)

    def _restore_row(self, request: Request, ref: BlockRef, asked: bytes) -> int:
        """Restore a row's state; how many tokens the sequence holds then, 0 for a link."""
        n_tokens = ref.start + ref.n_tokens - _is_tip(ref, asked)
        if not 1 <= n_tokens < len(request.tokens):
            return 0
        row = self._reader.open_checked(ref, tokens.cut(asked, ref.start, ref.start + ref.n_tokens))
        try:
            if row.header.n_tokens != ref.n_tokens:
                raise CacheError(f"the row holds {row.header.n_tokens} tokens, not {ref.n_tokens}")
            if not row.header.payload_bytes:
                return 0
            self._backend.restore_checkpoint(request.kv_seq, n_tokens, row.payload)
        finally:
            row.close()
        return n_tokens

    # ── saving ──────────────────────────────────────────────────────────────────────────────────

    def completes_block(self, request: Request) -> bool:
        """While it generates, rungs only: what is between two checkpoints is of no use alone."""
        blocks, rest = divmod(request.n_kv, self._block)
        return (
            self.is_usable
            and not rest
            and self._is_rung(request.n_kv)
            and (blocks > request.n_stored_blocks)
        )

    def wanted(self, request: Request) -> m.ReserveRows | None:
        if not self.is_usable or request.save_upto < self._policy.min_tokens:
            return None
        rows: list[m.RowWanted] = []
        for blocks in range(request.n_stored_blocks + 1, request.save_upto // self._block + 1):
            if len(rows) == ROWS_PER_MESSAGE:
                break
            start, end = (blocks - 1) * self._block, blocks * self._block
            state = request.states.get(end, b"")
            rows.append(self._want(request, start, request.tokens[start:end], state))
        else:
            rows += self._ends(request)
        if not rows:
            return None
        ref = uuid.uuid4().hex
        self._wanted[ref] = {row.key: row for row in rows}
        return m.ReserveRows(ref, self._holder, self._root, int(request.save_reason), tuple(rows))

    def _ends(self, request: Request) -> list[m.RowWanted]:
        """Rows that are no blocks: the prompt's tip, and the link that ``finish_key`` names."""
        ends: list[m.RowWanted] = []
        last = request.n_prompt - 1
        start = last // self._block * self._block
        is_a_block = start == last and last // self._block > request.n_stored_blocks
        if last in request.states and not is_a_block:
            of_prompt = tip(request.tokens[: request.n_prompt], self._block)
            ends.append(self._want(request, start, of_prompt, request.states[last]))
        upto = request.save_upto
        at = upto // self._block * self._block
        if request.is_finished and at < upto and self._policy.save_finish_tail:
            link = self._want(request, at, request.tokens[at:upto], b"")
            if link.key != request.stored_tail:
                ends.append(link)
        return ends

    def _want(
        self, request: Request, start: int, ids: list[int], state: bytes | bytearray
    ) -> m.RowWanted:
        parent = self._chain(request, start // self._block)
        packed = tokens.pack(ids)
        return m.RowWanted(
            key=keys.child_key(parent, packed),
            parent=parent,
            start=start,
            tokens=packed,
            row_bytes=row_bytes(len(ids), len(state), self._meta),
        )

    def _mark_offered(self, request: Request, row: m.RowWanted) -> None:
        request.states.pop(_end_of(row), None)
        if row.tokens.startswith(_TIP_BYTES):
            return
        if tokens.count(row.tokens) == self._block:
            request.n_stored_blocks = row.start // self._block + 1
        else:
            request.stored_tail = row.key

    def _is_late(self, request: Request, row: m.RowWanted) -> bool:
        del request, row  # its ends are links, and states of sequences that go on
        return False

    def _write_row(self, request: Request, row: m.RowWanted, offset: int, ends: bytes) -> bool:
        n_tokens = tokens.count(row.tokens)
        state: bytes | bytearray = b""
        if row.row_bytes != row_bytes(n_tokens, 0, self._meta):
            state = request.states.get(_end_of(row), b"")
            if row.row_bytes != row_bytes(n_tokens, len(state), self._meta):
                return False  # it gave way to other states since it was offered
        header = RowHeader(
            key=row.key,
            parent=row.parent,
            root=self._root,
            start=row.start,
            n_tokens=n_tokens,
            payload_bytes=len(state),
            reason=request.save_reason,
            created_unix_s=time.time(),
        )
        try:
            writer = SlabWriter(self._arena_path or "", offset, row.row_bytes)
            try:
                meta = self._meta_of(b"", with_logits=False, ends=ends)
                writer.begin(header, row.tokens, meta)
                writer.payload[:] = state
                writer.publish()
            finally:
                writer.close()
        except (CacheError, OSError):
            return False  # counted by cache_meta as abandoned; the request is unharmed
        return True


_TIP_BYTES = tokens.pack([tokens.TIP])


def _end_of(row: m.RowWanted) -> int:
    """How many tokens of the sequence come before the row's end."""
    return row.start + tokens.count(row.tokens) - row.tokens.startswith(_TIP_BYTES)


def _without_tip(miss: Miss | None, n_asked: int, block: int) -> Miss | None:
    """Where a prompt parted from what is stored, counted without the mark of its tip."""
    if miss is None or miss.at is None or miss.at <= n_asked // block * block:
        return miss
    return Miss(miss.reason, miss.at - 1)


def _is_link(ref: BlockRef) -> bool:
    return ref.row_bytes <= row_bytes(ref.n_tokens, LINK_META_BYTES)


def _is_tip(ref: BlockRef, asked: bytes) -> bool:
    return tokens.cut(asked, ref.start, ref.start + 1) == _TIP_BYTES
