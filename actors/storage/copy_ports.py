"""What ``cache_meta`` gives to the parts of it that have rows copied."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors import messages as m
from cache.answers import RAM, Evicted, Reservation

if TYPE_CHECKING:
    from supervision import Address


@dataclass(frozen=True, slots=True)
class CopyPorts:
    """The ways out of ``cache_meta``."""

    send: Callable[[str | Address, object], bool]
    """Sends to an actor; False if it is not up."""
    dispose: Callable[[Sequence[Evicted]], None]
    """Removes what the index has evicted; before its place is used again."""
    holder: Callable[[str], str | None]
    """Names the living process of a child, or None."""
    log: logging.Logger


def copy_order(granted: Reservation) -> m.CopyRow:
    """The order to make a copy for which room is reserved."""
    return m.CopyRow(
        granted.key,
        granted.row_bytes,
        granted.source_tier or RAM,
        granted.source,
        granted.tier,
        granted.offset,
    )
