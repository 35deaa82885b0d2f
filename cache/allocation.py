"""The arena's allocation map: which pages belong to which slab. Pure; no memory is touched.

Best fit with immediate coalescing. Slabs are whole pages; page 0 is the arena's superblock. Rows of
one model have one size, so best fit mostly refills the hole that an eviction left.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

from cache.errors import InvariantBroken

PAGE_BYTES = 4096


class ArenaMap:
    """Allocates page-aligned extents of ``[page_bytes, size_bytes)``; single owner, no locks."""

    def __init__(self, size_bytes: int, page_bytes: int = PAGE_BYTES) -> None:
        self.page_bytes = page_bytes
        self.size_bytes = size_bytes // page_bytes * page_bytes
        self._slabs: dict[int, int] = {}
        self._free: dict[int, int] = {}  # start -> bytes
        self._starts: list[int] = []  # sorted
        self._sizes: list[tuple[int, int]] = []  # sorted (bytes, start): best fit by bisection
        self._used = 0
        if self.size_bytes > page_bytes:
            self._add_free(page_bytes, self.size_bytes - page_bytes)

    @property
    def capacity_bytes(self) -> int:
        """Most bytes that all slabs together may take."""
        return max(0, self.size_bytes - self.page_bytes)

    @property
    def used_bytes(self) -> int:
        return self._used

    @property
    def free_bytes(self) -> int:
        return self.capacity_bytes - self._used

    @property
    def largest_free(self) -> int:
        return self._sizes[-1][0] if self._sizes else 0

    def rounded(self, nbytes: int) -> int:
        """``nbytes`` rounded up to whole pages: the size of a slab that holds them."""
        return max(1, -(-nbytes // self.page_bytes)) * self.page_bytes

    def slab_bytes(self, offset: int) -> int | None:
        """Size of the slab at ``offset``, or None if there is none."""
        return self._slabs.get(offset)

    def allocate(self, nbytes: int) -> int | None:
        """Offset of a new slab in the smallest hole that fits, or None."""
        need = self.rounded(nbytes)
        at = bisect_left(self._sizes, (need, 0))
        if at == len(self._sizes):
            return None
        size, start = self._sizes[at]
        self._remove_free(start)
        if size > need:
            self._add_free(start + need, size - need)
        self._slabs[start] = need
        self._used += need
        return start

    def adopt(self, offset: int, nbytes: int) -> bool:
        """Claim exactly ``[offset, offset + nbytes)``; False if any of it is taken or outside."""
        need = self.rounded(nbytes)
        at = bisect_right(self._starts, offset) - 1
        if at < 0 or offset % self.page_bytes:
            return False
        start = self._starts[at]
        end = start + self._free[start]
        if offset + need > end:
            return False
        self._remove_free(start)
        if offset > start:
            self._add_free(start, offset - start)
        if offset + need < end:
            self._add_free(offset + need, end - offset - need)
        self._slabs[offset] = need
        self._used += need
        return True

    def holes(self) -> list[tuple[int, int]]:
        """(offset, bytes) of everything that belongs to no slab, by offset."""
        return [(start, self._free[start]) for start in self._starts]

    def is_free(self, offset: int) -> bool:
        """Whether the page at ``offset`` belongs to no slab."""
        at = bisect_right(self._starts, offset) - 1
        return at >= 0 and offset < self._starts[at] + self._free[self._starts[at]]

    def free(self, offset: int) -> int:
        """Free a slab and join it with free neighbours; returns its bytes."""
        size = self._slabs.pop(offset, None)
        if size is None:
            raise InvariantBroken(f"no slab at arena offset {offset}")
        self._used -= size
        start, end = offset, offset + size
        at = bisect_left(self._starts, offset)
        if at < len(self._starts) and self._starts[at] == end:
            end += self._remove_free(end)
        if at > 0:
            before = self._starts[at - 1]
            if before + self._free[before] == offset:
                self._remove_free(before)
                start = before
        self._add_free(start, end - start)
        return size

    def check_integrity(self) -> None:
        """Slabs and holes tile the arena exactly and no two holes touch; else InvariantBroken."""
        extents = sorted(
            [(start, size, True) for start, size in self._free.items()]
            + [(start, size, False) for start, size in self._slabs.items()]
        )
        at, was_hole = self.page_bytes, False
        for start, size, is_hole in extents:
            if start != at or size <= 0 or size % self.page_bytes or (is_hole and was_hole):
                raise InvariantBroken(f"arena extents do not tile at offset {start}")
            at, was_hole = start + size, is_hole
        if at != max(self.size_bytes, self.page_bytes):
            raise InvariantBroken("arena extents do not reach its end")
        if sorted(self._free) != self._starts or self._used != sum(self._slabs.values()):
            raise InvariantBroken("arena accounts disagree")
        if sorted((size, start) for start, size in self._free.items()) != self._sizes:
            raise InvariantBroken("arena size list disagrees")

    def _add_free(self, start: int, size: int) -> None:
        self._free[start] = size
        insort(self._starts, start)
        insort(self._sizes, (size, start))

    def _remove_free(self, start: int) -> int:
        size = self._free.pop(start)
        del self._starts[bisect_left(self._starts, start)]
        del self._sizes[bisect_left(self._sizes, (size, start))]
        return size
