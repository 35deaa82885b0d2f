"""Prefetch: which rows queued requests will need in the arena, and what became of them.

Part of ``cache_meta``'s process; ``promotion`` orders the copies, in what time its own leave. Pure:
requests, rows and ends of copies come in, keys go out. Requests are served in the order in which
they were queued, each from its first row on. The rows that are held for them are bounded in bytes,
so that a long queue does not push out what others use.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cache.answers import RAM, BlockRef

SHARE: Final = 4
"""Of the arena, rows for queued requests take at most this part."""


class Waiting(NamedTuple):
    """Names a queued request."""

    holder: str
    """The process whose queue it is in."""
    ref: str


@dataclass(slots=True)
class _Queued:
    """What a request needs, first row first, and how many of these rows were seen to."""

    rows: Sequence[BlockRef]
    n_taken: int = 0
    n_advised: int = 0
    """Of them, how many were taken or named by ``take_unfitting``."""
    advised_bytes: int = 0
    is_refused: bool = False
    """One of them was, so the others get no room either, or are of no use without it."""


@dataclass(slots=True)
class _Row:
    """A row that was ordered for requests that still wait."""

    n_bytes: int
    needed_by: set[Waiting] = field(default_factory=set)
    is_copied: bool = False
    is_used: bool = False


def rows_to_prefetch(
    found: Sequence[BlockRef], *, n_live: int, slower: Iterable[str], links_upto: int
) -> list[BlockRef]:
    """The rows of a prompt that are worth having in the arena when it starts, in order of need.

    ``n_live`` tokens are in the model's context already. Rows in the tiers ``slower`` take longer
    to restore than to compute. ``links_upto``: with a memory that cannot be cut, one row is
    restored, the last one that is larger than this; 0: each is.
    """
    if links_upto:
        whole = [row for row in found if row.n_used == row.n_tokens or row.is_tip]
        found = [row for row in whole if row.row_bytes > links_upto][-1:]
    far = {RAM, *slower}
    return [row for row in found if row.tier not in far and row.start + row.n_used > n_live]


class Prefetch:
    """The queued requests of all models, and the rows that are copied for them."""

    def __init__(self, most_bytes: int) -> None:
        """Rows of at most ``most_bytes`` are held for them."""
        self._most_bytes = most_bytes
        self._queued: dict[Waiting, _Queued] = {}
        self._rows: dict[bytes, _Row] = {}
        self._copying: dict[bytes, int] = {}
        """Bytes of the rows that are being copied, also for requests that have ended."""
        self.held_bytes = 0
        """Of rows that are needed by requests that wait."""
        self._advised_bytes = 0
        self._is_full = False
        self._copied = self._copied_bytes = self._refused = self._advised = 0
        self._used = self._unused = self._unused_bytes = 0

    # ── requests ────────────────────────────────────────────────────────────────────────────────

    def begin(self, who: Waiting, rows: Sequence[BlockRef]) -> None:
        """A request waits, and needs these rows; more of them than before, if it is known."""
        queued = self._queued.setdefault(who, _Queued([]))
        known = {row.key for row in queued.rows}
        queued.rows = [*queued.rows, *(row for row in rows if row.key not in known)]

    def end(self, who: Waiting) -> None:
        """It has started, or does not wait any more; one that is not known is ignored."""
        queued = self._queued.pop(who, None)
        if queued is None:
            return
        self._advised_bytes -= queued.advised_bytes
        for ref in queued.rows:  # also those that are to be taken again, see ``copier_ended``
            row = self._rows.get(ref.key)
            if row is not None and who in row.needed_by:
                row.needed_by.discard(who)
                if not row.needed_by:
                    self._release(ref.key)

    def holder_exited(self, holder: str) -> None:
        """A process has ended, and its queue with it."""
        for who in [one for one in self._queued if one.holder == holder]:
            self.end(who)

    def found(self, blocks: Sequence[BlockRef]) -> None:
        """A request has started and reads these rows."""
        for block in blocks if self._rows else ():
            row = self._rows.get(block.key)
            if row is not None and row.is_copied and not row.is_used and block.tier == RAM:
                row.is_used = True
                self._used += 1

    # ── copies ──────────────────────────────────────────────────────────────────────────────────

    @property
    def n_copying(self) -> int:
        return len(self._copying)

    def is_copying(self, key: bytes) -> bool:
        return key in self._copying

    def take(self, limit: int, most_bytes: int) -> list[bytes]:
        """Keys of the next rows to copy, as far as they fit. Each ends in one of the calls below.

        At most ``limit`` rows, of ``most_bytes``; but one row may have more.

        A later request gets nothing while a row of an earlier one does not fit.
        """
        taken: list[bytes] = []
        self._is_full = False
        for who, queued in self._queued.items():
            for ref in () if queued.is_refused else queued.rows[queued.n_taken :]:
                row = self._rows.get(ref.key)
                if row is None:
                    self._is_full = self.held_bytes + ref.row_bytes > self._most_bytes
                    most_bytes -= ref.row_bytes
                    is_enough = len(taken) >= limit or (taken and most_bytes < 0)
                    if self._is_full or is_enough or ref.key in self._copying:
                        return taken
                    row = self._rows[ref.key] = _Row(ref.row_bytes)
                    self.held_bytes += ref.row_bytes
                    self._copying[ref.key] = ref.row_bytes
                    taken.append(ref.key)
                row.needed_by.add(who)
                queued.n_taken += 1
        return taken

    def take_unfitting(self, limit: int) -> list[BlockRef]:
        """Rows for which there was no room: at most so many, and each once for a request.

        They may at least be read into the system's page cache. So may no more bytes than are held
        in the arena.
        """
        found: list[BlockRef] = []
        for queued in self._queued.values():
            if not (queued.is_refused or self._is_full):
                continue
            queued.n_advised = max(queued.n_advised, queued.n_taken)
            for ref in queued.rows[queued.n_advised :]:
                is_too_much = self._advised_bytes + ref.row_bytes > self._most_bytes
                if is_too_much or len(found) >= limit:
                    return found
                queued.n_advised += 1
                queued.advised_bytes += ref.row_bytes
                self._advised_bytes += ref.row_bytes
                self._advised += 1
                found.append(ref)
        return found

    def copied(self, key: bytes) -> None:
        """The row lies in the arena."""
        n_bytes = self._copying.pop(key, 0)
        self._copied += 1
        self._copied_bytes += n_bytes
        row = self._rows.get(key)
        if row is not None:
            row.is_copied = True
        else:  # its request has read it where it was, or was cancelled
            self._unused += 1
            self._unused_bytes += n_bytes

    def refused(self, key: bytes) -> None:
        """There was no room for it beside hotter rows, or it could not be read.

        Then there is none for the rows after it either, or they are of no use without it.
        """
        self._refused += 1
        row = self._rows.get(key)
        for who in set() if row is None else row.needed_by:
            queued = self._queued[who]
            if not queued.is_refused:
                self._refused += len(queued.rows) - queued.n_taken
            queued.is_refused = True
        self.needless(key)

    def needless(self, key: bytes) -> None:
        """No copy was begun: the row has come into the arena by itself, or is not stored."""
        self._copying.pop(key, None)
        if key in self._rows:
            self._release(key)

    def copier_ended(self) -> None:
        """The process that made the copies has ended; what it had not finished is taken again."""
        for key in list(self._copying):
            self.needless(key)
        for queued in self._queued.values():
            queued.n_taken = 0

    def _release(self, key: bytes) -> None:
        row = self._rows.pop(key)
        self.held_bytes -= row.n_bytes
        if row.is_copied and not row.is_used:
            self._unused += 1
            self._unused_bytes += row.n_bytes

    def status(self) -> dict[str, object]:
        """Counters since this process started, in rows where no unit is named."""
        return {
            "prefetched": self._copied,
            "prefetched_bytes": self._copied_bytes,
            "prefetched_used": self._used,
            "prefetched_unused": self._unused,
            "prefetched_unused_bytes": self._unused_bytes,
            "not_prefetched": self._refused,
            "read_ahead": self._advised,
            "being_prefetched": len(self._copying),
            "prefetching_requests": len(self._queued),
        }
