"""How long a client waits, in seconds, and deadlines on the monotonic clock."""

from __future__ import annotations

import time
from typing import Final

ASK_TIMEOUT_S: Final = 5.0
"""An actor answers in milliseconds; after this it is gone or stuck."""
STATUS_TIMEOUT_S: Final = 1.0
VITALS_TIMEOUT_S: Final = 1.0
LOAD_TIMEOUT_S: Final = 660.0
"""The supervisor ends a load before this, with a reason."""
HEAL_TIMEOUT_S: Final = 30.0
"""A model that crashed is loaded again within this, or the node reports why not."""
LAST_LOOK_S: Final = 0.5
"""What is asked just before a deadline gets so long for its answer."""
SILENCE_TIMEOUT_S: Final = 600.0
"""One step of a huge model on a slow machine stays below it."""
LOST_TIMEOUT_S: Final = 120.0
"""The dispatcher reports on running requests every two seconds; after this one is lost."""
GRACE_S: Final = 1.0
"""The node ends a request at its deadline; its answer may take so long."""
WITHDRAW_S: Final = 0.5
CANCEL_S: Final = 5.0
TEXT_TIMEOUT_S: Final = 60.0
"""Megabytes are tokenised in a second or two; many may wait for the one thread that does it."""
STEP_TIMEOUT_S: Final = 330.0
"""For what the engine answers between two steps: one may take 300 s before it is cut short."""
DRAIN_EXTRA_S: Final = 30.0


def left_s(ends_at: float | None) -> float | None:
    """Seconds until then, at least 0; None without an end."""
    return None if ends_at is None else max(0.0, ends_at - time.monotonic())


def until(within_s: float, ends_at: float | None) -> float:
    """The end of a wait that begins now: after ``within_s``, or earlier at ``ends_at``."""
    own = time.monotonic() + within_s
    return own if ends_at is None else min(own, ends_at)


class Pauses:
    """Short, growing pauses between two looks at something that another process changes."""

    def __init__(self) -> None:
        self._seconds = 0.005

    def next_s(self) -> float:
        """How long the next one is."""
        seconds, self._seconds = self._seconds, min(0.1, self._seconds * 1.5)
        return seconds
