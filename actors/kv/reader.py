"""Restoring: from leased rows, in the arena or in files, into a request's sequence, by one copy.

Every row passes the restore checklist (architecture §5): format, checksum and key proof while its
head is parsed, namespace, position and the tokens themselves here, the state's own header in
``native``, and the positions of the sequence afterwards. A row that fails is reported, so that it
is dropped and can be stored again; what was good before it is used.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from actors import messages as m
from actors.engine.request import Request
from actors.kv import prompt_logits as first_logits
from actors.kv.restore_cost import Piece, Rates
from cache import refs, tokens
from cache.answers import RAM, BlockRef, Miss, MissReason
from cache.arena import ArenaReader
from cache.errors import CacheError
from cache.filesystem import PosixFilesystem
from cache.publish import MappedRow, open_row
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
            return self.ref.start, row.header.n_tokens, row.payload
        return self.ref.start, row.header.n_tokens, row.payload[: self.kv_bytes]


def _piece(ref: BlockRef) -> Piece:
    return Piece(ref.tier, ref.row_bytes, ref.n_used)


class KvReader:
    """Reads rows of one namespace for one engine."""

    def __init__(
        self,
        backend: Backend,
        *,
        root: bytes,
        block_tokens: int,
        arena_path: str | None,
        tier_dirs: Mapping[str, str],
        rates: Rates | None = None,
    ) -> None:
        self._backend = backend
        self._root = root
        self._block = block_tokens
        self._tier_dirs = dict(tier_dirs)
        self._rates = rates or Rates()
        self._files = PosixFilesystem()
        self._arena_path = arena_path
        self._arena: ArenaReader | None = None

    def change_root(self, root: bytes) -> None:
        """Read rows of another namespace from now on."""
        self._root = root

    def close(self) -> None:
        if self._arena is not None:
            self._arena.close()
            self._arena = None

    def read_parent(self, found: m.PrefixResolved) -> list[int] | None:
        """The tokens of a parent's rows, or ``None`` when it is not (wholly) stored."""
        if not found.n_tokens:
            return None
        whole: list[int] = []
        try:
            for block in refs.unpack_blocks(found.blocks):
                row = self._open(block)
                row.payload.release()
                whole += tokens.unpack(tokens.cut(row.tokens, 0, block.n_used))
        except (CacheError, OSError):
            return None
        return whole if len(whole) == found.n_tokens else None

    def restore(self, request: Request, found: m.PrefixResolved) -> list[m.RowRejected]:
        """Bring what was found into the request's sequence; rows that may not be used.

        The prompt's last token is left to decode, since its logits choose the first new token,
        unless those logits are known or lie behind the last row. What the sequence shares already
        stays; the rows go on where its last whole block ends. Rows that would be slower to restore
        than to compute are left alone, and the request says so.
        """
        started = time.perf_counter()
        limit = min(found.n_tokens, request.n_usable)
        known = max(request.n_stored_blocks, found.n_tokens // self._block)
        if limit <= request.n_kv and request.n_kv:
            request.n_stored_blocks = known
            return []  # what is live reaches further
        prompt = tokens.pack(request.tokens)
        stored = refs.unpack_blocks(found.blocks, self._root, prompt)
        request.missed(found.miss)
        n_worth = self._worth_it(request, stored, limit)
        if n_worth < limit and n_worth <= request.n_kv:
            request.n_stored_blocks = known
            return []
        limit = n_worth
        base = request.n_kv // self._block * self._block
        if base < request.n_kv:
            self._backend.seq_remove(request.kv_seq, base, -1)
            request.n_kv = request.n_live = base
        checked, rejected = self._checked(stored, prompt, base, limit)
        if not rejected and limit == len(request.tokens) - 1:
            limit, checked = self._with_logits(request, checked, limit)
        reached = base
        try:
            reached, unusable = self._apply(request.kv_seq, checked, base, limit)
            if unusable is not None:
                rejected.append(m.RowRejected(unusable.ref.key, unusable.ref.tier, "state refused"))
        except NativeError as error:
            self._backend.seq_remove(request.kv_seq, base, -1)
            request.missed(Miss(MissReason.NOT_RESTORED, detail=type(error).__name__))
        for row in checked:
            row.mapped.close()
        if rejected:
            request.missed(Miss(MissReason.ROW_REJECTED))
        request.n_kv = request.n_reused = reached
        whole = found.n_tokens if reached == limit else reached
        request.n_stored_blocks = whole // self._block
        used = [row.ref.tier for row in checked if row.ref.start < reached]
        request.source = max(used, key=slowness, default="none")
        seconds = time.perf_counter() - started
        request.restore_ms = 1e3 * seconds
        if reached == limit:
            self._rates.saw_restore([_piece(row.ref) for row in checked], seconds)
        return rejected

    def _worth_it(self, request: Request, stored: list[BlockRef], limit: int) -> int:
        """The position up to which rows are restored rather than computed."""
        held = request.n_kv
        rows = [ref for ref in stored if ref.start + ref.n_used > held and ref.start < limit]
        n_worth = self._rates.worth_restoring([_piece(ref) for ref in rows])
        if n_worth == len(rows):
            return limit
        request.missed(Miss(MissReason.RESTORE_WOULD_BE_SLOWER, rows[n_worth].start))
        return max(rows[n_worth].start, held)

    def _checked(
        self, stored: list[BlockRef], prompt: bytes, base: int, limit: int
    ) -> tuple[list[_Row], list[m.RowRejected]]:
        """Open the leased rows between ``base`` and ``limit``, up to the first that fails."""
        refs = [ref for ref in stored if base <= ref.start < limit]
        opened = self._open_all(refs)
        checked: list[_Row] = []
        for at, (ref, mapped) in enumerate(zip(refs, opened, strict=True)):
            end = ref.start + min(ref.n_used, limit - ref.start)
            try:
                if isinstance(mapped, Exception):
                    raise mapped
                self._check(mapped, ref.start, tokens.cut(prompt, ref.start, end))
            except (CacheError, OSError) as error:
                for unused in opened[at:]:
                    if isinstance(unused, MappedRow):
                        unused.close()
                return checked, [m.RowRejected(ref.key, ref.tier, str(error))]
            kv_bytes = self._kv_bytes(mapped)
            checked.append(_Row(ref, mapped, end, kv_bytes))
        return checked, []

    def _open_all(self, refs: list[BlockRef]) -> list[MappedRow | CacheError | OSError]:
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

    def logits_pay(self, request: Request) -> bool:
        """Whether kept logits are of use: they are of a prompt's last position."""
        return not request.n_generated

    def _kv_bytes(self, row: MappedRow) -> int:
        """How much of the payload is KV: all, unless exactly one vocabulary of logits is left.

        A payload of any other size is not shortened, so that the backend refuses it.
        """
        kv_bytes = self._backend.block_bytes(row.header.n_tokens)
        logits_bytes = first_logits.KEPT_BYTES
        logits_bytes += first_logits.LOGIT_BYTES * self._backend.info.n_vocab
        has_logits = row.payload.nbytes == kv_bytes + logits_bytes
        return kv_bytes if has_logits else row.payload.nbytes

    def _with_logits(
        self, request: Request, rows: list[_Row], limit: int
    ) -> tuple[int, list[_Row]]:
        """Use the whole prompt when the row it ends in carries the logits of its last position."""
        last = rows[-1] if rows and self.logits_pay(request) else None
        whole = len(request.tokens)
        if last is None:
            return limit, rows
        expected = tokens.pack(request.tokens[last.ref.start :])
        n_vocab = self._backend.info.n_vocab
        kept = first_logits.read(last.mapped.payload, last.kv_bytes, n_vocab)
        if kept is None or last.ref.start + kept[0] != whole:
            return limit, rows
        if not last.mapped.tokens.startswith(expected):
            return limit, rows
        request.first_logits, request.logits_row = kept[1], last.mapped.tokens
        return whole, [*rows[:-1], replace(last, end=whole)]

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
            # The last row may hold more tokens than are wanted, and room was kept for those only.
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

    def open_checked(self, ref: BlockRef, expected: bytes) -> MappedRow:
        """Open a row that must hold these tokens at this place; else CacheError or OSError."""
        row = self._open(ref)
        try:
            self._check(row, ref.start, expected)
        except CacheError:
            row.close()
            raise
        return row

    def _open(self, block: BlockRef) -> MappedRow:
        """Head, tokens and payload of a row, where it lies; a file's bytes are all verified."""
        if block.tier == RAM:
            if self._arena is None:
                self._arena = ArenaReader(self._arena_path or "")
            header, payload, stored = self._arena.row(block.location or 0)
            return MappedRow(header, stored, payload)
        return open_row(self._files, self._tier_dirs[block.tier], block.key)

    def _check(self, row: MappedRow, start: int, expected: bytes) -> None:
        if row.header.root != self._root:
            raise CacheError("the row belongs to another namespace")
        if row.header.start != start:
            raise CacheError(f"the row starts at {row.header.start}, expected {start}")
        if not row.tokens.startswith(expected):
            raise CacheError("the row holds other tokens than the prompt")
