"""Exact replay: a reply that comes back as text is read as the tokens that were sampled.

Tokenising a reply's text again may cut it differently from how it was generated; then nothing that
was stored of it is ever found again. So each finished reply leaves a *mark*: a digest of the whole
text up to its end, prompt included, and the tokens that stand for it. A later prompt that begins
with that text begins with those tokens.

Marks of recent replies are kept here, in the model's process. With the rows of the cache they
outlive it: see ``actors.engine.reply_replay``.

Pure. What is digested is the namespace, how the text is read (with or without control tokens), and
the text, in which a byte that no text has marks each control token that a caller has forged: two
texts that are equal and were read differently are different.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from blake3 import blake3

from cache import tokens as token_bytes
from cache.lru import LruMap

DIGEST_BYTES: Final = 16
LIMIT_BYTES: Final = 8 << 20
MAX_MARKS: Final = 1024
PLAIN, SPECIAL = b"\0", b"\1"
"""How a text is read: control tokens written in it are text, or are tokens."""
_FORGED: Final = b"\xff"


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a reply ended: text of ``n_bytes`` with this digest."""

    digest: bytes
    n_bytes: int
    n_known: int
    """Bytes of it that the tokens stand for; a stop string may have cut the last token."""
    n_tokens: int


@dataclass(frozen=True, slots=True)
class SentText:
    """A prompt as its caller sent it, and how it is read."""

    data: bytes
    reads: bytes = PLAIN
    forged: tuple[int, ...] = ()
    """Where a caller's text looks like a control token, in order."""
    has_replies: bool = True
    """It may hold a reply of this model: a conversation of more than one turn."""

    def digests(self, root: bytes, ends: Iterable[int]) -> dict[int, bytes]:
        """The digest of the text up to each of these positions, which ascend; one pass."""
        hasher = blake3(root + self.reads)
        found: dict[int, bytes] = {}
        at = 0
        for end in ends:
            self._feed(hasher, at, end)
            at = end
            found[end] = hasher.digest()[:DIGEST_BYTES]
        return found

    def with_reply(self, root: bytes, reply: bytes) -> bytes:
        """The digest of all of it and this reply."""
        hasher = blake3(root + self.reads)
        self._feed(hasher, 0, len(self.data))
        hasher.update(reply)
        return hasher.digest()[:DIGEST_BYTES]

    def _feed(self, hasher: blake3, start: int, end: int) -> None:
        view = memoryview(self.data)
        first = bisect_left(self.forged, start)
        for forged in self.forged[first : bisect_left(self.forged, end)]:
            hasher.update(view[start:forged])
            hasher.update(_FORGED)
            start = forged
        hasher.update(view[start:end])


class _Known(NamedTuple):
    root: bytes
    mark: Mark
    packed: bytes
    """The tokens that stand for the text."""


class RecentReplies:
    """The latest replies of one model, by the digest of their text; within two limits."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES, max_marks: int = MAX_MARKS) -> None:
        self._known: LruMap[bytes, _Known] = LruMap(
            limit_bytes, lambda known: len(known.packed), max_marks
        )

    def __len__(self) -> int:
        return len(self._known)

    def put(self, root: bytes, mark: Mark, ids: Sequence[int]) -> None:
        """Keep the tokens that stand for a text in the namespace ``root``.

        The replies used longest ago are dropped.
        """
        packed = token_bytes.pack(ids[: mark.n_tokens])
        self._known.put(mark.digest, _Known(root, mark, packed))

    def find(self, root: bytes, sent: SentText) -> tuple[Mark, list[int]] | None:
        """The longest known text that ``sent`` begins with, and its tokens."""
        lengths = {one.mark.n_bytes for one in self._known.values() if one.root == root}
        ends = sorted(length for length in lengths if length <= len(sent.data))
        for _, digest in reversed(sent.digests(root, ends).items()):
            found = self._known.get(digest)
            if found is not None:
                return found.mark, token_bytes.unpack(found.packed)
        return None

    def clear(self) -> None:
        """Drop every reply."""
        self._known.clear()


def mark_reply(
    root: bytes, sent: SentText, reply: bytes, visible: bytes, n_tokens: int, stop: str | None
) -> Mark:
    """The mark of a reply: ``reply`` are all its bytes, ``visible`` those of its visible tokens."""
    shown = reply
    if stop is not None:
        at = reply.rfind(stop.encode())
        shown = reply[:at] if at >= len(visible) else visible
    n_prompt = len(sent.data)
    return Mark(
        sent.with_reply(root, shown), n_prompt + len(shown), n_prompt + len(visible), n_tokens
    )
