"""Which node is meant: its admin port, and the folder of the node on that port."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from runtime.errors import ConfigError

DEFAULT_PORT: Final = 19460  # unassigned by IANA, and far from Thespian's own default of 1900
PORT_VARIABLE: Final = "LLAMA_ACTORS_PORT"
RUNTIME_DIR_VARIABLE: Final = "LLAMA_ACTORS_RUNTIME_DIR"


def resolve_port(given: int | None) -> int:
    """The admin port: given, else the environment's, else the default."""
    if given is not None:
        return given
    text = os.environ.get(PORT_VARIABLE)
    if text is None:
        return DEFAULT_PORT
    if not text.isdigit():
        raise ConfigError(PORT_VARIABLE, f"{text!r} is not a port number")
    return int(text)


def node_dir(port: int, base: Path | None = None) -> Path:
    """Where the node on ``port`` keeps its secret and addresses."""
    if base is None and os.environ.get(RUNTIME_DIR_VARIABLE):
        base = Path(os.environ[RUNTIME_DIR_VARIABLE])
    if base is None and os.environ.get("XDG_RUNTIME_DIR"):
        base = Path(os.environ["XDG_RUNTIME_DIR"]) / "llama-actors"
    if base is None:
        base = Path(tempfile.gettempdir()) / f"llama-actors-{os.getuid()}"
    return base / f"node-{port}"
