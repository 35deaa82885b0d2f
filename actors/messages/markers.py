"""The markers of a model: what starts and ends its thinking and its tool calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# As the chat templates of published models write them.
_THINKING: Final = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<reasoning>", "</reasoning>"),
)
_TOOL_CALLS: Final = (
    ("<tool_call>", "</tool_call>"),
    ("<|tool_call_start|>", "<|tool_call_end|>"),
    ("<|START_ACTION|>", "<|END_ACTION|>"),
    ("<TOOLCALL>", "</TOOLCALL>"),
    ("<function_calls>", "</function_calls>"),
    ("<minimax:tool_call>", "</minimax:tool_call>"),
    ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
)


def _found(pairs: tuple[tuple[str, str], ...], template: str) -> tuple[str, ...]:
    return next((pair for pair in pairs if pair[0] in template and pair[1] in template), ())


class BadMarkers(ValueError):
    """Markers that cannot be distinguished, or are no texts."""


@dataclass(frozen=True, slots=True)
class Markers:
    """The markers of a model. ``None``: look at its chat template; empty: it has none.

    ``thinking``: start and end. ``tool_call``: start and end, and where a part of the call is free
    text (a program, a file), also what starts and ends that: ``payload_start``, ``payload_end``.
    """

    thinking: tuple[str, ...] | None = None
    tool_call: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, value, sizes in (
            ("thinking_markers", self.thinking, (0, 2)),
            ("tool_call_markers", self.tool_call, (0, 2, 4)),
        ):
            if value is None:
                continue
            if len(value) not in sizes:
                counts = " or ".join(str(size) for size in sizes)
                raise BadMarkers(f"{name} must be a list of {counts} texts")
            if not all(0 < len(one) <= 256 for one in value):
                raise BadMarkers(f"{name} must be texts of 1 to 256 characters")
        starts = [one[0] for one in (self.thinking, self.tool_call) if one]
        if len(set(starts)) < len(starts):
            raise BadMarkers("thinking and tool calls start with the same marker")

    def for_template(self, template: str | None) -> Markers:
        """The same with everything decided: what was ``None`` is looked for in the template."""
        found = template or ""
        return Markers(
            _found(_THINKING, found) if self.thinking is None else self.thinking,
            _found(_TOOL_CALLS, found) if self.tool_call is None else self.tool_call,
        )
