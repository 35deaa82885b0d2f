"""What is known of LoRA adapters that are loaded, and the identity they give to KV."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """A LoRA adapter in memory. ``scale`` 0: loaded, not applied."""

    id: int
    """Chosen by the backend, never used again."""
    path: str
    fingerprint: bytes
    """BLAKE3 of the file's content."""
    scale: float
    n_bytes: int


def adapters_identity(adapters: Iterable[LoadedAdapter]) -> str:
    """What the applied adapters change in KV: content and scale of each, in a fixed order.

    Empty when none is applied: KV is then that of the plain model.
    """
    applied = sorted((one.fingerprint.hex(), repr(one.scale)) for one in adapters if one.scale)
    return " ".join(f"{digest}:{scale}" for digest, scale in applied)
