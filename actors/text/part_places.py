"""Where the parts of a prompt end, in characters and in tokens, and digests of the text before.

A part ends with the last token that lies wholly before its last character: tokenizers may join the
end of one part with the beginning of the next.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from actors.text.parts import Part, Parts
from cache import tokens as token_bytes

if TYPE_CHECKING:
    from native.backend import Vocabulary

_BLANKS: Final = re.compile(rb"\s+")


class Pieces(dict[int, bytes]):
    """The bytes that each token of a vocabulary stands for, asked for once."""

    def __init__(self, backend: Vocabulary) -> None:
        super().__init__()
        self._backend = backend

    def __missing__(self, token: int) -> bytes:
        piece = self[token] = self._backend.piece(token, special=True)
        return piece


@dataclass(frozen=True, slots=True)
class Places:
    """The parts of one prompt, and where they end. No text."""

    parts: Parts
    tokens: tuple[int | None, ...]
    """Of each part, the tokens up to its end; ``None`` where that is not known."""
    digests: tuple[bytes, ...]
    """Of each part, BLAKE3 of the text up to its end."""
    n_tokens: int

    @property
    def restarts(self) -> tuple[int, ...]:
        """Tokens before the parts that ``Parts.restarts`` names, as far as they are known."""
        before = (self.tokens[at - 1] for at in self.parts.restarts if at)
        return tuple(sorted({at for at in before if at}))

    def start_of(self, number: int) -> int | None:
        """Tokens before a part."""
        return self.tokens[number - 1] if number else 0

    def for_tokens(self, old: bytes, new: bytes) -> Places:
        """The same for other tokens of the same text; both are packed.

        Where they begin or end alike, positions are known.
        """
        if old == new:
            return self
        n_old, n_new = token_bytes.count(old), token_bytes.count(new)
        n_first = token_bytes.common_prefix(old, new)
        n_last = token_bytes.common_prefix(old[::-1], new[::-1])

        def moved(at: int | None) -> int | None:
            if at is None or at <= n_first:
                return at
            return at + n_new - n_old if at >= n_old - n_last else None

        return replace(self, tokens=tuple(map(moved, self.tokens)), n_tokens=n_new)


def digests_of(parts: Sequence[Part], text: str) -> tuple[bytes, ...]:
    """BLAKE3 of the text up to the end of each part."""
    hasher = blake3()
    found: list[bytes] = []
    for part in parts:
        hasher.update(text[part.start : part.end].encode("utf-8", "replace"))
        found.append(hasher.digest())
    return tuple(found)


def token_ends(
    text: str, ends: Sequence[int], ids: Sequence[int], pieces: Pieces
) -> list[int | None]:
    """How many tokens lie wholly before each of these ascending positions of the text.

    ``ids`` are the tokens of the text, perhaps with others around that have none of it.
    """
    n_bytes = [*accumulate(_sizes(text, ends))]
    total = (
        n_bytes[-1] if n_bytes and ends[-1] == len(text) else len(text.encode("utf-8", "replace"))
    )
    sums = [*accumulate(map(len, map(pieces.__getitem__, ids)))]
    if not sums or sums[-1] != total:
        sums = _aligned(text.encode("utf-8", "replace"), ids, pieces)
    known = sums[-1] if sums else 0
    return [bisect_right(sums, at) if at <= known else None for at in n_bytes]


def _sizes(text: str, ends: Sequence[int]) -> list[int]:
    """Bytes in UTF-8 between each position and the one before."""
    starts = [0, *ends]
    if text.isascii():
        return [end - start for start, end in zip(starts, ends, strict=False)]
    return [
        len(text[start:end].encode("utf-8", "replace"))
        for start, end in zip(starts, ends, strict=False)
    ]


def _aligned(data: bytes, ids: Sequence[int], pieces: Pieces) -> list[int]:
    """Bytes of ``data`` up to the end of each token; it ends where a token cannot be placed.

    Tokenizers may add a token at either end, a blank before a text, and leave out blanks around
    control tokens.
    """
    sums: list[int] = []
    at = 0
    for token in ids:
        piece = pieces[token]
        blanks = _BLANKS.match(data, at)
        behind = at if blanks is None else blanks.end()
        bare = piece.removeprefix(b" ")
        found = next(
            (
                start + len(one)
                for one in (piece, bare)
                for start in (at, behind)
                if data.startswith(one, start)
            ),
            None,
        )
        if found is None and sums and behind < len(data):
            return sums
        at = at if found is None else found
        sums.append(at)
    if sums and not data[at:].strip():
        sums[-1] = len(data)
    return sums
