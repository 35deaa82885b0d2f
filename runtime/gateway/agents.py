"""Side requests of agents: titles, summaries and the like, which must cost their turns nothing.

An agent sends short requests without tools beside its turns, and no later request continues them.
If each left its sequence in the context, the agent's own, which the next turn continues, would
be pushed out. So nothing of them stays there; their rows are in the other tiers, like all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from runtime.gateway.keys import Key
from runtime.gateway.wire.wanted import Wanted

TURN_S: Final = 600.0
"""How long a turn of an agent makes other requests side requests."""
SMALL: Final = 4
"""A side request has at most this part of the bytes of the agent's last turn: one in so many."""
MAX_KEYS: Final = 1024


class Agents:
    """The latest turn of an agent, by key."""

    def __init__(self) -> None:
        self._turns: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def marked(self, wanted: Wanted, key: Key, n_bytes: int, now: float) -> Wanted:
        """The request, with ``drop_live`` if it is a side request.

        ``n_bytes``: of its body. ``now`` is in seconds, on a monotonic clock.
        """
        if wanted.kind != "chat":
            return wanted
        if wanted.options.get("tools"):
            self._turns.pop(key.name, None)
            self._turns[key.name] = (now, n_bytes)
            if len(self._turns) > MAX_KEYS:
                self._turns.popitem(last=False)
            return wanted
        at, n_turn = self._turns.get(key.name, (float("-inf"), 0))
        is_side = now - at <= TURN_S and n_bytes * SMALL <= n_turn and _begins(wanted)
        return replace(wanted, options={**wanted.options, "drop_live": True}) if is_side else wanted


def _begins(wanted: Wanted) -> bool:
    """Whether it has no reply in it: a conversation that is under way is continued."""
    return not any(
        isinstance(one, Mapping) and one.get("role") == "assistant"
        for given in wanted.inputs
        for one in _messages(given)
    )


def _messages(given: Any) -> list[Any]:
    return given if isinstance(given, list) else []
