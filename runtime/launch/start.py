"""What a node and its models are started with, and the launcher as a child process of this one."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Final

from runtime import errors
from runtime.embedded import EMBEDDED_MODEL_ID
from runtime.embedded import path as embedded_model_path
from runtime.settings import arguments
from runtime.settings.config import (
    ModelConfig,
    RuntimeConfig,
    check_model_id,
    model_config,
    to_mapping,
)
from runtime.settings.user_paths import user_path
from supervision.launched import LaunchedNode, LauncherSaid

START_TIMEOUT_S: Final = 30.0


def config_of(model: str, path: str | Path | None, options: dict[str, Any]) -> ModelConfig:
    """A model to load as ``Node.load`` describes it; ``options`` are checked."""
    arguments.model_name(model)
    options = {name: arguments.plain(value) for name, value in options.items() if value is not None}
    if model == EMBEDDED_MODEL_ID and path is None:
        path = embedded_model_path()
    if path is None:
        raise errors.InvalidRequest(f"load({model!r}) needs the path of a GGUF file")
    return model_config({**options, "path": arguments.path("path", path)}, f"load({model!r})")


def as_config(model: str, value: object) -> ModelConfig:
    """A model of ``Node.start``, checked: a path, or a whole configuration."""
    check_model_id(arguments.model_name(model))
    if model == EMBEDDED_MODEL_ID:
        return ModelConfig(str(embedded_model_path()))
    if not isinstance(value, ModelConfig):
        path = arguments.path(f"models[{model}]", value)
        return ModelConfig(str(user_path(path, f"models.{model}")))
    if value.backend == "stub":
        return value
    return dataclasses.replace(value, path=str(user_path(value.path, f"models.{model}.path")))


def spawn(config: RuntimeConfig) -> LaunchedNode:
    """Run the launcher; returns when the tree is up, raises its error when it is not."""

    def command(settings_fd: int, ready_fd: int, parent_fd: int) -> list[str]:
        fds = ["--config-fd", str(settings_fd), "--ready-fd", str(ready_fd)]
        return [sys.executable, "-m", "runtime", "serve", *fds, "--parent-fd", str(parent_fd)]

    try:
        return LaunchedNode.start(
            command,
            json.dumps(to_mapping(config)).encode(),
            timeout_s=START_TIMEOUT_S,
            quiet=config.log_file is None,
        )
    except LauncherSaid as error:
        raise errors.NodeStartFailed(error.why, error.kind) from error
