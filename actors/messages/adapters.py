"""LoRA adapters of a loaded model: between callers and ``model:<id>``.

A change waits until the running requests have ended, and requests that start later wait for it: no
request ever runs with two sets of weights. Rows of one set are never found with another.
"""

from __future__ import annotations

from actors.messages.finish_reasons import FailReason
from supervision.frozen import frozen


@frozen
class AdapterStatus:
    """One adapter. ``scale`` 0: loaded, not applied."""

    id: int
    path: str
    fingerprint: str
    """BLAKE3 of its file, in hex."""
    scale: float
    n_bytes: int


@frozen
class LoadAdapter:
    """Caller → model: apply the LoRA adapter in this file, times ``scale``.

    Answered by ``AdaptersChanged`` or ``AdapterNotChanged``; so are the next two.
    """

    ref: str
    path: str
    scale: float = 1.0


@frozen
class UnloadAdapter:
    """Caller → model: free this adapter, by its id."""

    ref: str
    adapter: int


@frozen
class SetAdapterScale:
    """Caller → model: apply this adapter, by its id, times another scale; 0 applies nothing."""

    ref: str
    adapter: int
    scale: float


@frozen
class ListAdapters:
    """Caller → model: which adapters are loaded? Answered at once, by ``AdaptersListed``."""

    ref: str


@frozen
class AdaptersChanged:
    """Model → caller: done; these are loaded now. A new one is the last."""

    ref: str
    adapters: tuple[AdapterStatus, ...]


@frozen
class AdaptersListed:
    """Model → caller: these are loaded, and so many changes wait for running requests."""

    ref: str
    adapters: tuple[AdapterStatus, ...]
    waiting: int


@frozen
class AdapterNotChanged:
    """Model → caller: nothing was changed. ``kind`` names the error in ``native.errors``."""

    ref: str
    reason: FailReason
    kind: str
    detail: str


@frozen
class AdaptersInUse:
    """Model → registry: load these (path, scale) when the model has to be loaded again."""

    model: str
    lora: tuple[tuple[str, float], ...]
