"""A model to load, as the gateway's API takes it."""

from __future__ import annotations

import dataclasses
from typing import Any

from native.model_params import ModelParams
from runtime.embedded import EMBEDDED_MODEL_ID
from runtime.settings.config import ModelConfig
from runtime.settings.markers import markers_mapping


def load_body(model: str, config: ModelConfig) -> dict[str, Any]:
    """The body: only what differs from the defaults, which may be others over there."""
    given, usual = dataclasses.asdict(config.params), dataclasses.asdict(ModelParams())
    options: dict[str, Any] = {name: one for name, one in given.items() if one != usual[name]}
    options |= markers_mapping(config.markers) | {"exact": config.exact.value}
    if config.chat_template is not None:
        options["chat_template"] = config.chat_template
    path = None if model == EMBEDDED_MODEL_ID else config.path
    return {"model": model, "path": path, "options": options}
