"""Paths as users write them: with ``~``, relative, or wrong. The only place that expands them.

A path that cannot be expanded is a ``ConfigError`` that names the setting it was given in.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from pathlib import Path
from typing import Final

from runtime.errors import ConfigError

NO_HOME: Final = "this user has no home folder: HOME is not set, and user {uid} has no passwd entry"


def home() -> Path | None:
    """The home folder of this user: ``$HOME``, else of passwd; None without either."""
    candidates = [os.environ.get("HOME", "")]
    with contextlib.suppress(KeyError, OSError):
        candidates.append(pwd.getpwuid(os.getuid()).pw_dir)
    return next((Path(one) for one in candidates if os.path.isabs(one)), None)


def state_folder() -> Path | None:
    """Where this user's programs keep logs of their own; None for a user without a home."""
    given = os.environ.get("XDG_STATE_HOME", "")
    place = home()
    if os.path.isabs(given):  # by its specification a relative one is ignored
        return Path(given) / "llama-actors"
    return None if place is None else place / ".local" / "state" / "llama-actors"


def no_home() -> str:
    """Why ``home`` is None, as a clause."""
    return NO_HOME.format(uid=os.getuid())


def expanded(value: object, setting: str) -> Path:
    """The path with ``~`` and ``~user`` replaced; a relative one stays relative."""
    text = _text(value, setting)
    if not text.startswith("~"):
        return Path(text)
    first, separator, rest = text.partition("/")
    if first == "~":
        place = home()
        if place is None:
            raise ConfigError(setting, f"{text!r} starts with ~, but {no_home()}; give a full path")
        return place / rest if separator else place
    try:
        place = Path(pwd.getpwnam(first[1:]).pw_dir)
    except (KeyError, OSError, ValueError):
        raise ConfigError(
            setting,
            f"{text!r} starts with the home folder of a user {first[1:]!r}, and there is no such "
            f"user; give a full path, or ./{text} for a file of that name",
        ) from None
    return place / rest if separator else place


def user_path(value: object, setting: str) -> Path:
    """The absolute path, for processes in other directories."""
    path = expanded(value, setting)
    try:
        return path.absolute()
    except OSError as error:
        raise ConfigError(
            setting,
            f"{str(path)!r} is relative, and the working directory cannot be found "
            f"({error.strerror}); give a full path",
        ) from error


def _text(value: object, setting: str) -> str:
    if not isinstance(value, str | bytes | os.PathLike):
        raise ConfigError(setting, f"{value!r} is not a path")
    text = os.fsdecode(value)
    if not text:
        raise ConfigError(setting, "is empty; name a file or a folder")
    try:
        if b"\0" in os.fsencode(text):
            raise ConfigError(setting, f"{text!r} holds a null byte, which no path can")
    except UnicodeEncodeError as error:
        raise ConfigError(setting, f"{text!r} holds what no file can be named: {error}") from error
    return text
