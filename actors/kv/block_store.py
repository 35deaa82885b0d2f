"""The cache of a model whose memory can be cut: rows hold the KV of one block of tokens each.

Only the last row of a sequence, its tail, is shorter than a block. See ``actors.kv.store`` for what
is asked of this module, and docs/kv-cache-format.md for the rows.
"""

from __future__ import annotations

from actors import messages as m
from actors.kv.reader import RowReader
from actors.kv.request_cache import DeferredTail, Grant, RequestCache
from actors.kv.restore_plan import Restored
from actors.kv.row_plan import RowPlan
from actors.kv.row_writer import RowWriter
from actors.kv.store import ROWS_PER_MESSAGE
from cache import tokens
from cache.answers import MissReason


class BlockStore:
    """Rows of a model whose memory can be cut anywhere."""

    def __init__(
        self,
        plan: RowPlan,
        reader: RowReader,
        writer: RowWriter,
        unusable_because: MissReason | None,
    ) -> None:
        self._plan = plan
        self._reader = reader
        self._writer = writer
        self._block = plan.block_tokens
        self.unusable_because = unusable_because

    def query(self, request: RequestCache) -> bytes:
        return request.line.packed()

    def restore(self, request: RequestCache, found: m.PrefixResolved) -> Restored:
        return self._reader.restore(request, found)

    def next_stop(self, request: RequestCache) -> int | None:
        del request  # KV can be saved at any later time
        return None

    def reached(self, request: RequestCache) -> None:
        """Nothing to do: KV can be saved at any later time."""

    def ends(self, request: RequestCache) -> None:
        """Nothing to do: its rows are written before the sequence is freed."""

    def leaves(self, request: RequestCache) -> None:
        """Nothing to do: its rows are written before the sequence is freed."""

    def completes_block(self, request: RequestCache) -> bool:
        is_usable = self.unusable_because is None
        return is_usable and request.line.n_kv // self._block > request.n_stored_blocks

    def new_rows(self, request: RequestCache) -> list[m.RowWanted]:
        spans = self._plan.spans(request)[:ROWS_PER_MESSAGE]
        rows = [
            self._plan.block_row(request, span.start, span.start + span.n_tokens) for span in spans
        ]
        return [row for row in rows if row.key != request.stored_tail]

    def write(self, request: RequestCache, row: m.RowWanted, grant: Grant) -> bool | DeferredTail:
        logits = self._plan.logits_in(request, row)
        if logits is not None:
            self._plan.logits_are_in(request, row)
        if self._is_deferred(request, row):
            return DeferredTail(row, grant, logits)
        return self._writer.write_block(
            request.line.kv_seq, row, grant, request.save_reason, logits
        )

    def _is_deferred(self, request: RequestCache, row: m.RowWanted) -> bool:
        policy = self._plan.policy
        is_tail = tokens.count(row.tokens) < self._block
        # A prompt that is too short to be shared live is found in a tier only.
        is_shared = request.line.n_prompt >= policy.live.min_tokens
        return is_tail and is_shared and request.is_finished and policy.tail_delay_ms > 0

    def was_offered(self, request: RequestCache, row: m.RowWanted) -> None:
        if tokens.count(row.tokens) == self._block:
            request.n_stored_blocks = row.start // self._block + 1
        else:
            request.stored_tail = row.key
