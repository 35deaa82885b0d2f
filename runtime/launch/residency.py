"""What ``residency`` is started with, from the settings of a node."""

from __future__ import annotations

from runtime.residency.settings import ResidencyArgs, load_message
from runtime.settings.config import ModelConfig, RuntimeConfig


def residency_args(
    config: RuntimeConfig, *, wanted_path: str, table_path: str, measured_path: str | None
) -> ResidencyArgs:
    """``measured_path``: a file for what models took when they ran; None: it is forgotten."""
    presets = tuple(load_message(name, one) for name, one in config.models_presets.items())
    return ResidencyArgs(
        wanted_path=wanted_path,
        table_path=table_path,
        measured_path=measured_path,
        folder=None if config.models_dir is None else str(config.models_dir),
        defaults=load_message("", config.models_defaults or ModelConfig("")),
        presets=presets,
        at_start=tuple(name for name, one in config.models_presets.items() if not one.autoload),
        known=tuple(load_message(name, one) for name, one in config.models.items() if one.autoload),
        max_models=config.models_max or None,
        max_bytes=config.models_bytes(),
        keep_alive_s=config.keep_alive,
    )
