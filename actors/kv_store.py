"""A model's side of the cache: what to ask for, how to restore it, how to write it.

Lives on the engine thread. It decides nothing about the index (``cache_meta`` does) and sends
nothing itself: it builds messages and moves bytes, one copy each way, between the context and rows
in the arena or in files. Every row passes the restore checklist (architecture §5): format, checksum
and key proof while its head is parsed, namespace and position here, the tokens themselves here, the
state's own header in ``native``, and the positions of the sequence afterwards.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping

from actors import messages as m
from actors.model_request import Request
from actors.payload import INLINE_LIMIT_BYTES, PayloadKeeper
from cache import keys, refs, tokens
from cache.answers import RAM, BlockRef
from cache.arena import ArenaReader, SlabWriter
from cache.errors import CacheError
from cache.filesystem import PosixFilesystem
from cache.policy import SavePolicy, Span, at_finish, at_prompt_end, while_generating
from cache.publish import MappedRow, open_row
from cache.rows import RowHeader, encode_meta, row_bytes
from native.backend import Backend
from native.errors import NativeError, StateRefused

ROWS_PER_MESSAGE = 128  # with 64-token blocks about 45 KiB, under the 64 KiB of a message
# Everything is worth a row by default: even a short prompt that comes again then hits to its last
# token, and the index gives up the least valuable rows first when room is needed.
SAVE_ALL = SavePolicy(min_tokens=1, min_tail_tokens=1)
SOURCES_BY_SPEED = ("none", "live", "ram", "ram_file", "disk")


class KvStore:
    """Rows of one model: looked up, restored and saved for its engine.

    ``granted_by`` tells which incarnation of cache_meta is alive now.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        root: bytes,
        holder: str,
        label: str,
        arena_path: str | None,
        tier_dirs: Mapping[str, str],
        granted_by: Callable[[], int | None],
        policy: SavePolicy = SAVE_ALL,
    ) -> None:
        self._backend = backend
        self._root = root
        self._holder = holder
        self._meta = encode_meta({"model": label})
        self._granted_by = granted_by
        self._policy = policy
        self._block = policy.block_tokens
        self._tier_dirs = dict(tier_dirs)
        self._files = PosixFilesystem()
        self._arena_path = arena_path
        self._arena: ArenaReader | None = None
        self._wanted: dict[str, dict[bytes, m.RowWanted]] = {}
        self._keepers: dict[str, PayloadKeeper] = {}
        self.unusable_because = ""
        if arena_path is None:
            self.unusable_because = "cache_off"
        elif not backend.info.can_cut:
            self.unusable_because = "model_cannot_be_cut"

    @property
    def is_usable(self) -> bool:
        return not self.unusable_because

    # ── looking up ──────────────────────────────────────────────────────────────────────────────

    def lookup(self, request: Request) -> m.LookupPrefix:
        """Ask for the longest stored prefix of the request's prompt."""
        ref = uuid.uuid4().hex
        packed = tokens.pack(request.tokens)
        keeper = PayloadKeeper(packed)
        if len(packed) > INLINE_LIMIT_BYTES:
            self._keepers[ref] = keeper
        return m.LookupPrefix(ref, self._holder, self._root, keeper.payload)

    def parent_lookup(self, request: Request) -> m.ResolveParent:
        """Ask for the rows that the request's ``parent_key`` names."""
        return m.ResolveParent(
            uuid.uuid4().hex, self._holder, self._root, request.parent_key or b""
        )

    def answered(self, ref: str) -> None:
        """A lookup ended: its prompt need not be kept readable any more."""
        keeper = self._keepers.pop(ref, None)
        if keeper is not None:
            keeper.close()

    # ── restoring ───────────────────────────────────────────────────────────────────────────────

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

        At least the prompt's last token is left to decode: its logits choose the first new token.
        """
        started = time.perf_counter()
        request.missed(found.miss_reason)
        limit = min(found.n_tokens, len(request.tokens) - 1)
        prompt = tokens.pack(request.tokens)
        rows: list[MappedRow] = []
        sources: list[str] = []
        rejected: list[m.RowRejected] = []
        reached = 0
        for block in refs.unpack_blocks(found.blocks, self._root, prompt):
            if block.start >= limit:
                break
            n_used = min(block.n_used, limit - block.start)
            expected = tokens.cut(prompt, block.start, block.start + n_used)
            try:
                row = self._open(block)
                self._check(row, block.start, expected)
            except (CacheError, OSError) as error:
                rejected.append(m.RowRejected(block.key, block.tier, str(error)))
                break
            rows.append(row)
            sources.append(block.tier)
            reached = block.start + n_used
        blocks = [(row.header.start, row.header.n_tokens, row.payload) for row in rows]
        reached = self._apply(request.kv_seq, blocks, reached)
        for row in rows:
            row.close()
        if reached < limit:
            request.missed("row_rejected")
        request.n_kv = request.n_reused = reached
        request.n_stored_blocks = reached // self._block
        if found.n_tokens == len(request.tokens) and reached == limit:
            request.n_stored_blocks = found.n_tokens // self._block
        request.source = max(sources, key=SOURCES_BY_SPEED.index, default="none")
        request.restore_ms = 1e3 * (time.perf_counter() - started)
        return rejected

    def _apply(self, seq: int, blocks: list[tuple[int, int, memoryview]], reached: int) -> int:
        """Restore checked blocks; how many tokens the sequence holds afterwards."""
        if not blocks:
            return 0
        try:
            self._backend.restore_blocks(seq, blocks)
            start, n_tokens, _ = blocks[-1]
            if start + n_tokens > reached and not self._backend.seq_remove(seq, reached, -1):
                raise StateRefused("the restored sequence could not be cut")
            if self._backend.seq_range(seq) != (0, reached - 1):
                raise StateRefused("the restored sequence has other positions than its rows")
        except StateRefused:
            self._backend.seq_remove(seq, 0, -1)
            return 0
        return reached

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

    # ── saving ──────────────────────────────────────────────────────────────────────────────────

    def completes_block(self, request: Request) -> bool:
        """Whether a full block is in the context that was not offered to the cache yet."""
        return self.is_usable and request.n_kv // self._block > request.n_stored_blocks

    def tip_key(self, request: Request) -> bytes | None:
        """Key of the row that ends at the visible tip of the request."""
        n_tip = request.n_visible
        if not self.is_usable or not n_tip:
            return None
        full, rest = divmod(n_tip, self._block)
        parent = self._chain(request, full)
        if not rest:
            return parent
        return keys.child_key(parent, tokens.pack(request.tokens[full * self._block : n_tip]))

    def wanted(self, request: Request) -> m.ReserveRows | None:
        """What to store of the request's first ``save_upto`` tokens that was not offered before.

        At most ``ROWS_PER_MESSAGE`` rows, so that the message stays small; ask again for the rest.
        """
        if not self.is_usable:
            return None
        rows: list[m.RowWanted] = []
        for span in self._spans(request)[:ROWS_PER_MESSAGE]:
            row = self._row(request, span.start, span.start + span.n_tokens)
            if row.key != request.stored_tail:
                rows.append(row)
        if not rows:
            return None
        ref = uuid.uuid4().hex
        self._wanted[ref] = {row.key: row for row in rows}
        return m.ReserveRows(ref, self._holder, self._root, int(request.save_reason), tuple(rows))

    def _spans(self, request: Request) -> list[Span]:
        offered, upto = request.n_stored_blocks * self._block, request.save_upto
        if request.is_finished:
            return at_finish(self._policy, upto, offered)
        if upto == request.n_prompt:
            return at_prompt_end(self._policy, upto, offered)
        return while_generating(self._policy, upto, offered)

    def write(self, request: Request, grants: m.RowsReserved) -> m.RowsWritten:
        """Copy granted rows into the arena and mark what was offered as known to the cache."""
        offered = self._wanted.pop(grants.ref, {})
        granted = dict(grants.offsets)
        refused = dict(grants.refused)
        published: list[bytes] = []
        abandoned: list[bytes] = []
        for key, row in offered.items():
            if key in granted:
                # A new cache_meta may give the same memory to somebody else: look before each row.
                is_valid = grants.incarnation == self._granted_by()
                written = is_valid and self._write_row(request, row, granted[key])
                (published if written else abandoned).append(key)
            present = key in published or refused.get(key) == "already_present"
            n_tokens = tokens.count(row.tokens)
            if n_tokens == self._block:
                request.n_stored_blocks = row.start // self._block + 1
            else:
                request.stored_tail = row.key
            if present:
                request.stored_keys.add(key)
        return m.RowsWritten(self._holder, tuple(published), tuple(abandoned))

    def abandon(self, grants: m.RowsReserved) -> m.RowsWritten:
        """Give back reservations whose request is gone."""
        self._wanted.pop(grants.ref, None)
        return m.RowsWritten(self._holder, (), tuple(key for key, _ in grants.offsets))

    def forget(self, ref: str) -> None:
        """The cache did not answer this offer; nothing of it was written."""
        self._wanted.pop(ref, None)

    def close(self) -> None:
        if self._arena is not None:
            self._arena.close()
            self._arena = None
        for keeper in self._keepers.values():
            keeper.close()
        self._keepers.clear()

    def _chain(self, request: Request, n_blocks: int) -> bytes:
        """Key after ``n_blocks`` full blocks; extends the request's chain as far as needed."""
        while len(request.keys) < n_blocks:
            at = len(request.keys) * self._block
            parent = request.keys[-1] if request.keys else self._root
            block = tokens.pack(request.tokens[at : at + self._block])
            request.keys.append(keys.child_key(parent, block))
        return request.keys[n_blocks - 1] if n_blocks else self._root

    def _row(self, request: Request, start: int, end: int) -> m.RowWanted:
        parent = self._chain(request, start // self._block)
        packed = tokens.pack(request.tokens[start:end])
        payload_bytes = self._backend.block_bytes(end - start)
        return m.RowWanted(
            key=keys.child_key(parent, packed),
            parent=parent,
            start=start,
            tokens=packed,
            row_bytes=row_bytes(end - start, payload_bytes, self._meta),
        )

    def _write_row(self, request: Request, row: m.RowWanted, offset: int) -> bool:
        n_tokens = tokens.count(row.tokens)
        header = RowHeader(
            key=row.key,
            parent=row.parent,
            root=self._root,
            start=row.start,
            n_tokens=n_tokens,
            payload_bytes=self._backend.block_bytes(n_tokens),
            reason=request.save_reason,
            created_unix_s=time.time(),
        )
        try:
            writer = SlabWriter(self._arena_path or "", offset, row.row_bytes)
            try:
                writer.begin(header, row.tokens, self._meta)
                end = row.start + n_tokens
                self._backend.save_block(request.kv_seq, row.start, end, writer.payload)
                writer.publish()
            finally:
                writer.close()
        except (CacheError, NativeError, OSError):
            return False  # counted by cache_meta as abandoned; the request is unharmed
        return True
