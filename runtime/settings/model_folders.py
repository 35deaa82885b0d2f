"""Where models are on this machine: fetched ones, a folder of the user's, Ollama's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from runtime.errors import ConfigError
from runtime.settings.user_paths import home, no_home, user_path

STORE_VARIABLE: Final = "LLAMA_ACTORS_STORE"
MODELS_DIR_VARIABLE: Final = "LLAMA_ACTORS_MODELS_DIR"
OLLAMA_VARIABLE: Final = "OLLAMA_MODELS"
_OLLAMA_SERVICE: Final = Path("/usr/share/ollama/.ollama/models")
"""Where Ollama's own installer for Linux keeps them."""


def store_folder() -> Path:
    """The folder of fetched models: of the environment, else in the user's data directory."""
    given = os.environ.get(STORE_VARIABLE)
    if given:
        return user_path(given, STORE_VARIABLE)
    data = os.environ.get("XDG_DATA_HOME", "")
    place = home()
    if os.path.isabs(data):  # by its specification a relative one is ignored
        return Path(data) / "llama-actors" / "models"
    if place is None:
        raise ConfigError(STORE_VARIABLE, f"{no_home()}; name a folder for models with it")
    return place / ".local" / "share" / "llama-actors" / "models"


def models_folder(given: Path | None = None) -> Path | None:
    """The user's own folder of GGUF files: given, else of the environment, else none."""
    if given is not None:
        return user_path(given, "--models-dir")
    text = os.environ.get(MODELS_DIR_VARIABLE)
    return user_path(text, MODELS_DIR_VARIABLE) if text else None


def ollama_folders() -> list[Path]:
    """Where Ollama keeps models: as its variable names it, else in its usual places."""
    given = os.environ.get(OLLAMA_VARIABLE)
    if given:
        return [user_path(given, OLLAMA_VARIABLE)]
    place = home()
    return [*([] if place is None else [place / ".ollama" / "models"]), _OLLAMA_SERVICE]


def hub_caches() -> list[Path]:
    """Where ``huggingface_hub`` and llama.cpp keep files of a hub."""
    names = {"HF_HUB_CACHE": (), "HUGGINGFACE_HUB_CACHE": (), "HF_HOME": ("hub",)}
    for name, below in names.items():
        if os.environ.get(name):
            return [user_path(os.environ[name], name).joinpath(*below)]
    cache = os.environ.get("XDG_CACHE_HOME", "")
    place = home()
    if os.path.isabs(cache):
        return [Path(cache) / "huggingface" / "hub"]
    return [] if place is None else [place / ".cache" / "huggingface" / "hub"]
