"""The requests of all workers, as a page shows them: those that run, and the last that have ended.

Every change has a number. Who has seen all up to one asks for what has changed after it. Pure.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection
from typing import Final

from supervision.frozen import frozen

MAX_ENDED: Final = 200
"""Requests that have ended and are kept."""
MAX_GONE: Final = 512
"""Ids that are kept of requests that run no more and whose end is not known."""
MAX_BYTES: Final = 40 << 10
"""Of the records in one message."""


@frozen
class Noted:
    """One request, as far as it is."""

    id: str
    key: str
    """Name of its key."""
    worker: int
    is_over: bool
    body: bytes
    """Its ``RequestRecord`` as JSON."""


@frozen
class Changes:
    """What has changed after a number."""

    last: int
    """The number up to which this is all."""
    is_all: bool
    """It takes the place of what the reader has."""
    is_last: bool
    """There is no more at present."""
    requests: tuple[tuple[int, Noted], ...]
    """With the number of each, ascending."""
    gone: tuple[str, ...] = ()
    """Ids of those that run no more, and whose end is not known."""


class Board:
    """In the ledger; and in each worker that shows it, as far as that has read it."""

    def __init__(self, max_ended: int = MAX_ENDED) -> None:
        self.last = 0
        """Number of the last change."""
        self._max_ended = max_ended
        self._known: OrderedDict[str, tuple[int, Noted]] = OrderedDict()
        """By their ids, in the order of their last changes."""
        self._gone: deque[tuple[int, str]] = deque()
        self._forgotten = 0
        """Number of the last change that is not kept any more."""

    def __len__(self) -> int:
        return len(self._known)

    def put(self, one: Noted) -> None:
        """A request as it is now. One that has ended does not run again."""
        known = self._known.get(one.id)
        if known is not None and (known[1] == one or (known[1].is_over and not one.is_over)):
            return
        self.last += 1
        self._place(self.last, one)

    def _place(self, number: int, one: Noted) -> None:
        self._known.pop(one.id, None)
        self._known[one.id] = number, one
        if one.is_over:
            ended = [name for name, (_, known) in self._known.items() if known.is_over]
            for name in ended[: max(0, len(ended) - self._max_ended)]:
                del self._known[name]

    def keep_running(self, worker: int, ids: Collection[str]) -> None:
        """These are all requests that run in a worker."""
        ids = frozenset(ids)
        left = [
            name
            for name, (_, one) in self._known.items()
            if one.worker == worker and not one.is_over and name not in ids
        ]
        for name in left:
            self.last += 1
            self._drop(self.last, name)

    def _drop(self, number: int, name: str) -> None:
        if self._known.pop(name, None) is None:
            return
        self._gone.append((number, name))
        while len(self._gone) > MAX_GONE:
            self._forgotten, _ = self._gone.popleft()

    def since(self, after: int, owner: str | None = None, *, max_bytes: int = MAX_BYTES) -> Changes:
        """What has changed after a number; 0: all. ``owner``: only requests of this key."""
        is_all = not self._forgotten <= after <= self.last or after == 0
        start = 0 if is_all else after
        found: list[tuple[int, Noted]] = []
        for number, one in reversed(self._known.values()):
            if number <= start:
                break
            if owner is None or one.key == owner:
                found.append((number, one))
        found.reverse()
        n_bytes = 0
        for at, (_, one) in enumerate(found):
            n_bytes += len(one.body)
            if at and n_bytes > max_bytes:
                found = found[:at]
                break
        else:
            n_bytes = 0
        last = found[-1][0] if n_bytes else self.last
        left = [] if is_all else [one for at, one in self._gone if start < at <= last]
        gone = tuple(one for one in dict.fromkeys(left) if one not in self._known)
        return Changes(last, is_all, is_last=not n_bytes, requests=tuple(found), gone=gone)

    def take(self, changes: Changes) -> None:
        """What another board has changed, by its own numbers."""
        if changes.is_all:
            self._known.clear()
            self._gone.clear()
            self._forgotten = self.last
        for name in changes.gone:
            self._drop(changes.last, name)
        for number, one in changes.requests:
            self._place(number, one)
        self.last = changes.last
