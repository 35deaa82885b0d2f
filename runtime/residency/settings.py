"""What the actor ``residency`` is started with, and models of settings as it loads them."""

from __future__ import annotations

from dataclasses import dataclass

from actors.messages import LoadModel
from runtime.settings.config import ModelConfig


@dataclass(frozen=True, slots=True)
class ResidencyArgs:
    """Models that are loaded at their first use, and how many may be loaded together."""

    wanted_path: str
    """The registry's table, which is only read."""
    table_path: str
    measured_path: str | None = None
    folder: str | None = None
    """Whose models are known."""
    defaults: LoadModel | None = None
    """How those are loaded; without a model and a path."""
    presets: tuple[LoadModel, ...] = ()
    """The same for some of them, by name; without a path."""
    at_start: tuple[str, ...] = ()
    """Models of the folder that are loaded as soon as they are there."""
    known: tuple[LoadModel, ...] = ()
    """Other models that are loaded at their first use."""
    max_models: int | None = None
    max_bytes: int | None = None
    keep_alive_s: float | None = None
    """Seconds without requests after which a model sleeps that names no other; None: never."""


def load_message(model: str, config: ModelConfig, ref: str = "") -> LoadModel:
    """A model as the registry loads it."""
    return LoadModel(
        ref, model, config.path, config.backend, config.params, config.markers,
        config.chat_template, config.exact, config.keep_alive, config.pin,
    )  # fmt: skip
