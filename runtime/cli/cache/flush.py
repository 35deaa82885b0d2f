"""Having everything written that waits: the ends of idle sequences, and rows behind slow disks.

A node writes by itself, the end of a reply some seconds later than the rest. Whoever is about to
kill it, or counts what is on disk, need not wait for that.
"""

from __future__ import annotations

import time
from typing import Final

from actors import messages as m
from runtime import errors
from runtime.client.client import Client
from supervision.messages import new_ref

FLUSH_TIMEOUT_S: Final = 30.0
LOOK_EVERY_S: Final = 0.02


def is_flushed(client: Client) -> bool:
    """Put nothing off any longer; whether every file tier holds all that is worth keeping there."""
    answer = client.ask("cache_meta", m.PersistNow(new_ref()))
    return isinstance(answer, m.PersistState) and answer.is_all


def flush(client: Client, timeout_s: float = FLUSH_TIMEOUT_S) -> None:
    """Wait until all is written; ``NoReply`` when a disk does not take it in time."""
    deadline = time.monotonic() + timeout_s
    while not is_flushed(client):
        if time.monotonic() > deadline:
            raise errors.NoReply(
                f"not everything is on disk after {timeout_s:.0f} s; see `cache stat` for a tier "
                "that is closed or slow"
            )
        time.sleep(LOOK_EVERY_S)  # noqa: TID251  # a command line waiting for a node, not an actor
