"""Replies that come back as text: between models and cache_meta. See ``text.reply_marks``."""

from __future__ import annotations

from supervision.frozen import frozen


@frozen
class NoteReply:
    """Model → cache_meta: a reply ended; these tokens stand for the text up to its end."""

    digest: bytes
    n_bytes: int
    n_known: int
    """Bytes of the text that the tokens stand for."""
    parent: bytes
    """Key of the last full block before the end, or the root."""
    start: int
    tail: bytes
    """u32-le tokens after that block."""


@frozen
class ResolveText:
    """Model → cache_meta: which tokens stand for the longest of these beginnings of a text?

    Answered by ``TextResolved``.
    """

    ref: str
    holder: str
    root: bytes
    candidates: bytes
    """u32 length in bytes and 16 bytes of digest each, ascending."""


@frozen
class TextResolved:
    """Cache_meta → model: the reply that was found, or ``n_bytes`` 0. ``lease`` pins ``blocks``."""

    ref: str
    digest: bytes = b""
    n_bytes: int = 0
    n_known: int = 0
    n_tokens: int = 0
    """In ``blocks``."""
    blocks: bytes = b""
    """As in ``PrefixResolved``, with keys."""
    lease: int = 0
    tail: bytes = b""
    """u32-le tokens after the blocks."""
