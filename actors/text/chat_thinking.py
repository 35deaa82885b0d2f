"""``enable_thinking`` and ``reasoning_effort`` as the variables that a template reads.

Templates have a switch (``enable_thinking``, ``thinking`` …), a level (``reasoning_effort`` …), a
budget in tokens, several of these, or none. ``none`` switches thinking off, any level switches it
on; a level that a template does not know becomes its next higher one, else its highest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from actors.text.chat_form import Shape

EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
SWITCHES: Final[Mapping[str, tuple[object, object]]] = {
    "enable_thinking": (True, False),
    "thinking": (True, False),
    "thinking_mode": ("enabled", "disabled"),
    "thinking_budget": (-1, 0),
    "reasoning": (True, False),
}
"""Names of variables, and their values for on and off."""
LEVELS: Final = ("reasoning_effort", "reasoning_strength", "thinking_effort")
BUDGET: Final = "thinking_budget"
_BUDGETS: Final = {"minimal": 512, "low": 1024, "medium": 4096}
"""Tokens; more than that is not limited."""


def thinking_variables(wish: object, effort: str | None, shape: Shape) -> dict[str, Any]:
    """Variables for a template of this shape. ``wish``: enable_thinking, None: not given."""
    variables: dict[str, Any] = {}
    if wish is None and effort is not None:
        wish = effort != "none"
    if wish is not None:
        on, off = SWITCHES[shape.thinking]
        is_plain = isinstance(on, bool)
        variables[shape.thinking] = wish if is_plain else on if wish else off
    if effort is None:
        if wish is not None and shape.no_effort:  # a level that is a switch as well
            level = _nearest("high", shape.efforts) if wish else shape.no_effort
            variables[shape.effort] = level
        return variables
    if shape.effort == BUDGET and effort in _BUDGETS:
        variables[BUDGET] = _BUDGETS[effort]
    elif effort == "none" and shape.no_effort:
        variables[shape.effort] = shape.no_effort
    elif effort != "none" and shape.efforts:
        variables[shape.effort] = _nearest(effort, shape.efforts)
    return variables


def _nearest(effort: str, known: tuple[str, ...]) -> str:
    """That level, else the next higher one, else the highest."""
    least = EFFORTS.index(effort)
    return next((one for one in known if EFFORTS.index(one) >= least), known[-1])
