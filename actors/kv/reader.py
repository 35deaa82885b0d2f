"""Restoring: from leased rows, in the arena or in files, into a request's sequence, by one copy.

Every row is checked before it is used: format, checksum and key proof while its head is parsed,
namespace, position and the tokens themselves here, the state's own header in ``native``, and the
positions of the sequence afterwards. A row that fails is reported, so that it
is dropped and can be stored again; what was good before it is used.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from actors import messages as m
from actors.kv import prompt_logits
from actors.kv.request_cache import RequestCache
from actors.kv.restore_cost import Rates
from actors.kv.restore_plan import Restored, piece_of, plan_restore
from actors.kv.row_plan import RowPlan
from cache import refs, tokens
from cache.answers import RAM, BlockRef, Miss, MissReason
from cache.arena import ArenaReader
from cache.errors import CacheError
from cache.filesystem import PosixFilesystem
from cache.publish import open_row
from cache.rows import MappedRow
from cache.tokens import TokenIds
from native.backend import Backend
from native.errors import NativeError, NoKvSpace, StateRefused
from native.machine import usable_cpus

SOURCES_BY_SPEED = ("none", "live", "ram", "ram_file", "disk")


FILES_SIDE_BY_SIDE = 4  # fewer are verified before threads have started
VERIFY_THREADS = min(8, usable_cpus())  # BLAKE3 lets go of the interpreter


def slowness(source: str) -> int:
    """Order of the places KV comes from; all disks (disk, disk2, …) are the slowest."""
    return SOURCES_BY_SPEED.index(source.rstrip("0123456789"))


@dataclass(frozen=True, slots=True)
class _Row:
    """A row that passed its checks, open to be restored, of which tokens before ``end`` count."""

    ref: BlockRef
    mapped: MappedRow
    end: int
    kv_bytes: int
    """The payload's first bytes; logits may follow."""

    @property
    def block(self) -> tuple[int, int, memoryview]:
        """What ``Backend.restore_block`` takes: start, number of tokens, payload."""
        row = self.mapped
        if row.payload.nbytes <= self.kv_bytes:
            return self.ref.start, row.header.id.n_tokens, row.payload
        return self.ref.start, row.header.id.n_tokens, row.payload[: self.kv_bytes]


