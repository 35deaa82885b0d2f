"""``thinking_markers`` and ``tool_call_markers`` of a model, as files and callers give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from actors.messages.markers import BadMarkers, Markers
from runtime.errors import ConfigError
from runtime.settings.arguments import shown

KEYS: Final = ("thinking_markers", "tool_call_markers")


def markers_from(options: Mapping[str, Any], where: str) -> Markers:
    """Lists of texts; ``[]``: none, a missing key: those that the chat template shows."""
    given: list[tuple[str, ...] | None] = []
    for key in KEYS:
        value = options.get(key)
        if value is not None and (
            not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value)
        ):
            raise ConfigError(f"{where}.{key}", f"{shown(value)} is not a list of texts")
        given.append(None if value is None else tuple(value))
    try:
        return Markers(*given)
    except BadMarkers as error:
        raise ConfigError(where, str(error)) from error


def markers_mapping(markers: Markers) -> dict[str, Any]:
    """The inverse: only what was set."""
    pairs = zip(KEYS, (markers.thinking, markers.tool_call), strict=True)
    return {key: list(value) for key, value in pairs if value is not None}
