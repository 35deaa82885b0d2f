"""``chat_template`` and ``chat_template_file`` of a model, as settings and callers give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from runtime.errors import ConfigError
from runtime.settings.user_paths import user_path

TEXT: Final = "chat_template"
FILE: Final = "chat_template_file"
KEYS: Final = (TEXT, FILE)
MAX_BYTES: Final = 48 << 10
"""It travels in one message with the load options; published ones have up to 30 KiB."""


def template_from(options: Mapping[str, Any], where: str) -> str | None:
    """The template's text, read and compiled once as a check; None: the model's own.

    Raises ConfigError with Jinja's message if it does not compile, and if it prints no messages.
    """
    given = [key for key in KEYS if options.get(key) is not None]
    if not given:
        return None
    if len(given) == 2:
        raise ConfigError(f"{where}.{FILE}", f"give either {TEXT} or {FILE}")
    key = f"{where}.{given[0]}"
    text = options[given[0]] if given[0] == TEXT else _read(options[FILE], key)
    return checked(text, key)


def checked(text: object, key: str) -> str:
    """The text, if it is a chat template that compiles and is not too long."""
    from actors.text.chat_template import (  # Jinja takes a while to import
        ChatTemplate,
        TemplateFailed,
    )

    if not isinstance(text, str):
        raise ConfigError(key, f"{text!r} is not a text; name a file with {FILE}")
    if not text.strip():
        raise ConfigError(key, "is empty; leave it out for the model's own template")
    n_bytes = len(text.encode("utf-8", "surrogatepass"))
    if n_bytes > MAX_BYTES:
        raise ConfigError(key, f"has {n_bytes} bytes; at most {MAX_BYTES} are accepted")
    try:
        text.encode("utf-8")
        template = ChatTemplate(text)
    except UnicodeEncodeError as error:
        raise ConfigError(key, f"is not UTF-8: {error}") from error
    except TemplateFailed as error:
        raise ConfigError(key, str(error)) from error
    if "messages" not in template.variables:
        raise ConfigError(key, "is no chat template: it reads no variable named messages")
    return text


def _read(path: object, key: str) -> str:
    place = user_path(path, key)
    try:
        with place.open("rb") as file:
            return file.read(MAX_BYTES + 1).decode("utf-8")
    except OSError as error:
        raise ConfigError(key, f"cannot read {place}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        if error.start >= MAX_BYTES - 3:
            raise ConfigError(key, f"{place} has more than {MAX_BYTES} bytes") from error
        raise ConfigError(key, f"{place} is not UTF-8 at byte {error.start}") from error