class RowReader:
    """Reads rows of one model for one engine."""

    def __init__(
        self,
        backend: Backend,
        *,
        plan: RowPlan,
        arena_path: str | None,
        tier_dirs: Mapping[str, str],
        rates: Rates | None = None,
    ) -> None:
        self._backend = backend
        self._plan = plan
        self._block = plan.block_tokens
        self._tier_dirs = dict(tier_dirs)
        self._rates = rates or Rates()
        self._files = PosixFilesystem()
        self._arena_path = arena_path
        self._arena: ArenaReader | None = None

    def close(self) -> None:
        if self._arena is not None:
            self._arena.close()
            self._arena = None

    def read_parent(self, found: m.PrefixResolved) -> TokenIds | None:
        """The tokens of a parent's rows, or ``None`` when it is not (wholly) stored."""
        if not found.n_tokens:
            return None
        whole: list[bytes] = []
        try:
            for block in refs.unpack_blocks(found.blocks):
                row = self._open(block)
                row.payload.release()
                whole.append(tokens.cut(row.header.id.tokens, 0, block.n_used))
        except (CacheError, OSError):
            return None
        ids = TokenIds.unpacked(b"".join(whole))
        return ids if len(ids) == found.n_tokens else None

    def restore(self, request: RequestCache, found: m.PrefixResolved) -> Restored:
        """Copy what was found into the request's sequence; what came of it.

        The prompt's last token is left to decode, since its logits choose the first new token,
        unless those logits are known or lie behind the last row. What the sequence shares already
        stays; the rows continue where its last whole block ends. Rows that would be slower to
        restore than to compute are left alone.
        """
        started = time.perf_counter()
        line = request.line
        prompt = line.packed()
        root = self._plan.root_of(request.namespace)
        stored = refs.unpack_blocks(found.blocks, root, prompt)
        plan = plan_restore(
            stored,
            n_found=found.n_tokens,
            n_usable=request.n_usable,
            n_kv=line.n_kv,
            block_tokens=self._block,
            miss=found.miss,
            worth_restoring=self._rates.worth_restoring,
        )
        if plan is None or not plan.is_worth_it:
            known = max(request.n_stored_blocks, found.n_tokens // self._block)
            return Restored(request.miss if plan is None else plan.miss, known)
        if plan.base < line.n_kv:
            self._backend.seq_remove(line.kv_seq, plan.base, -1)
        checked, rejected = self._checked(plan.rows, root, prompt, plan.limit)
        limit, miss = plan.limit, plan.miss
        logits: array[float] | None = None
        logits_row = b""
        if not rejected and limit == len(line.tokens) - 1:
            logits = self._logits_of(request, checked, prompt)
        if logits is not None:
            limit, logits_row = len(line.tokens), checked[-1].mapped.header.id.tokens
            checked[-1] = replace(checked[-1], end=limit)
        reached = plan.base
        try:
            reached, unusable = self._apply(line.kv_seq, checked, plan.base, limit)
            if unusable is not None:
                rejected.append(m.RowRejected(unusable.ref.key, unusable.ref.tier, "state refused"))
        except NativeError as error:
            self._backend.seq_remove(line.kv_seq, plan.base, -1)
            miss = Miss(MissReason.NOT_RESTORED, detail=type(error).__name__)
        for row in checked:
            row.mapped.close()
        if rejected:
            miss = Miss(MissReason.ROW_REJECTED)
        used = [row.ref.tier for row in checked if row.ref.start < reached]
        is_whole = reached == limit
        seconds = time.perf_counter() - started
        return Restored(
            miss,
            (found.n_tokens if is_whole else reached) // self._block,
            n_kv=reached,
            base=plan.base,
            source=max(used, key=slowness, default="none"),
            seconds=seconds,
            refused=tuple(rejected),
            read=tuple(piece_of(row.ref) for row in checked) if is_whole else (),
            read_seconds=seconds,
            first_logits=logits,
            logits_row=logits_row,
        )

    def _checked(
        self, refs: Sequence[BlockRef], root: bytes, prompt: bytes, limit: int
    ) -> tuple[list[_Row], list[m.RowRejected]]:
        """Open leased rows up to ``limit``, or to the first that fails."""
        opened = self._open_all(refs)
        checked: list[_Row] = []
        for at, (ref, mapped) in enumerate(zip(refs, opened, strict=True)):
            end = ref.start + min(ref.n_used, limit - ref.start)
            try:
                if isinstance(mapped, Exception):
                    raise mapped
                self._check(mapped, root, ref.start, tokens.cut(prompt, ref.start, end))
            except (CacheError, OSError) as error:
                for unused in opened[at:]:
                    if isinstance(unused, MappedRow):
                        unused.close()
                return checked, [m.RowRejected(ref.key, ref.tier, str(error))]
            kv_bytes = self._kv_bytes(mapped)
            checked.append(_Row(ref, mapped, end, kv_bytes))
        return checked, []

    def _open_all(self, refs: Sequence[BlockRef]) -> list[MappedRow | CacheError | OSError]:
        """Each row, or why it cannot be used. Digests of many files are computed side by side."""
        n_files = sum(ref.tier != RAM for ref in refs)
        if n_files < FILES_SIDE_BY_SIDE or VERIFY_THREADS < 2:
            return [self._try_open(ref) for ref in refs]
        with ThreadPoolExecutor(VERIFY_THREADS, thread_name_prefix="verify") as pool:
            return list(pool.map(self._try_open, refs))

    def _try_open(self, ref: BlockRef) -> MappedRow | CacheError | OSError:
        try:
            return self._open(ref)
        except (CacheError, OSError) as error:
            return error

    def _kv_bytes(self, row: MappedRow) -> int:
        """How much of the payload is KV: all, unless exactly one vocabulary of logits is left.

        A payload of any other size is not shortened, so that the backend refuses it.
        """
        kv_bytes = self._backend.block_bytes(row.header.id.n_tokens)
        logits_bytes = prompt_logits.KEPT_BYTES
        logits_bytes += prompt_logits.LOGIT_BYTES * self._backend.info.n_vocab
        has_logits = row.payload.nbytes == kv_bytes + logits_bytes
        return kv_bytes if has_logits else row.payload.nbytes

    def _logits_of(
        self, request: RequestCache, rows: Sequence[_Row], prompt: bytes
    ) -> array[float] | None:
        """The logits of the prompt's last position, if the row that it ends in carries them."""
        if not rows or not request.may_use_logits:
            return None
        last = rows[-1]
        kept = prompt_logits.read(last.mapped.payload, last.kv_bytes, self._backend.info.n_vocab)
        if kept is None or last.ref.start + kept[0] != tokens.count(prompt):
            return None
        expected = tokens.cut(prompt, last.ref.start)
        return kept[1] if last.mapped.header.id.tokens.startswith(expected) else None

    def _apply(self, seq: int, rows: list[_Row], base: int, limit: int) -> tuple[int, _Row | None]:
        """Restore checked rows: tokens that the sequence holds then, and a row that was refused.

        Whatever is raised leaves the sequence to be cut back to ``base`` by the caller.
        """
        if not rows:
            return base, None
        refused: _Row | None = None
        try:
            self._backend.restore_blocks(seq, [row.block for row in rows])
        except StateRefused:
            rows, refused = self._one_by_one(seq, rows)
        except NoKvSpace:
            # The last row may hold more tokens than are needed, and room was kept for those only.
            rows = rows[:-1]
            self._backend.restore_blocks(seq, [row.block for row in rows])
        reached = rows[-1].end if rows else base
        held = self._backend.seq_range(seq)
        if held is not None and held[1] >= reached:
            self._backend.seq_remove(seq, reached, -1)
            held = self._backend.seq_range(seq)
        if held != ((0, reached - 1) if reached else None):
            raise StateRefused(f"positions {held} after restoring {reached} of {limit} tokens")
        return reached, refused

    def _one_by_one(self, seq: int, rows: list[_Row]) -> tuple[list[_Row], _Row | None]:
        """Find the row that does not restore, and keep those before it."""
        for index, row in enumerate(rows):
            try:
                self._backend.restore_block(seq, *row.block)
            except StateRefused:
                return rows[:index], row
        return rows, None

    def open_checked(self, ref: BlockRef, root: bytes, expected: bytes) -> MappedRow:
        """Open a row that must hold these tokens, of this namespace; else CacheError or OSError."""
        row = self._open(ref)
        try:
            self._check(row, root, ref.start, expected)
        except CacheError:
            row.close()
            raise
        return row

    def _open(self, block: BlockRef) -> MappedRow:
        """Head, tokens and payload of a row, where it lies; a file's bytes are all verified."""
        if block.tier == RAM:
            if self._arena is None:
                self._arena = ArenaReader(self._arena_path or "")
            return self._arena.row(block.location or 0)
        return open_row(self._files, self._tier_dirs[block.tier], block.key)

    def _check(self, row: MappedRow, root: bytes, start: int, expected: bytes) -> None:
        found = row.header.id
        if found.root != root:
            raise CacheError("the row belongs to another namespace")
        if found.start != start:
            raise CacheError(f"the row starts at {found.start}, expected {start}")
        if not found.tokens.startswith(expected):
            raise CacheError("the row holds other tokens than the prompt")
