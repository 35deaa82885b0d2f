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
    backend_kind,
    check_model_id,
    to_mapping,
)
from runtime.settings.load_options import model_params
from runtime.settings.markers import KEYS as MARKER_KEYS
from runtime.settings.markers import markers_from
from runtime.settings.template_settings import KEYS as TEMPLATE_KEYS
from runtime.settings.template_settings import template_from
from runtime.settings.user_paths import user_path
from supervision.launched import LaunchedNode, LauncherSaid

START_TIMEOUT_S: Final = 30.0


def config_of(model: str, path: str | Path | None, options: dict[str, Any]) -> ModelConfig:
    """A model to load as ``Node.load`` describes it; ``options`` are checked."""
    arguments.model_name(model)
    options = {name: arguments.plain(value) for name, value in options.items() if value is not None}
    backend = backend_kind(arguments.text("backend", options.get("backend", "llama")))
    if model == EMBEDDED_MODEL_ID and path is None:
        path = embedded_model_path()
    if path is None:
        raise errors.InvalidRequest(f"load({model!r}) needs the path of a GGUF file")
    path = arguments.path("path", path)
    markers = markers_from(options, f"load({model!r})")
    template = template_from(options, f"load({model!r})")
    taken = (*MARKER_KEYS, *TEMPLATE_KEYS, "backend")
    options = {key: value for key, value in options.items() if key not in taken}
    params = model_params(options, f"load({model!r})")
    where = str(path) if backend == "stub" else str(user_path(path, f"load({model!r})"))
    return ModelConfig(where, params, backend, markers, template)


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
