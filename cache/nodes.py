"""The columns of the table of rows: a slot number instead of an object, about 400 bytes a row.

A *node* is a key that is referred to. It is a row while a tier holds a copy of it; otherwise it
stands for a parent that is not stored (a root, or a block that was never found) or a dropped row
that is still being read. Each node has a slot: a small number, valid until ``free``. Slot 0 is no
node (``NIL``), so that columns of zeros mean "none".

Keys and tokens lie in fixed records in chunks, everything else in one ``array`` per field. A Python
object per row would take three times the memory and be visited by the garbage collector.
Columns are read and written directly by the modules that define their meaning:

copies       bit mask of the tiers that hold the row; 0: no row      ``table``, ``tiers``
parent, root slots                                                   ``table``
start, n_tokens, row_bytes, heat, mark                               ``table``
child, left, right                                                   ``siblings``
"""

from __future__ import annotations

from array import array
from typing import Final

from cache.answers import RowRequest
from cache.errors import InvariantBroken
from cache.keymap import KeyMap
from cache.keys import KEY_BYTES
from cache.rows import RowIdentity, SaveReason
from cache.tokens import TOKEN_BYTES

NIL: Final = 0
SUPERSEDED: Final = 0x80  # bit of ``mark``: a longer sibling contains all of this row's tokens
REASON: Final = 0x7F  # the rest of ``mark``: the SaveReason
_SHIFT: Final = 10  # a chunk holds 1,024 records: growing takes microseconds at any size
_CHUNK: Final = 1 << _SHIFT


class Nodes:
    """The columns, the records and the map from a key to its slot. Private to the index."""

    def __init__(self, block_tokens: int) -> None:
        self._record = KEY_BYTES + block_tokens * TOKEN_BYTES
        self._chunks: list[bytearray] = []
        self._columns: list[array[int] | array[float]] = []
        self._capacity = 0
        self._free: array[int] = array("I")
        self._fresh = NIL + 1  # the first slot that was never used
        self._keymap = KeyMap(self.key)
        self.copies = self.column("I")
        self.parent = self.column("I")
        self.root = self.column("I")
        self.start = self.column("I")
        self.n_tokens = self.column("H")
        self.row_bytes = self.column("Q")
        self.mark = self.column("B")
        self.heat = self.float_column()
        self.child = self.column("I")
        self.left = self.column("I")
        self.right = self.column("I")
        self._grow()

    def __len__(self) -> int:
        return self._fresh - 1 - len(self._free)

    def column(self, typecode: str) -> array[int]:
        """A new column of zeros that grows with the others."""
        new: array[int] = array(typecode)
        new.frombytes(bytes(new.itemsize * self._capacity))
        self._columns.append(new)
        return new

    def float_column(self) -> array[float]:
        """The same for 64-bit floats."""
        new = array("d", bytes(8 * self._capacity))
        self._columns.append(new)
        return new

    # ── keys and tokens ──────────────────────────────────────────────────────────────────────

    def find(self, key: bytes) -> int:
        """The slot of a key, or NIL."""
        return self._keymap.find(key)

    def use(self, key: bytes) -> int:
        """The slot of a key; a key without one gets one now."""
        at = self._keymap.find(key)
        if at:
            return at
        if self._free:
            at = self._free.pop()
        else:
            if self._fresh >= self._capacity:
                self._grow()
            at = self._fresh
            self._fresh += 1
        offset = (at & _CHUNK - 1) * self._record
        self._chunks[at >> _SHIFT][offset : offset + KEY_BYTES] = key
        self._keymap.add(key, at)
        return at

    def free(self, at: int) -> None:
        """Free a slot; nothing may refer to it any more."""
        if self.copies[at] or self.child[at]:
            raise InvariantBroken("a node in use was freed")
        self._keymap.remove(self.key(at))
        self._free.append(at)

    def key(self, at: int) -> bytes:
        offset = (at & _CHUNK - 1) * self._record
        return bytes(self._chunks[at >> _SHIFT][offset : offset + KEY_BYTES])

    def tokens(self, at: int) -> bytes:
        """The packed tokens of a row."""
        offset = (at & _CHUNK - 1) * self._record + KEY_BYTES
        return bytes(self._chunks[at >> _SHIFT][offset : offset + self.n_tokens[at] * TOKEN_BYTES])

    # ── rows ─────────────────────────────────────────────────────────────────────────────────

    def fill(self, at: int, request: RowRequest, parent: int, root: int, heat: float) -> None:
        """Write a row into its slot."""
        self.parent[at] = parent
        self.root[at] = root
        row = request.id
        self.start[at] = row.start
        self.n_tokens[at] = row.n_tokens
        self.row_bytes[at] = request.row_bytes
        self.mark[at] = request.reason
        self.heat[at] = heat
        offset = (at & _CHUNK - 1) * self._record + KEY_BYTES
        self._chunks[at >> _SHIFT][offset : offset + len(row.tokens)] = row.tokens

    def request(self, at: int) -> RowRequest:
        """The request that would store this row again."""
        reason = SaveReason(self.mark[at] & REASON)
        return RowRequest(self.identity(at), self.row_bytes[at], reason)

    def identity(self, at: int) -> RowIdentity:
        """The identity of a row."""
        return RowIdentity(
            self.key(at),
            self.key(self.parent[at]),
            self.key(self.root[at]),
            self.start[at],
            self.tokens(at),
        )

    def slots(self) -> list[int]:
        """All slots in use; for tests and recounts."""
        unused = set(self._free)
        return [at for at in range(NIL + 1, self._fresh) if at not in unused]

    def rows(self) -> list[int]:
        """Slots of all rows; a pass over everything."""
        return [at for at, copies in enumerate(self.copies) if copies]

    def _grow(self) -> None:
        self._chunks.append(bytearray(_CHUNK * self._record))
        for column in self._columns:
            column.frombytes(bytes(column.itemsize * _CHUNK))
        self._capacity += _CHUNK
