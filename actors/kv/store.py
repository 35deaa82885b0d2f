"""A model's side of the cache: what to look up, what to offer, what was granted.

Lives on the engine thread. It decides nothing about the index (``cache_meta`` does) and sends
nothing itself: it builds messages, and has a ``RowStore`` move the bytes. There are two of those:
``kv.block_store`` for models whose memory can be cut into blocks, and ``kv.checkpoint_store`` for
the others. ``kv.open_store`` puts the parts together.
"""

from __future__ import annotations

import uuid
from typing import Protocol

from actors import messages as m
from actors.kv.namespace import Namespace
from actors.kv.reader import RowReader
from actors.kv.request_cache import DeferredTail, Grant, RequestCache
from actors.kv.restore_cost import Rates
from actors.kv.restore_plan import Restored
from actors.kv.row_plan import RowPlan
from actors.kv.row_writer import RowWriter
from actors.messages.payload import INLINE_LIMIT_BYTES, Payload, PayloadKeeper
from cache.answers import MissReason, RefusalReason
from cache.finish_keys import NO_ENDS
from cache.policy import SavePolicy
from cache.tokens import TokenIds

ROWS_PER_MESSAGE = 128  # with 64-token blocks about 45 KiB, under the 64 KiB of a message


class RowStore(Protocol):
    """How the rows of one kind of model memory are read and written."""

    @property
    def unusable_because(self) -> MissReason | None:
        """Why nothing of this model can be stored, if nothing can."""
        ...

    def query(self, request: RequestCache) -> bytes:
        """Packed tokens whose longest stored prefix is looked up."""
        ...

    def restore(self, request: RequestCache, found: m.PrefixResolved) -> Restored:
        """Copy leased rows into the request's sequence, which is the only thing that changes."""
        ...

    def next_stop(self, request: RequestCache) -> int | None:
        """Position at which the prompt's reading is interrupted, to save the state there."""
        ...

    def reached(self, request: RequestCache) -> None:
        """A step has ended: the sequence stands at ``n_kv`` now."""
        ...

    def ends(self, request: RequestCache) -> None:
        """The reply has ended, and its sequence still stands; ``save_upto`` tokens are saved."""
        ...

    def leaves(self, request: RequestCache) -> None:
        """The request steps aside, and its sequence still stands at ``n_kv``."""
        ...

    def completes_block(self, request: RequestCache) -> bool:
        """Whether a full block is in the context that was not offered to the cache yet."""
        ...

    def new_rows(self, request: RequestCache) -> list[m.RowWanted]:
        """Rows of the first ``save_upto`` tokens that were not offered before.

        At most ``ROWS_PER_MESSAGE``, so that the message stays small.
        """
        ...

    def write(self, request: RequestCache, row: m.RowWanted, grant: Grant) -> bool | DeferredTail:
        """Write a granted row; whether that worked, or the row if it is written later."""
        ...

    def was_offered(self, request: RequestCache, row: m.RowWanted) -> None:
        """The row was granted or refused; it is not offered again."""
        ...


