"""A model's side of the cache: what to ask for, how to restore it, how to write it.

Lives on the engine thread. It decides nothing about the index (``cache_meta`` does) and sends
nothing itself: it builds messages and moves bytes, one copy from the context into the arena here,
one copy back in ``actors.kv.reader``.
"""

from __future__ import annotations

import time
import uuid
from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping

from actors import messages as m
from actors.engine.request import Request
from actors.kv.deferred_tails import LateTail
from actors.kv.prompt_logits import KEPT_BYTES, LOGIT_BYTES, append_logits
from actors.kv.reader import KvReader
from actors.kv.restore_cost import Rates
from actors.kv.save_stats import SaveTimes
from actors.messages.payload import INLINE_LIMIT_BYTES, Payload, PayloadKeeper
from actors.text.reply_marks import Mark
from cache import keys, tokens
from cache.arena import SlabWriter
from cache.errors import CacheError
from cache.finish_keys import ENDS_KEY, NO_ENDS
from cache.policy import SAVE_ALL, SavePolicy, Span, at_finish, at_prompt_end, while_generating
from cache.rows import RowHeader, SaveReason, encode_meta, row_bytes
from cache.text_marks import META_KEY, RowMark, pack_marks
from native.backend import Backend
from native.errors import NativeError

LOGITS_ROWS_KNOWN = 1024  # prompts by key, and the tokens of a row: at most 400 bytes each
ROWS_PER_MESSAGE = 128  # with 64-token blocks about 45 KiB, under the 64 KiB of a message


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
        self._meta = encode_meta({"model": label, ENDS_KEY: NO_ENDS})
        self.rates = Rates(policy.restore)
        self._logits_bytes = LOGIT_BYTES * backend.info.n_vocab + KEPT_BYTES
        self._label = label
        self._granted_by = granted_by
        self._policy = policy
        self._block = policy.block_tokens
        self._arena_path = arena_path
        self._reader = KvReader(
            backend,
            root=root,
            block_tokens=policy.block_tokens,
            arena_path=arena_path,
            tier_dirs=tier_dirs,
            rates=self.rates,
        )
        self.saved = SaveTimes()
        self._logits_rows: OrderedDict[bytes, bytes] = OrderedDict()
        self._wanted: dict[str, dict[bytes, m.RowWanted]] = {}
        self._keepers: dict[str, PayloadKeeper] = {}
        self.unusable_because = self._why_unusable()

    def _why_unusable(self) -> str:
        if self._arena_path is None:
            return "cache_off"
        return "" if self._backend.info.can_cut else "model_cannot_be_cut"

    @property
    def root(self) -> bytes:
        """Root key of the namespace that all rows of here lie in."""
        return self._root

    def change_root(self, root: bytes) -> None:
        """Use another namespace from now on; nothing may be under way in the old one."""
        self._root = root
        self._logits_rows.clear()
        self._reader.change_root(root)

    @property
    def resume_wait_s(self) -> float:
        """How long a lookup may wait for rows that are being saved."""
        return self._policy.session_resume_wait_ms / 1e3

    @property
    def logits_memory_bytes(self) -> int:
        return self._policy.logits.memory_bytes

    @property
    def can_cut(self) -> bool:
        return self._backend.info.can_cut

    @property
    def is_usable(self) -> bool:
        return not self.unusable_because

    # ── looking up ──────────────────────────────────────────────────────────────────────────────

    def lookup(self, request: Request) -> m.LookupPrefix:
        """Ask for the longest stored prefix of the request's prompt."""
        ref = uuid.uuid4().hex
        packed = tokens.pack(self._query(request))
        keeper = PayloadKeeper(packed)
        if len(packed) > INLINE_LIMIT_BYTES:
            self._keepers[ref] = keeper
        return m.LookupPrefix(ref, self._holder, self._root, keeper.payload)

    def match(self, ref: str, packed: Payload) -> m.LookupPrefix:
        """Ask how much of these tokens is stored."""
        return m.LookupPrefix(ref, self._holder, self._root, packed)

    def _query(self, request: Request) -> list[int]:
        return request.tokens

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

    def read_parent(self, found: m.PrefixResolved) -> list[int] | None:
        return self._reader.read_parent(found)

    def restore(self, request: Request, found: m.PrefixResolved) -> list[m.RowRejected]:
        return self._reader.restore(request, found)

    # ── what only models that cannot be cut need (kv.checkpoint_store) ───────────────────────

    def next_stop(self, request: Request) -> int | None:
        """Position at which the prompt's reading is interrupted, to save the state there."""
        del request
        return None

    def reached(self, request: Request) -> None:
        """The sequence stands at ``n_kv`` now."""

    # ── saving ──────────────────────────────────────────────────────────────────────────────────

    def completes_block(self, request: Request) -> bool:
        """Whether a full block is in the context that was not offered to the cache yet."""
        return self.is_usable and request.n_kv // self._block > request.n_stored_blocks

    def logits_pay(self, request: Request) -> bool:
        return self._backend.info.can_cut and self._reader.logits_pay(request)

    def prompt_key(self, request: Request) -> bytes:
        """Key of the row that ends where the prompt does, stored or not."""
        full, rest = divmod(request.n_prompt or len(request.tokens), self._block)
        parent = self._chain(request, full)
        at = full * self._block
        return (
            keys.child_key(parent, tokens.pack(request.tokens[at : at + rest])) if rest else parent
        )

    def tip_key(self, request: Request) -> bytes | None:
        """Key of the row that ends at the visible tip of the request."""
        n_tip = request.n_visible
        if not self.is_usable or not n_tip:
            return None
        full, rest = divmod(n_tip, self._block)
        parent = self._chain(request, full)
        if not rest:
            if full <= request.n_stored_blocks:
                request.stored_keys.add(parent)  # found or shared, so nobody will offer it
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
        ends = dict(grants.ends)
        published: list[bytes] = []
        abandoned: list[bytes] = []
        for key, row in offered.items():
            logits = self._logits_in(request, row) if key in granted else None
            if logits is not None:
                self._note_logits(request, row)
            if key in granted and self._is_late(request, row):
                tail = LateTail(row, granted[key], grants.incarnation, logits)
                tail.ends = ends.get(key, NO_ENDS)
                request.late_tail = tail
                request.stored_keys.add(key)
            elif key in granted:
                # A new cache_meta may give the same memory to somebody else: look before each row.
                is_valid = self.is_granted(grants.incarnation)
                started = time.perf_counter_ns()
                written = is_valid and self._write_row(
                    request, row, granted[key], ends.get(key, NO_ENDS)
                )
                if written:
                    self.saved.note(row.row_bytes, time.perf_counter_ns() - started)
                (published if written else abandoned).append(key)
            present = key in published or refused.get(key) == "already_present"
            self._mark_offered(request, row)
            if present:
                request.stored_keys.add(key)
        if "no_parent" in refused.values() and not request.is_offered_anew:
            # What a live sequence had stored was evicted meanwhile: offer it all, once.
            request.is_offered_anew = True
            request.n_stored_blocks, request.stored_tail = 0, None
        return m.RowsWritten(self._holder, tuple(published), tuple(abandoned))

    def _mark_offered(self, request: Request, row: m.RowWanted) -> None:
        if tokens.count(row.tokens) == self._block:
            request.n_stored_blocks = row.start // self._block + 1
        else:
            request.stored_tail = row.key

    # ── tails that are written later, see actors.kv.deferred_tails ────────────────────────────────

    @property
    def tail_delay_s(self) -> float:
        return self._policy.tail_delay_ms / 1e3

    def is_granted(self, incarnation: int) -> bool:
        return incarnation == self._granted_by()

    def _is_late(self, request: Request, row: m.RowWanted) -> bool:
        is_tail = tokens.count(row.tokens) < self._block
        # A prompt that is too short to be shared live is found in a tier only.
        is_shared = request.n_prompt >= self._policy.live.min_tokens
        return is_tail and is_shared and request.is_finished and self._policy.tail_delay_ms > 0

    def write_tail(self, seq: int, tail: LateTail, reason: SaveReason) -> m.RowsWritten:
        """Write a tail that was held back, from the sequence that holds it."""
        started = time.perf_counter_ns()
        key = tail.row.key
        if not self._write_kv(seq, tail.row, tail.offset, reason, tail.logits, tail.ends):
            return m.RowsWritten(self._holder, (), (key,))
        self.saved.note(tail.row.row_bytes, time.perf_counter_ns() - started)
        return m.RowsWritten(self._holder, (key,), (), reason=int(reason))

    def given_up(self, tail: LateTail, *, continued: bool) -> m.RowsWritten:
        """Give back the room of a tail that is not written."""
        keys = (tail.row.key,)
        if continued:
            return m.RowsWritten(self._holder, (), (), keys)
        return m.RowsWritten(self._holder, (), keys)

    def ask_for(self, ref: str, row: m.RowWanted) -> m.ReserveRows:
        """Ask for the room of a tail once more."""
        return m.ReserveRows(ref, self._holder, self._root, int(SaveReason.FINISH), (row,))

    def abandon(self, grants: m.RowsReserved) -> m.RowsWritten:
        """Give back reservations whose request is gone."""
        self._wanted.pop(grants.ref, None)
        return m.RowsWritten(self._holder, (), tuple(key for key, _ in grants.offsets))

    def forget(self, ref: str) -> None:
        """The cache did not answer this offer; nothing of it was written."""
        self._wanted.pop(ref, None)

    def close(self) -> None:
        self._reader.close()
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
        with_logits = self._carries_logits(request, start, packed)
        marks = pack_marks([mark for mark in request.marks if start < mark.end <= end])
        meta = self._meta_of(marks, with_logits=with_logits)
        return m.RowWanted(
            key=keys.child_key(parent, packed),
            parent=parent,
            start=start,
            tokens=packed,
            row_bytes=row_bytes(
                end - start, payload_bytes + (self._logits_bytes if with_logits else 0), meta
            ),
            marks=marks,
        )

    def _meta_of(self, marks: bytes, *, with_logits: bool, ends: bytes = NO_ENDS) -> bytes:
        """Metadata of a row; its length does not depend on ``ends``."""
        if not marks and not with_logits and ends == NO_ENDS:
            return self._meta
        facts: dict[str, object] = {"model": self._label, ENDS_KEY: ends}
        if marks:
            facts[META_KEY] = marks
        if with_logits:
            facts["logits_bytes"] = self._logits_bytes
        return encode_meta(facts)

    def mark_end(self, request: Request, mark: Mark) -> m.NoteReply:
        """Have the end of a reply stored with its row, and say where it is."""
        n_rows = min(request.n_kv, mark.n_tokens)
        extra = tokens.pack(request.tokens[n_rows : mark.n_tokens])
        request.marks.append(RowMark(mark.digest, mark.n_bytes, mark.n_known, n_rows, extra))
        start = n_rows // self._block * self._block
        return m.NoteReply(
            mark.digest,
            mark.n_bytes,
            mark.n_known,
            self._chain(request, n_rows // self._block),
            start,
            tokens.pack(request.tokens[start : mark.n_tokens]),
        )

    def text_lookup(self, candidates: bytes) -> m.ResolveText:
        """Ask which tokens stand for the beginning of a text."""
        return m.ResolveText(uuid.uuid4().hex, self._holder, self._root, candidates)

    def _carries_logits(self, request: Request, start: int, packed: bytes) -> bool:
        """Whether the row holds the prompt's last token, and its logits are worth storing.

        They are, too, if they are stored with a tail that this row contains: that tail will go.
        """
        end = start + tokens.count(packed)
        is_here = start < request.n_prompt <= end and request.tip_logits is not None
        if not is_here or not self._backend.info.can_cut:
            return False
        n_new = request.n_prompt - request.n_reused
        if self._policy.logits.stores(
            self._logits_bytes, n_new * self._backend.info.kv_bytes_per_token
        ):
            return True
        stored = request.logits_row or self._logits_rows.get(self.prompt_key(request), b"")
        return 0 < len(stored) < len(packed) and packed.startswith(stored)

    def _logits_in(self, request: Request, row: m.RowWanted) -> tuple[int, array[float]] | None:
        """The logits that go into a row, and after how many of its tokens they come."""
        if request.tip_logits is None:
            return None
        n_tokens = tokens.count(row.tokens)
        meta = self._meta_of(row.marks, with_logits=False)
        if row.row_bytes == row_bytes(n_tokens, self._backend.block_bytes(n_tokens), meta):
            return None  # no room for them was asked for
        return request.n_prompt - row.start, request.tip_logits

    def _note_logits(self, request: Request, row: m.RowWanted) -> None:
        """The logits of the request's prompt are stored with this row."""
        self._logits_rows[self.prompt_key(request)] = row.tokens
        while len(self._logits_rows) > LOGITS_ROWS_KNOWN:
            self._logits_rows.popitem(last=False)

    def _write_row(self, request: Request, row: m.RowWanted, offset: int, ends: bytes) -> bool:
        logits = self._logits_in(request, row)
        return self._write_kv(request.kv_seq, row, offset, request.save_reason, logits, ends)

    def _write_kv(
        self,
        seq: int,
        row: m.RowWanted,
        offset: int,
        reason: SaveReason,
        logits: tuple[int, array[float]] | None,
        ends: bytes,
    ) -> bool:
        n_tokens = tokens.count(row.tokens)
        kv_bytes = self._backend.block_bytes(n_tokens)
        header = RowHeader(
            key=row.key,
            parent=row.parent,
            root=self._root,
            start=row.start,
            n_tokens=n_tokens,
            payload_bytes=kv_bytes if logits is None else kv_bytes + self._logits_bytes,
            reason=reason,
            created_unix_s=time.time(),
        )
        try:
            writer = SlabWriter(self._arena_path or "", offset, row.row_bytes)
            try:
                meta = self._meta_of(row.marks, with_logits=logits is not None, ends=ends)
                writer.begin(header, row.tokens, meta)
                self._backend.save_block(seq, row.start, row.start + n_tokens, writer.payload)
                if logits is not None:
                    writer.payload[kv_bytes:] = append_logits(*logits)
                writer.publish()
            finally:
                writer.close()
        except (CacheError, NativeError, OSError):
            return False  # counted by cache_meta as abandoned; the request is unharmed
        return True
