"""How exact a reply is: which other ways of computing it give the same bits."""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal

ExactName = Literal["repeat", "prefix", "always"]


class Exact(Enum):
    """Levels; each includes the promises of those before it."""

    REPEAT = "repeat"
    """A request that runs alone gives the same bits cold and warm, from every tier."""
    PREFIX = "prefix"
    """Besides, a reply that was interrupted gives the same bits as one that was not."""
    ALWAYS = "always"
    """Besides, other requests in the batch, guesses and earlier turns change nothing."""


EXACT_NAMES: Final = tuple(one.value for one in Exact)
