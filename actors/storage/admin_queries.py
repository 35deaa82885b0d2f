"""Administration of the index: pages of rows, removals, and memory freed under pressure.

Part of ``cache_meta``'s process, between two of its messages: every answer is bounded in rows and
in bytes, so that a lookup waits behind one for some milliseconds only. The asker sends
the cursor of the answer for more. (One row is freed whole: 100 MB take the kernel 20 ms.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Final

from actors import messages as m
from cache.answers import RAM, Evicted
from cache.facts import RowFacts
from cache.index import CacheIndex
from cache.reclaim import resident_bytes, return_memory

ROWS_PER_PAGE: Final = 96  # about 250 bytes a row on the wire: far below 64 KiB
SCANNED_PER_PAGE: Final = 1024
REMOVED_PER_MESSAGE: Final = 128
EVICTED_PER_MESSAGE: Final = 32
RETURNED_PER_MESSAGE: Final = 24 << 20  # the kernel frees some 5 GB a second
NAMESPACES_PER_PAGE: Final = 96

AdminQuery = m.ListRows | m.ShowRow | m.ListNamespaces | m.RemoveRows | m.EvictBytes
AdminAnswer = m.RowsListed | m.RowShown | m.NamespacesListed | m.RowsRemoved | m.BytesEvicted


class AdminQueries:
    """Answers for ``cache_meta``; ``dispose`` removes what was evicted from memory and disk."""

    def __init__(
        self,
        index: CacheIndex,
        dispose: Callable[[Sequence[Evicted]], None],
        arena_path: str | None,
    ) -> None:
        self._index = index
        self._dispose = dispose
        self._arena_path = arena_path
        self.removed_rows = 0
        self.returned_bytes = 0

    def answer(self, now: float, message: AdminQuery) -> AdminAnswer:
        match message:
            case m.ListRows():
                return self._list(message)
            case m.ShowRow(ref, key):
                return m.RowShown(ref, self._index.facts(key), len(self._index.children(key)))
            case m.ListNamespaces(ref, cursor):
                return self._list_namespaces(ref, cursor)
            case m.RemoveRows():
                return self._remove(message)
            case m.EvictBytes():
                return self._evict(now, message)

    def status(self) -> dict[str, object]:
        """Counts for ``ReportStatus``; the arena's memory is what the kernel reports now."""
        arena = None
        if self._arena_path is not None:
            with contextlib.suppress(OSError):
                arena = resident_bytes(self._arena_path)
        return {
            "removed_by_hand": self.removed_rows,
            "returned_bytes": self.returned_bytes,
            "arena_resident_bytes": arena,
        }

    # ── looking ──────────────────────────────────────────────────────────────────────────────

    def _list(self, ask: m.ListRows) -> m.RowsListed:
        found: list[RowFacts] = []
        cursor, scanned = ask.cursor, 0
        most = max(1, min(ask.limit, ROWS_PER_PAGE))
        while scanned < SCANNED_PER_PAGE and len(found) < most:
            rows, cursor = self._index.scan(cursor, most - len(found))
            found += [row for row in rows if _matches(row, ask)]
            scanned += max(ROWS_PER_PAGE, len(rows))  # looking at empty places costs time, too
            if not cursor:
                break
        return m.RowsListed(ask.ref, tuple(found), cursor)

    def _list_namespaces(self, ref: str, cursor: int) -> m.NamespacesListed:
        found = self._index.namespaces()
        end = cursor + NAMESPACES_PER_PAGE
        return m.NamespacesListed(ref, tuple(found[cursor:end]), end if end < len(found) else 0)

    # ── removing ─────────────────────────────────────────────────────────────────────────────

    def _remove(self, ask: m.RemoveRows) -> m.RowsRemoved:
        if ask.what is m.Removal.TREE:
            chosen, leased, is_more = self._far_end_first(ask.key or b"")
            cursor = 1 if is_more else 0
        else:
            rows, cursor = self._index.scan(ask.cursor, REMOVED_PER_MESSAGE)
            wanted = [row for row in rows if _is_meant(row, ask)]
            chosen = [row for row in wanted if not row.leases]
            leased = len(wanted) - len(chosen)
        gone: list[Evicted] = []
        removed = 0
        for row in chosen:
            copies = self._drop(row, ask.what)
            gone += copies
            removed += bool(copies)
        self._dispose(gone)
        self.removed_rows += removed
        nbytes = sum(copy.nbytes for copy in gone)
        return m.RowsRemoved(ask.ref, removed, nbytes, leased, cursor)

    def _drop(self, row: RowFacts, what: m.Removal) -> list[Evicted]:
        """Its copies; of a superseded row those beside which a longer row is as safe."""
        if what is m.Removal.SUPERSEDED:
            return self._index.drop_contained(row.key)
        return [copy for tier, _ in row.tiers for copy in self._index.drop_location(row.key, tier)]

    def _far_end_first(self, key: bytes) -> tuple[list[RowFacts], int, bool]:
        """Some rows of a tree that may go, children first; how many must stay; whether more go.

        A row stays if it is read, or if one that continues it stays.
        """
        chosen: list[RowFacts] = []
        staying: set[bytes] = set()
        stack = [(key, self._index.children(key))]
        visited = n_staying = 0
        while stack and visited < SCANNED_PER_PAGE and len(chosen) < REMOVED_PER_MESSAGE:
            here, ahead = stack[-1]
            if ahead:
                following = ahead.pop()
                stack.append((following, self._index.children(following)))
                continue
            stack.pop()
            visited += 1
            row = self._index.facts(here)
            if row is None:
                continue
            if row.leases or here in staying:
                staying.add(row.parent)
                n_staying += 1
            else:
                chosen.append(row)
        return chosen, n_staying, bool(stack and chosen)

    # ── pressure ─────────────────────────────────────────────────────────────────────────────

    def _evict(self, now: float, ask: m.EvictBytes) -> m.BytesEvicted:
        """Memory that belongs to no row first: it costs nothing."""
        most = min(ask.nbytes, RETURNED_PER_MESSAGE)
        returned = self._return(self._index.arena_holes(), most) if RAM in ask.tiers else 0
        rows = 0
        for tier in ask.tiers:
            while returned < most and rows < EVICTED_PER_MESSAGE:
                evicted = self._index.evict(now, tier)
                if evicted is None:
                    break
                self._dispose(evicted)
                rows += 1
                slabs = [_extent(copy) for copy in evicted if copy.tier == RAM]
                returned += sum(copy.nbytes for copy in evicted if copy.tier != RAM)
                returned += self._return([slab for slab in slabs if slab is not None])
        self.returned_bytes += returned
        is_enough = returned >= ask.nbytes
        return m.BytesEvicted(
            ask.ref, rows, returned, more=not is_enough and bool(rows or returned)
        )

    def _return(self, extents: list[tuple[int, int]], limit: int | None = None) -> int:
        if not extents or self._arena_path is None:
            return 0
        try:
            return return_memory(self._arena_path, extents, limit)
        except OSError:  # a file system that cannot punch holes: the rows are gone all the same
            return 0


def _extent(copy: Evicted) -> tuple[int, int] | None:
    return None if copy.location is None else (copy.location, copy.nbytes)


def _matches(row: RowFacts, ask: m.ListRows) -> bool:
    return (
        row.key.startswith(ask.prefix)
        and (ask.root is None or row.root == ask.root)
        and (ask.tier is None or any(name == ask.tier for name, _ in row.tiers))
    )


def _is_meant(row: RowFacts, ask: m.RemoveRows) -> bool:
    if ask.what is m.Removal.SUPERSEDED:
        return row.superseded
    return ask.key is None or row.root == ask.key
