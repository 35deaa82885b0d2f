"""The stub's KV memory: real cells, shared between sequences, and their payload format."""

from __future__ import annotations

import struct
from hashlib import blake2b

from native._buffers import borrowed
from native.backend import Buffer
from native.errors import StateRefused

CELL_BYTES = 64
_HEAD = struct.Struct("<4sIII")  # magic, version, cells, bytes per cell
_PLACE = struct.Struct("<ii")  # position, token
_MAGIC, _VERSION = b"LAST", 1


class _Cell:
    """The KV of one token: where, what, and a digest of all that came before it."""

    __slots__ = ("content", "owners")

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.owners = 1


class CellPool:
    """Cells of all sequences, counted against one budget as in a unified KV memory."""

    def __init__(self, n_cells: int, n_seq: int) -> None:
        self._free = n_cells
        self._seqs: list[dict[int, _Cell]] = [{} for _ in range(n_seq)]
        self.salt = b""
        """Identity of the applied adapters: part of every content from now on."""

    @property
    def is_empty(self) -> bool:
        return not any(self._seqs)

    def has_room(self, n: int) -> bool:
        return n <= self._free

    def end(self, seq: int) -> int:
        """Return one more than the last position, 0 for an empty sequence."""
        return max(self._seqs[seq], default=-1) + 1

    def first(self, seq: int) -> int:
        return min(self._seqs[seq], default=-1)

    def append(self, seq: int, position: int, token: int) -> None:
        before = self._seqs[seq].get(position - 1)
        seen = before.content if before else self.salt
        place = _PLACE.pack(position, token)
        digest = blake2b(seen + place, digest_size=CELL_BYTES - _PLACE.size).digest()
        self._put(seq, position, _Cell(place + digest))

    def adopt(self, seq: int, contents: list[bytes]) -> None:
        for content in contents:
            self._put(seq, _PLACE.unpack_from(content)[0], _Cell(content))

    def _put(self, seq: int, position: int, cell: _Cell) -> None:
        self._seqs[seq][position] = cell
        self._free -= 1

    def share(self, src: int, dst: int, start: int, end: int) -> None:
        for position in range(start, end):
            cell = self._seqs[src].get(position)
            if cell is not None:
                cell.owners += 1
                self._seqs[dst][position] = cell

    def remove(self, seq: int, start: int, end: int) -> None:
        cells = self._seqs[seq]
        for position in [p for p in cells if start <= p < end]:
            cell = cells.pop(position)
            cell.owners -= 1
            self._free += cell.owners == 0

    def slice(self, seq: int, start: int, end: int) -> list[bytes] | None:
        """Return the contents of [start, end), or None if one is missing."""
        cells = [self._seqs[seq].get(position) for position in range(start, end)]
        contents = [cell.content for cell in cells if cell is not None]
        return contents if len(contents) == len(cells) else None

    def tokens(self, seq: int, start: int, end: int) -> list[int]:
        """Return the tokens of [start, end)."""
        contents = self.slice(seq, start, end) or []
        return [_PLACE.unpack_from(content)[1] for content in contents]

    def content(self, seq: int) -> bytes:
        cells = self._seqs[seq]
        return b"".join(cells[position].content for position in sorted(cells))


class BlockFormat:
    """Payload of a block: head, then the cells, each padded to ``cell_bytes``."""

    def __init__(self, cell_bytes: int) -> None:
        self.cell_bytes = cell_bytes

    def size(self, n_tokens: int) -> int:
        return _HEAD.size + n_tokens * self.cell_bytes

    def pack(self, contents: list[bytes]) -> bytes:
        head = _HEAD.pack(_MAGIC, _VERSION, len(contents), self.cell_bytes)
        return head + b"".join(content.ljust(self.cell_bytes, b"\0") for content in contents)

    def unpack(self, payload: Buffer, start: int, n_tokens: int, n_vocab: int) -> list[bytes]:
        """Return the cells, or raise ``StateRefused`` for anything but this very block."""
        if n_tokens < 1 or start < 0:
            raise StateRefused(f"no block has {n_tokens} tokens from {start}")
        with borrowed(payload, "payload") as view:
            data = bytes(view)
        if len(data) != self.size(n_tokens):
            raise StateRefused(f"{len(data)} bytes are not a block of {n_tokens} tokens")
        if _HEAD.unpack_from(data) != (_MAGIC, _VERSION, n_tokens, self.cell_bytes):
            raise StateRefused("the head is not that of a block of so many tokens")
        cells = []
        for i in range(n_tokens):
            at = _HEAD.size + i * self.cell_bytes
            position, token = _PLACE.unpack_from(data, at)
            if position != start + i or not 0 <= token < n_vocab:
                raise StateRefused(f"cell {i} holds token {token} at position {position}")
            cells.append(data[at : at + CELL_BYTES])
        return cells
