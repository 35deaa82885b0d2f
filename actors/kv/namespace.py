"""Which requests of one model may share what is cached: those of the same namespace.

Two things keep requests in namespaces of their own. KV of a reply depends on how its rows were
computed, and those of requests that are always exact were computed otherwise than all others. And
a *salt* separates what would be the same: a caller with one cannot learn, neither from times nor
from counts, what callers with other salts have sent.

Whatever outlives a request, or is used by two, belongs to the namespace of a request: rows of all
tiers, kept logits and marks of replies by its root, live sequences and tails that are written late
by the value itself. ``actors.engine.sessions`` and ``actors.text.divergence`` go by the salt alone.

Values only.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from blake3 import blake3

from cache import keys

APART: Final = ("exact", "always")
_KEY_CONTEXT: Final = "llama-actors 2026 finish keys of a salt v1"


class Namespace(NamedTuple):
    """Of one request, within those of its model."""

    is_apart: bool = False
    """Whether the request is always exact."""
    salt: bytes = b""

    def root_in(self, root: bytes) -> bytes:
        """Its root key, where ``root`` is that of the model."""
        root = apart_from(root) if self.is_apart else root
        return keys.namespace_key([("model", root), ("salt", self.salt)]) if self.salt else root

    def exchanged(self, key: bytes | None) -> bytes | None:
        """The key that callers have for a row's key, or the row's key for one of theirs.

        With a salt the two differ, by a mask that is made of it; so a key that was returned to one
        caller names no row for another, whose salt is not the same.
        """
        if not (self.salt and isinstance(key, bytes) and len(key) == keys.KEY_BYTES):
            return key
        mask = blake3(self.salt, derive_key_context=_KEY_CONTEXT).digest()
        return bytes(one ^ other for one, other in zip(key, mask, strict=True))


PLAIN: Final = Namespace()
"""Of requests without a salt that are not always exact: the model's own."""


def apart_from(root: bytes) -> bytes:
    """The namespace, beside the one with ``root``, of requests that are always exact.

    What is stored for one kind of request is not found by the other.
    """
    return keys.namespace_key([("model", root), APART])
