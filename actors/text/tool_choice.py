"""Which tools a reply may or must call: ``tool_choice`` in the forms that APIs have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from actors.messages.errors import InvalidRequest

Kind = Literal["auto", "none", "required"]
_WORDS: Final[Mapping[str, Kind]] = {
    "auto": "auto",
    "none": "none",
    "required": "required",
    "any": "required",  # as Anthropic's API has it
}
_FORMS: Final = (
    'auto, none, required, or {"type": "function", "function": {"name": …}} with the name of a tool'
)


class BadToolChoice(InvalidRequest):
    """It is not one of the forms, or what it asks for is not there; the text names which."""


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """What a reply may do with tools."""

    kind: Kind = "auto"
    name: str | None = None
    """The one tool that must be called."""
    is_parallel: bool | None = None
    """Whether a reply may hold several calls; ``None``: as the model's template has it."""

    @property
    def must_call(self) -> bool:
        return self.kind == "required"

    def among(self, tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The tools that may be called; BadToolChoice where one is required that is not there."""
        if self.must_call and not tools:
            raise BadToolChoice("tool_choice requires a call, and the request has no tools")
        if self.name is None:
            return list(tools)
        found = [one for one in tools if name_of(one) == self.name]
        if not found:
            known = ", ".join(sorted(filter(None, map(name_of, tools))))
            raise BadToolChoice(f"tool_choice names {self.name!r}; the tools are {known}")
        return found[:1]


def name_of(tool: Mapping[str, Any]) -> str:
    """The name of a tool in OpenAI's form; empty where it has none."""
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else ""


def tool_choice_from(choice: object, parallel: object) -> ToolChoice:
    """Read ``tool_choice`` and ``parallel_tool_calls``; BadToolChoice names what is wrong."""
    if parallel is not None and not isinstance(parallel, bool):
        raise BadToolChoice("parallel_tool_calls must be true or false")
    if choice is None:
        return ToolChoice(is_parallel=parallel)
    if isinstance(choice, str) and choice in _WORDS:
        return ToolChoice(_WORDS[choice], is_parallel=parallel)
    if isinstance(choice, Mapping):
        kind = choice.get("type")
        if isinstance(kind, str) and kind in _WORDS:
            return ToolChoice(_WORDS[kind], is_parallel=parallel)
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
        if kind in ("function", "tool") and isinstance(name, str) and name:
            return ToolChoice("required", name, parallel)
    raise BadToolChoice(f"tool_choice must be {_FORMS}")
