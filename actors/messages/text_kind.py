"""The kinds of text that a reply consists of."""

from __future__ import annotations

from enum import Enum


class TextKind(Enum):
    """What a part of a reply is; see the markers of its model."""

    TEXT = "text"
    THINKING = "thinking"
    TOOL_CALL = "tool_call"
