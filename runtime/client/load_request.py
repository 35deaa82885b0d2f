"""A model to load, as callers describe it, becomes one checked ``ModelConfig``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime import errors
from runtime.embedded import EMBEDDED_MODEL_ID
from runtime.embedded import path as embedded_model_path
from runtime.settings import arguments
from runtime.settings.config import ModelConfig, check_model_id, model_config
from runtime.settings.user_paths import user_path


def config_of(
    model: str, source: str | Path | ModelConfig | None, options: Mapping[str, Any]
) -> ModelConfig:
    """A model of ``load``: a path with options, a whole configuration, or the embedded model."""
    check_model_id(arguments.model_name(model))
    if isinstance(source, ModelConfig):
        if options:
            raise errors.InvalidRequest(
                f"load({model!r}) got a ModelConfig, and {next(iter(options))} beside it; "
                "put it into the ModelConfig"
            )
        return with_whole_path(source, f"load({model!r})")
    options = {name: arguments.plain(value) for name, value in options.items() if value is not None}
    if model == EMBEDDED_MODEL_ID and source is None:
        source = embedded_model_path()
    if source is None:
        raise errors.InvalidRequest(f"load({model!r}) needs the path of a GGUF file")
    return model_config({**options, "path": arguments.path("path", source)}, f"load({model!r})")


def config_of_start(model: str, value: object) -> ModelConfig:
    """A model of ``Node.start``: a path, a whole configuration, or None for the embedded model."""
    check_model_id(arguments.model_name(model))
    if isinstance(value, ModelConfig):
        return with_whole_path(value, f"models.{model}.path")
    if model == EMBEDDED_MODEL_ID and (value is None or (isinstance(value, str) and not value)):
        return ModelConfig(str(embedded_model_path()))
    path = arguments.path(f"models[{model}]", value)
    return ModelConfig(str(user_path(path, f"models.{model}")))


def with_whole_path(config: ModelConfig, where: str) -> ModelConfig:
    """The same with an absolute path; the path of a stub is only a name."""
    if config.backend == "stub":
        return config
    return dataclasses.replace(config, path=str(user_path(config.path, where)))
