"""What a model's process is started with, and why it did not load."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from actors.messages.exact import Exact
from actors.messages.markers import Markers
from cache.policy import SAVE_ALL, SavePolicy
from native import BackendKind
from native.fingerprint import Fingerprints
from native.params import ModelParams

STEP_BUDGET_S: Final = 300.0
"""Below the heartbeat, whose end is the end of the process."""


@dataclass(frozen=True, slots=True)
class ModelArgs:
    """What a model actor is started with."""

    model: str
    path: str
    backend: BackendKind = "llama"
    params: ModelParams = field(default_factory=ModelParams)
    arena_path: str | None = None
    tier_dirs: tuple[tuple[str, str], ...] = ()
    max_queue: int = 256
    cache_salt: str = ""
    fingerprints: Fingerprints = field(default_factory=Fingerprints)
    save: SavePolicy = SAVE_ALL
    wanted_path: str | None = None
    """Where the registry notes the adapters that are to be applied when the model comes back."""
    markers: Markers = field(default_factory=Markers)
    chat_template: str | None = None
    """In place of the one in the file."""
    exact: Exact = Exact.REPEAT
    """Of requests that name no level; with ``ALWAYS``, of all requests."""
    signing_key: bytes = field(default=b"", repr=False)
    """Of the node: thinking is signed with it."""
    step_budget_s: float = STEP_BUDGET_S
    """A step that takes longer is cut short, and its requests are tried one by one."""


@dataclass(frozen=True, slots=True)
class LoadError:
    """Why a model did not load, in a form that survives the trip to the caller."""

    kind: str
    """Class name in ``native.errors``."""
    detail: str
