"""Writes rows into memory of the arena that cache_meta has granted, by one copy from the context.

Runs on the engine thread. A row that cannot be written costs nothing but the row: cache_meta counts
it as abandoned, and the request is unharmed.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable

from actors import messages as m
from actors.kv.prompt_logits import append_logits
from actors.kv.request_cache import DeferredTail, Grant
from actors.kv.row_plan import RowPlan
from actors.kv.save_stats import SaveTimes
from cache import tokens
from cache.arena import SlabWriter
from cache.errors import CacheError
from cache.rows import RowHeader, SaveReason
from native.backend import Backend
from native.errors import NativeError


class RowWriter:
    """Writes the rows of one model."""

    def __init__(
        self,
        backend: Backend,
        plan: RowPlan,
        *,
        arena_path: str | None,
        granted_by: Callable[[], int | None],
    ) -> None:
        """``granted_by`` returns which incarnation of cache_meta is up, ``None`` if none is."""
        self._backend = backend
        self._plan = plan
        self._arena_path = arena_path or ""
        self._granted_by = granted_by
        self.saved = SaveTimes()

    def is_granted(self, incarnation: int) -> bool:
        """Whether the grants of this incarnation of cache_meta hold.

        They are void once it has ended: the next one may grant the same memory to another process.
        """
        return incarnation == self._granted_by()

    def write_tail(self, seq: int, tail: DeferredTail, reason: SaveReason) -> bool:
        """Write a tail that was put off, from the sequence that holds it; whether that worked."""
        return self.write_block(seq, tail.row, tail.grant, reason, tail.logits)

    def write_block(
        self,
        seq: int,
        row: m.RowWanted,
        grant: Grant,
        reason: SaveReason,
        logits: tuple[int, array[float]] | None,
    ) -> bool:
        """Write the KV of a row's tokens, and the prompt's logits; whether that worked."""
        n_tokens = tokens.count(row.tokens)
        kv_bytes = self._plan.block_bytes(n_tokens)
        n_bytes = kv_bytes if logits is None else kv_bytes + self._plan.logits_bytes
        meta = self._plan.meta(row.marks, with_logits=logits is not None, ends=grant.ends)

        def fill(payload: memoryview) -> None:
            self._backend.save_block(seq, row.start, row.start + n_tokens, payload)
            if logits is not None:
                payload[kv_bytes:] = append_logits(*logits)

        return self._write(row, grant, reason, meta, n_bytes, fill)

    def write_state(
        self, row: m.RowWanted, grant: Grant, reason: SaveReason, state: bytes | bytearray
    ) -> bool:
        """Write a row with the state of a whole sequence, or a link if that is empty."""

        def fill(payload: memoryview) -> None:
            payload[:] = state

        meta = self._plan.meta(b"", with_logits=False, ends=grant.ends)
        return self._write(row, grant, reason, meta, len(state), fill)

    def _write(
        self,
        row: m.RowWanted,
        grant: Grant,
        reason: SaveReason,
        meta: bytes,
        payload_bytes: int,
        fill: Callable[[memoryview], None],
    ) -> bool:
        if not self.is_granted(grant.incarnation):
            return False
        started = time.perf_counter_ns()
        header = RowHeader(
            row.identity(grant.root),
            payload_bytes=payload_bytes,
            reason=reason,
            created_unix_s=time.time(),
        )
        try:
            writer = SlabWriter(self._arena_path, grant.offset, row.row_bytes)
            try:
                writer.begin(header, meta)
                fill(writer.payload)
                writer.publish()
            finally:
                writer.close()
        except (CacheError, NativeError, OSError):
            return False
        self.saved.note(row.row_bytes, time.perf_counter_ns() - started)
        return True
