"""Which rows the tokens of a request become: their keys, positions, sizes and metadata.

Values only: no clock, no disk, no native code. ``actors.kv.row_writer`` fills the rows.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from actors import messages as m
from actors.kv.namespace import Namespace, apart_from
from actors.kv.prompt_logits import KEPT_BYTES, LOGIT_BYTES
from actors.kv.request_cache import RequestCache
from actors.text.reply_marks import Mark
from cache import keys, tokens
from cache.finish_keys import ENDS_KEY, NO_ENDS
from cache.lru import LruMap
from cache.policy import (
    SavePolicy,
    Span,
    at_finish,
    at_prompt_end,
    when_aside,
    while_generating,
)
from cache.rows import RowIdentity, encode_meta, row_bytes
from cache.text_marks import META_KEY, RowMark, pack_marks
from native.backend import ModelInfo

LINK_META_BYTES: Final = 128
"""Metadata of a row is shorter, and every state that is worth opening a row for is longer."""
LOGITS_ROWS_KNOWN: Final = 1024
"""Prompts by key, and the tokens of a row: at most 400 bytes each."""
SALTED_KNOWN: Final = 256
"""Roots of namespaces with a salt that are not derived again: some 200 bytes each."""


class RowPlan:
    """The rows of one model in its namespaces."""

    def __init__(
        self,
        info: ModelInfo,
        block_bytes: Callable[[int], int],
        *,
        root: bytes,
        label: str,
        policy: SavePolicy,
    ) -> None:
        """``block_bytes`` returns the bytes of KV of so many tokens; ``label`` is for people."""
        self.root = root
        """Root key of the model's own namespace, see ``actors.kv.namespace``."""
        self._apart_root = apart_from(root)
        self._salted: LruMap[Namespace, bytes] = LruMap(SALTED_KNOWN)
        self.policy = policy
        self.block_tokens = policy.block_tokens
        self.block_bytes = block_bytes
        self.logits_bytes = LOGIT_BYTES * info.n_vocab + KEPT_BYTES
        self.can_cut = info.can_cut
        self._kv_bytes_per_token = info.kv_bytes_per_token
        self._label = label
        self._plain_meta = encode_meta({"model": label, ENDS_KEY: NO_ENDS})
        self._logits_rows: OrderedDict[bytes, bytes] = OrderedDict()

    def change_root(self, root: bytes) -> None:
        """Use other namespaces from now on; nothing may be under way in the old ones."""
        self.root, self._apart_root = root, apart_from(root)
        self._salted.clear()
        self._logits_rows.clear()

    def root_of(self, namespace: Namespace) -> bytes:
        """Root key of a namespace."""
        if not namespace.salt:
            return self._apart_root if namespace.is_apart else self.root
        root = self._salted.get(namespace)
        if root is None:
            root = namespace.root_in(self.root)
            self._salted.put(namespace, root)
        return root

    # ── keys ────────────────────────────────────────────────────────────────────────────────────

    def chain(self, request: RequestCache, n_blocks: int) -> bytes:
        """Key after ``n_blocks`` full blocks; extends the request's chain as far as needed."""
        known, root = request.keys, self.root_of(request.namespace)
        while len(known) < n_blocks:
            at = len(known) * self.block_tokens
            parent = known[-1] if known else root
            block = request.line.packed(at, at + self.block_tokens)
            known.append(keys.child_key(parent, block))
        return known[n_blocks - 1] if n_blocks else root

    def key_at(self, request: RequestCache, n_tokens: int) -> bytes:
        """Key of the row that ends after ``n_tokens``, stored or not."""
        full, rest = divmod(n_tokens, self.block_tokens)
        parent = self.chain(request, full)
        if not rest:
            return parent
        return keys.child_key(parent, request.line.packed(full * self.block_tokens, n_tokens))

    def prompt_key(self, request: RequestCache) -> bytes:
        """Key of the row that ends where the prompt does, stored or not."""
        return self.key_at(request, request.line.prompt_end)

    # ── rows of blocks ──────────────────────────────────────────────────────────────────────────

    def spans(self, request: RequestCache) -> list[Span]:
        """What is new below ``save_upto``, as whole blocks and perhaps a tail."""
        offered, upto = request.n_stored_blocks * self.block_tokens, request.save_upto
        if request.is_finished:
            return at_finish(self.policy, upto, offered)
        if request.is_leaving:
            return when_aside(self.policy, upto, offered)
        if upto == request.line.n_prompt:
            return at_prompt_end(self.policy, upto, offered)
        return while_generating(self.policy, upto, offered)

    def block_row(self, request: RequestCache, start: int, end: int) -> m.RowWanted:
        """The row of the KV of tokens ``start`` up to ``end``, perhaps with the prompt's logits."""
        parent = self.chain(request, start // self.block_tokens)
        packed = request.line.packed(start, end)
        n_bytes = self.block_bytes(end - start)
        with_logits = self._carries_logits(request, start, packed)
        marks = pack_marks([mark for mark in request.marks if start < mark.end <= end])
        meta = self.meta(marks, with_logits=with_logits)
        n_bytes += self.logits_bytes if with_logits else 0
        root = self.root_of(request.namespace)
        row = RowIdentity.after(parent, root, start, packed)
        return m.RowWanted.of(row, row_bytes(row.n_tokens, n_bytes, meta), marks)

    def meta(self, marks: bytes, *, with_logits: bool, ends: bytes = NO_ENDS) -> bytes:
        """Metadata of a row; its length does not depend on ``ends``."""
        if not marks and not with_logits and ends == NO_ENDS:
            return self._plain_meta
        facts: dict[str, object] = {"model": self._label, ENDS_KEY: ends}
        if marks:
            facts[META_KEY] = marks
        if with_logits:
            facts["logits_bytes"] = self.logits_bytes
        return encode_meta(facts)

    # ── rows of checkpoints ─────────────────────────────────────────────────────────────────────

    def state_row(
        self, request: RequestCache, start: int, packed: bytes, state_bytes: int
    ) -> m.RowWanted:
        """A row of packed tokens with a state of so many bytes; a link if that is 0."""
        parent = self.chain(request, start // self.block_tokens)
        root = self.root_of(request.namespace)
        row = RowIdentity.after(parent, root, start, packed)
        return m.RowWanted.of(row, self.state_row_bytes(packed, state_bytes))

    def state_row_bytes(self, packed: bytes, state_bytes: int) -> int:
        """Size of such a row."""
        return row_bytes(tokens.count(packed), state_bytes, self._plain_meta)

    @property
    def links_upto(self) -> int:
        """Rows of at most so many bytes are links, which hold no state; 0 where there are none."""
        return 0 if self.can_cut else row_bytes(self.block_tokens, LINK_META_BYTES)

    # ── the logits of a prompt ──────────────────────────────────────────────────────────────────

    def _carries_logits(self, request: RequestCache, start: int, packed: bytes) -> bool:
        """Whether the row holds the prompt's last token, and its logits are worth storing.

        They are, too, if they are stored with a tail that this row contains: that tail will go.
        """
        n_prompt, end = request.line.n_prompt, start + tokens.count(packed)
        is_here = start < n_prompt <= end and request.tip_logits is not None
        if not is_here or not self.can_cut:
            return False
        n_new = n_prompt - request.line.n_reused
        if self.policy.logits.stores(self.logits_bytes, n_new * self._kv_bytes_per_token):
            return True
        stored = request.logits_row or self._logits_rows.get(self.prompt_key(request), b"")
        return 0 < len(stored) < len(packed) and packed.startswith(stored)

    def logits_in(self, request: RequestCache, row: m.RowWanted) -> tuple[int, array[float]] | None:
        """The logits that go into a row, and after how many of its tokens they come."""
        if request.tip_logits is None:
            return None
        n_tokens = tokens.count(row.tokens)
        meta = self.meta(row.marks, with_logits=False)
        if row.row_bytes == row_bytes(n_tokens, self.block_bytes(n_tokens), meta):
            return None  # no room for them was asked for
        return request.line.n_prompt - row.start, request.tip_logits

    def logits_are_in(self, request: RequestCache, row: m.RowWanted) -> None:
        """The logits of the request's prompt are stored with this row."""
        self._logits_rows[self.prompt_key(request)] = row.tokens
        while len(self._logits_rows) > LOGITS_ROWS_KNOWN:
            self._logits_rows.popitem(last=False)

    # ── ends of replies ─────────────────────────────────────────────────────────────────────────

    def mark_end(self, request: RequestCache, mark: Mark) -> m.NoteReply:
        """Have the end of a reply stored with its row; the message with its position."""
        line = request.line
        n_rows = min(line.n_kv, mark.n_tokens)
        extra = line.packed(n_rows, mark.n_tokens)
        request.add_mark(RowMark(mark.digest, mark.n_bytes, mark.n_known, n_rows, extra))
        start = n_rows // self.block_tokens * self.block_tokens
        return m.NoteReply(
            mark.digest,
            mark.n_bytes,
            mark.n_known,
            self.chain(request, n_rows // self.block_tokens),
            start,
            line.packed(start, mark.n_tokens),
        )
