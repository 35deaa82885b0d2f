"""``thinking_markers`` and ``tool_call_markers`` of a model, as files and callers give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from actors.messages.markers import BadMarkers, Markers
from runtime.errors import ConfigError

KEYS: Final = ("thinking_markers", "tool_call_markers")


def markers_from(options: Mapping[str, Any], where: str) -> Markers:
    """Tuples of texts; empty: none, None: those that the chat template shows."""
    try:
        return Markers(*(options[key] for key in KEYS))
    except BadMarkers as error:
        raise ConfigError(where, str(error)) from error


def markers_mapping(markers: Markers) -> dict[str, Any]:
    """The inverse: only what was set."""
    pairs = zip(KEYS, (markers.thinking, markers.tool_call), strict=True)
    return {key: list(value) for key, value in pairs if value is not None}
