"""What the files of a killed node hold: which tokens of a prompt need not be computed again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.workload import Sequences
from cache.errors import CorruptRow
from cache.rows import MAX_HEAD_BYTES, RowHeader, RowIdentity, parse_header
from cache.tokens import unpack


class StoredRows:
    """The rows of a directory that no node uses, joined to whole sequences.

    ``can_cut``: a hit may end anywhere in a row; else, of recurrent and sliding-window models, only
    at the end of a checkpoint: most of their rows have no payload.
    """

    def __init__(self, cache: Path, *, can_cut: bool) -> None:
        found = [row for file in cache.rglob("*.kvb") if (row := _row(file)) is not None]
        rows = {row.key: row.id for row in found}
        self.n_rows = len(rows)
        self._can_cut = can_cut
        self._sequences = Sequences()
        self._checkpoints: set[tuple[int, ...]] = set()
        for row in found:
            tokens = _joined(row.id, rows)
            if tokens is not None:
                self._sequences.add(tokens)
                if row.payload_bytes:
                    self._checkpoints.add(tuple(tokens))

    def usable(self, prompt: Sequence[int]) -> int:
        """Tokens of the prompt that the rows hold; its last one must be computed in any case."""
        known = min(self._sequences.known(prompt), len(prompt) - 1)
        if self._can_cut:
            return known
        return next((n for n in range(known, 0, -1) if tuple(prompt[:n]) in self._checkpoints), 0)


def _row(file: Path) -> RowHeader | None:
    """None for a file that the next node will not take in either."""
    with file.open("rb") as opened:
        head = opened.read(MAX_HEAD_BYTES)
    try:
        return parse_header(head, file.stat().st_size)
    except CorruptRow:
        return None


def _joined(row: RowIdentity, rows: dict[bytes, RowIdentity]) -> list[int] | None:
    """The tokens from the beginning to the row's end; None where a row before it is missing."""
    parts = [row.tokens]
    while row.parent != row.root:
        if row.parent not in rows:
            return None
        row = rows[row.parent]
        parts.append(row.tokens)
    return unpack(b"".join(reversed(parts)))
