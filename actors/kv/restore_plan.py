"""Which stored rows are restored into a sequence, and what came of it.

Pure: positions and counts of tokens in, positions out. ``actors.kv.reader`` opens the rows, checks
them and copies them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from actors import messages as m
from actors.kv.restore_cost import Piece
from cache.answers import BlockRef, Miss, MissReason


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What to restore behind position ``base``, up to ``limit``."""

    rows: tuple[BlockRef, ...]
    base: int
    """Tokens of the sequence that stay; the others are cut off, since rows begin there."""
    limit: int
    """Tokens that the sequence has afterwards, unless a row fails."""
    miss: Miss | None
    """Why no more is restored; ``None`` when everything that was asked for is."""
    is_worth_it: bool = True
    """False: the sequence stays as it is, since computing the rest is faster."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of it. Applied by ``RequestCache.was_restored``."""

    miss: Miss | None
    n_stored_blocks: int
    """Leading full blocks that are known to be stored."""
    n_kv: int | None = None
    """Tokens in the sequence now; ``None`` when it was not touched."""
    base: int = 0
    """Those of them that were there before, and stayed."""
    source: str = "none"
    """The slowest tier that something was read from."""
    seconds: float = 0.0
    refused: tuple[m.RowRejected, ...] = ()
    """Rows that failed a check, to be dropped from the cache."""
    read: tuple[Piece, ...] = ()
    """Rows whose restoring is worth learning from, and the seconds that it took."""
    read_seconds: float = 0.0
    first_logits: array[float] | None = None
    """Of the prompt's last position, where the last row carried them."""
    logits_row: bytes = b""
    """Tokens of that row."""


def piece_of(ref: BlockRef) -> Piece:
    """What restoring a row costs."""
    return Piece(ref.tier, ref.row_bytes, ref.n_used)


def plan_restore(
    stored: Sequence[BlockRef],
    *,
    n_found: int,
    n_usable: int,
    n_kv: int,
    block_tokens: int,
    miss: Miss | None,
    worth_restoring: Callable[[Sequence[Piece]], int],
) -> RestorePlan | None:
    """Plan the restoring of rows that hold the first ``n_found`` tokens of a prompt.

    ``n_usable`` of its tokens may be reused and ``n_kv`` are in the sequence. ``miss`` is why the
    cache holds no more. ``worth_restoring`` returns how many of consecutive rows to restore; the
    others are faster to compute. Rows begin at whole blocks, so a sequence that ends within one is
    cut back to its beginning. Returns ``None`` where the sequence reaches further already.
    """
    limit = min(n_found, n_usable)
    if n_kv and limit <= n_kv:
        return None
    useful = [ref for ref in stored if ref.start + ref.n_used > n_kv and ref.start < limit]
    n_worth = worth_restoring([piece_of(ref) for ref in useful])
    if n_worth < len(useful):
        at = useful[n_worth].start
        miss = Miss(MissReason.RESTORE_WOULD_BE_SLOWER, at)
        end = max(at, n_kv)
        if end < limit and end <= n_kv:
            return RestorePlan((), n_kv, n_kv, miss, is_worth_it=False)
        limit = end
    base = n_kv // block_tokens * block_tokens
    rows = tuple(ref for ref in stored if base <= ref.start < limit)
    return RestorePlan(rows, base, limit, miss)
