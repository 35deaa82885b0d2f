"""How a node is found: its admin port and the folder of the node there, or its gateway's URL."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from runtime.errors import ConfigError
from runtime.settings.user_paths import user_path

DEFAULT_PORT: Final = 19460  # unassigned by IANA, and far from Thespian's own default of 1900
PORT_VARIABLE: Final = "LLAMA_ACTORS_PORT"
URL_VARIABLE: Final = "LLAMA_ACTORS_URL"
"""A gateway, for the commands that work on one elsewhere."""
KEY_VARIABLE: Final = "LLAMA_ACTORS_KEY"
"""Its key."""
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
        base = user_path(os.environ[RUNTIME_DIR_VARIABLE], RUNTIME_DIR_VARIABLE)
    if base is None:
        base = _default_runtime_dir()
    return base / f"node-{port}"


def _default_runtime_dir() -> Path:
    """``$XDG_RUNTIME_DIR/llama-actors`` if that folder is this user's own, else a temporary one.

    The variable may be that of another user, for instance after ``su``, or name a missing folder.
    """
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(given):
        with contextlib.suppress(OSError, ValueError):
            facts = os.stat(given)
            if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid():
                return Path(given) / "llama-actors"
    import tempfile  # here: it takes milliseconds, and few commands need it

    try:
        temporary = tempfile.gettempdir()
    except OSError as error:
        raise ConfigError(
            "runtime_dir",
            f"there is no folder for it: XDG_RUNTIME_DIR is not set, and {error.strerror}; "
            f"name one with {RUNTIME_DIR_VARIABLE}",
        ) from error
    place = Path(temporary) / f"llama-actors-{os.getuid()}"
    _require_own(place)
    return place


def _require_own(place: Path) -> None:
    """Any user can create a folder of this name in /tmp and read what is put into it."""
    try:
        facts = place.lstat()
    except OSError:
        return  # missing: the node creates it with mode 0700
    trouble = ""
    if not stat.S_ISDIR(facts.st_mode):
        trouble = "is no folder; remove it"
    elif facts.st_uid != os.getuid():
        trouble = f"belongs to user {facts.st_uid}"
    elif facts.st_mode & 0o022:
        trouble = f"can be changed by other users; `chmod 0700 {place}`"
    if trouble:
        raise ConfigError("runtime_dir", f"{place} {trouble}, or set {RUNTIME_DIR_VARIABLE}")