class KvStore:
    """Rows of one model: looked up, restored and saved for its engine."""

    def __init__(
        self,
        rows: RowStore,
        plan: RowPlan,
        reader: RowReader,
        writer: RowWriter,
        rates: Rates,
        holder: str,
    ) -> None:
        """``holder`` names this process in leases and reservations."""
        self.rows = rows
        self.plan = plan
        self.writer = writer
        self.rates = rates
        self.holder = holder
        self._reader = reader
        self._offered: dict[str, tuple[m.RowWanted, ...]] = {}
        self._keepers: dict[str, PayloadKeeper] = {}

    @property
    def policy(self) -> SavePolicy:
        return self.plan.policy

    @property
    def root(self) -> bytes:
        """Root key of the model's own namespace."""
        return self.plan.root

    def root_of(self, request: RequestCache) -> bytes:
        """Root key of the namespace that the rows of a request lie in."""
        return self.plan.root_of(request.namespace)

    def change_root(self, root: bytes) -> None:
        """Use other namespaces from now on; nothing may be under way in the old ones."""
        self.plan.change_root(root)

    @property
    def can_cut(self) -> bool:
        """Whether KV can be restored up to any token."""
        return self.plan.can_cut

    @property
    def unusable_because(self) -> MissReason | None:
        return self.rows.unusable_because

    @property
    def is_usable(self) -> bool:
        return self.rows.unusable_because is None

    # ── looking up ──────────────────────────────────────────────────────────────────────────────

    def lookup(self, request: RequestCache) -> m.LookupPrefix:
        """Ask for the longest stored prefix of the request's prompt."""
        ref = uuid.uuid4().hex
        packed = self.rows.query(request)
        keeper = PayloadKeeper(packed)
        if len(packed) > INLINE_LIMIT_BYTES:
            self._keepers[ref] = keeper
        return m.LookupPrefix(ref, self.holder, self.root_of(request), keeper.payload)

    def prefetch(self, request: RequestCache, n_live: int) -> m.PrefetchPrefix:
        """Have rows copied into RAM that a queued request will look up; ``answered`` when it has.

        ``n_live`` of its tokens are in the context already.
        """
        ref = uuid.uuid4().hex
        packed = self.rows.query(request)
        keeper = self._keepers[ref] = PayloadKeeper(packed)
        n_tokens = len(request.line.tokens) - n_live
        slower: tuple[str, ...] = ()
        if self.can_cut:  # what a state takes is known when it is found
            slower = self.rates.slower_tiers(n_tokens, self.plan.block_bytes(n_tokens))
        links_upto = self.plan.links_upto
        root = self.root_of(request)
        return m.PrefetchPrefix(ref, self.holder, root, keeper.payload, n_live, slower, links_upto)

    def match(self, ref: str, packed: Payload, namespace: Namespace) -> m.LookupPrefix:
        """Ask how much of these tokens is stored in a namespace."""
        root = self.plan.root_of(namespace)
        return m.LookupPrefix(ref, self.holder, root, packed)

    def parent_lookup(self, request: RequestCache) -> m.ResolveParent:
        """Ask for the rows that the request's ``parent_key`` names."""
        ref = uuid.uuid4().hex
        root = self.root_of(request)
        return m.ResolveParent(ref, self.holder, root, request.parent_key or b"")

    def text_lookup(self, request: RequestCache, candidates: bytes) -> m.ResolveText:
        """Ask which tokens stand for the beginning of the request's text."""
        root = self.root_of(request)
        return m.ResolveText(uuid.uuid4().hex, self.holder, root, candidates)

    def answered(self, ref: str) -> None:
        """A lookup ended: its prompt need not be kept readable any more."""
        keeper = self._keepers.pop(ref, None)
        if keeper is not None:
            keeper.close()

    def read_parent(self, found: m.PrefixResolved) -> TokenIds | None:
        """The tokens of a parent's rows, or ``None`` when it is not wholly stored."""
        return self._reader.read_parent(found)

    # ── saving ──────────────────────────────────────────────────────────────────────────────────

    def tip_key(self, request: RequestCache, n_visible: int) -> bytes | None:
        """Key of the row that ends at the visible tip of the request."""
        if not self.is_usable or not n_visible:
            return None
        key = self.plan.key_at(request, n_visible)
        full, rest = divmod(n_visible, self.plan.block_tokens)
        if not rest and full <= request.n_stored_blocks:
            request.stored_keys.add(key)  # found or shared, so it is not offered
        return key

    def offer(self, request: RequestCache) -> m.ReserveRows | None:
        """Offer the rows that are new, as many as one message holds; offer again for the rest."""
        rows = tuple(self.rows.new_rows(request)) if self.is_usable else ()
        if not rows:
            return None
        ref = uuid.uuid4().hex
        self._offered[ref] = rows
        root = self.root_of(request)
        return m.ReserveRows(ref, self.holder, root, int(request.save_reason), rows)

    def write(self, request: RequestCache, grants: m.RowsReserved) -> m.RowsWritten:
        """Write granted rows, and note what was offered as known to the cache."""
        granted, refused, ends = dict(grants.offsets), dict(grants.refused), dict(grants.ends)
        root = self.root_of(request)
        published: list[bytes] = []
        abandoned: list[bytes] = []
        for row in self._offered.pop(grants.ref, ()):
            key = row.key
            if key in granted:
                grant = Grant(granted[key], grants.incarnation, root, ends.get(key, NO_ENDS))
                written = self.rows.write(request, row, grant)
                if isinstance(written, DeferredTail):
                    request.deferred_tail = written
                    request.stored_keys.add(key)
                else:
                    (published if written else abandoned).append(key)
            self.rows.was_offered(request, row)
            if key in published or refused.get(key) is RefusalReason.ALREADY_PRESENT:
                request.stored_keys.add(key)
        if RefusalReason.NO_PARENT in refused.values() and not request.is_offered_again:
            # What a live sequence had stored was evicted meanwhile: offer it all, once.
            request.is_offered_again = True
            request.n_stored_blocks, request.stored_tail = 0, None
        return m.RowsWritten(self.holder, tuple(published), tuple(abandoned))

    def abandon(self, grants: m.RowsReserved) -> m.RowsWritten:
        """Give back reservations whose request is gone."""
        self._offered.pop(grants.ref, None)
        return m.RowsWritten(self.holder, (), tuple(key for key, _ in grants.offsets))

    def forget(self, ref: str) -> None:
        """The cache did not answer this offer; nothing of it was written."""
        self._offered.pop(ref, None)

    def close(self) -> None:
        self._reader.close()
        for keeper in self._keepers.values():
            keeper.close()
        self._keepers.clear()
