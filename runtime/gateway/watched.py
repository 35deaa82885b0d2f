"""What the ledger keeps for open pages: requests of all workers, and one snapshot of the node.

Without an open page it keeps the last requests that have ended, and nothing else is asked or sent.
With any number of them one worker a second is given the turn to ask the actors. Pure.
"""

from __future__ import annotations

from typing import Final

from runtime.gateway.accounts import Incarnation
from runtime.gateway.board import Board
from runtime.gateway.watch_messages import NoteRequests, RequestsNoted

WATCHED_S: Final = 2.5
"""How long a page counts as open after its worker has asked last."""
LOOK_EVERY_S: Final = 1.0
MAX_SNAPSHOT_BYTES: Final = 48 << 10
"""Compressed; some thousand processes."""


class Watched:
    """Of one gateway."""

    def __init__(self, epoch: int) -> None:
        """``epoch``: different in each process of the ledger."""
        self.epoch = epoch
        self.board = Board()
        self._newest: dict[int, Incarnation] = {}
        self._watched_until = 0.0
        self._looked_at: float | None = None
        self._snapshot = b""
        self._n_snapshots = 0

    def is_watched(self, now: float) -> bool:
        """Whether a page is open."""
        return now < self._watched_until

    def noted(self, message: NoteRequests, now: float) -> RequestsNoted:
        """A worker has sent its requests; what it gets for that."""
        who, seen = message.who, message.seen
        newest = self._newest.get(who.number)
        if newest is None or newest <= who:
            self._newest[who.number] = who
            for one in message.requests:
                self.board.put(one)
            if message.running is not None:
                self.board.keep_running(who.number, message.running)
        if seen is None:
            return RequestsNoted(message.ref, self.epoch, self.is_watched(now))
        self._watched_until = now + WATCHED_S
        must_look = self._looked_at is None or now - self._looked_at >= LOOK_EVERY_S
        if must_look:
            self._looked_at = now
        is_known = seen.epoch == self.epoch
        has_old = is_known and seen.snapshot == self._n_snapshots
        return RequestsNoted(
            message.ref,
            self.epoch,
            is_watched=True,
            must_look=must_look,
            changes=self.board.since(seen.last if is_known else 0),
            snapshot_number=self._n_snapshots,
            snapshot=None if has_old or not self._snapshot else self._snapshot,
        )

    def looked(self, snapshot: bytes) -> None:
        """The node as a worker has seen it."""
        if len(snapshot) <= MAX_SNAPSHOT_BYTES:
            self._snapshot = snapshot
            self._n_snapshots += 1
