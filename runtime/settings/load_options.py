"""Load options as a file, a flag or a caller gives them: by name, checked, with whole paths."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from native.errors import InvalidParam
from native.params import ModelParams
from runtime.errors import ConfigError
from runtime.settings.user_paths import user_path


def model_params(options: Mapping[str, Any], where: str = "model") -> ModelParams:
    """Options by name; a wrong one is a ``ConfigError`` that names it."""
    known = {f.name for f in dataclasses.fields(ModelParams)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(
            f"{where}.{unknown[0]}", f"unknown option; known are {', '.join(sorted(known))}"
        )
    try:
        params = ModelParams(**{name: _as_text(value) for name, value in options.items()})
    except InvalidParam as error:
        raise ConfigError(f"{where}.{error.name}", str(error)) from error
    draft = params.draft_path
    return dataclasses.replace(
        params,
        lora=tuple((str(user_path(path, f"{where}.lora")), scale) for path, scale in params.lora),
        draft_path=None if draft is None else str(user_path(draft, f"{where}.draft_path")),
    )


def _as_text(value: Any, depth: int = 2) -> Any:
    """Path objects as texts, also inside of the lists of ``lora``."""
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if not depth or not isinstance(value, list | tuple):
        return value
    return [_as_text(one, depth - 1) for one in value]
