"""What changes of the directory mean: which incarnations ended, and which monitors get a Down.

No clock, no process: entries go in, and each monitor gets exactly one ``Down`` when the one
incarnation that it watches has ended, or had ended before. Changes may be late, repeated,
or leave out intermediate ones: an entry of a later incarnation means that every earlier one is
gone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from supervision.address import Address
from supervision.exits import ExitKind, ExitReason
from supervision.frozen import frozen
from supervision.messages import Down, Entry

NOPROC: Final = ExitReason(ExitKind.ABNORMAL, "noproc: no process of this id is known")
"""The reason of a ``Down`` whose target was not there, or never ran, when it was monitored."""
UNSEEN: Final = ExitReason(ExitKind.ABNORMAL, "gone; its exit was not seen")
"""The reason where a later incarnation is up and the end of the earlier one was not seen."""

_WITH_PROCESS: Final = ("starting", "up", "stopping")


def has_process(entry: Entry) -> bool:
    """Whether a process of this incarnation exists or must be assumed to."""
    return entry.state in _WITH_PROCESS


def merge_directory(
    directory: dict[str, Entry], changed: Iterable[Entry], removed: Iterable[Entry]
) -> tuple[Entry, ...]:
    """Fold changes into ``directory``; the entries that came up, went down, or restarted."""
    news: list[Entry] = []
    for entry in changed:
        old = directory.get(entry.id)
        if old is not None and entry.incarnation < old.incarnation:
            continue
        directory[entry.id] = entry
        was_up = old is not None and old.is_up
        again = was_up and entry.is_up and old is not None and old.incarnation != entry.incarnation
        if was_up != entry.is_up or again:
            news.append(entry)
    for entry in removed:
        old = directory.get(entry.id)
        if old is not None and entry.incarnation >= old.incarnation:
            del directory[entry.id]
            if old.is_up:
                news.append(entry)
    return tuple(news)


@frozen
class Due:
    """A ``Down`` that must be delivered: to ``owner``, or to the process itself if None."""

    owner: Address | None
    down: Down


@frozen
class _Monitor:
    id: str
    incarnation: int
    owner: Address | None


class Monitors:
    """The monitors of one process, its own and those of others that asked it.

    ``limit`` bounds those of others: beyond it the one that was renewed longest ago is dropped,
    for its owner may be gone without notice, and an owner that waits renews. ``memory`` is for how
    many ended incarnations, the latest of the whole tree, the reason is kept.
    """

    def __init__(self, *, limit: int = 10_000, memory: int = 512) -> None:
        self._limit = limit
        self._memory = memory
        self._monitors: dict[str, _Monitor] = {}
        """By ref, the ones renewed last at the end."""
        self._refs: dict[str, dict[str, None]] = {}
        """By target: the refs that watch it, in order."""
        self._due: dict[str, Due] = {}
        self._ended: OrderedDict[tuple[str, int], ExitReason] = OrderedDict()
        self._of_others = 0

    def __len__(self) -> int:
        return len(self._monitors) + len(self._due)

    # ── monitors ─────────────────────────────────────────────────────────────

    def add(
        self,
        ref: str,
        child_id: str,
        entry: Entry | None,
        *,
        incarnation: int | None = None,
        latest: int = 0,
        owner: Address | None = None,
    ) -> None:
        """Watch one incarnation of ``child_id``: that of ``entry`` unless another is named.

        0 means the last one that ended, whether or not there is one now. If the incarnation has
        ended, or there is none, its ``Down`` is due at once. One that is later than ``latest``, the
        last one known of this id, is not known *yet*, and is waited for. Adding a ref again renews
        it and changes its owner.
        """
        due = self._due.get(ref)
        if due is not None:
            self._due[ref] = Due(owner, due.down)
            return
        self.remove(ref)
        down = self._down_at_once(ref, child_id, entry, incarnation, latest)
        if down is not None:
            self._due[ref] = Due(owner, down)
            return
        wanted = incarnation if incarnation is not None or entry is None else entry.incarnation
        self._monitors[ref] = _Monitor(child_id, wanted or 0, owner)
        self._refs.setdefault(child_id, {})[ref] = None
        self._of_others += owner is not None
        if self._of_others > self._limit:
            self.remove(next(r for r, one in self._monitors.items() if one.owner is not None))

    def remove(self, ref: str) -> None:
        """Forget a monitor: no ``Down`` of it is handed out any more."""
        self._due.pop(ref, None)
        self._forget(ref)

    def remove_owner(self, owner: Address) -> None:
        """Forget every monitor of an owner that is gone."""
        for ref in [ref for ref, one in self._monitors.items() if one.owner == owner]:
            self._forget(ref)
        for ref in [ref for ref, due in self._due.items() if due.owner == owner]:
            del self._due[ref]

    # ── news ─────────────────────────────────────────────────────────────────

    def observe(self, changed: Iterable[Entry], removed: Iterable[Entry]) -> None:
        """Take changes of the directory: monitors of what ended become due."""
        for entry in changed:
            self._end(entry, entry.incarnation - has_process(entry))
        for entry in removed:
            self._end(entry, entry.incarnation)

    def has_ended(self, entry: Entry) -> bool:
        """Whether this incarnation has ended, so that the entry is outdated."""
        return (entry.id, entry.incarnation) in self._ended

    def due_refs(self) -> tuple[str, ...]:
        """The refs whose ``Down`` waits to be taken, oldest first."""
        return tuple(self._due)

    def take(self, ref: str) -> Due | None:
        """Take a ``Down`` that is due; None if it was removed or taken. The monitor is spent."""
        return self._due.pop(ref, None)

    # ── inside ───────────────────────────────────────────────────────────────

    def _end(self, entry: Entry, last: int) -> None:
        """Incarnations up to ``last`` of this entry's id are over."""
        if last > 0 and (entry.id, last) not in self._ended:
            self._ended[entry.id, last] = entry.last_exit or UNSEEN
            if len(self._ended) > self._memory:
                self._ended.popitem(last=False)
        for ref in tuple(self._refs.get(entry.id, ())):
            one = self._monitors[ref]
            if one.incarnation <= last:
                reason = self._ended.get((one.id, one.incarnation)) or entry.last_exit or UNSEEN
                self._forget(ref)
                self._due[ref] = Due(one.owner, Down(ref, one.id, one.incarnation, reason))

    def _down_at_once(
        self, ref: str, child_id: str, entry: Entry | None, incarnation: int | None, latest: int
    ) -> Down | None:
        if incarnation == 0 or (incarnation is None and entry is None):
            last, reason = self._last_end(child_id)
            return Down(ref, child_id, last, reason)
        wanted = entry.incarnation if incarnation is None and entry is not None else incarnation
        wanted = wanted or 0
        reason_known = self._ended.get((child_id, wanted))
        if reason_known is not None:
            return Down(ref, child_id, wanted, reason_known)
        if entry is None:
            is_over, reason = wanted <= latest, NOPROC
        else:
            is_over = wanted <= entry.incarnation - has_process(entry)
            reason = entry.last_exit or (NOPROC if entry.incarnation == 0 else UNSEEN)
        return Down(ref, child_id, wanted, reason) if is_over else None

    def _last_end(self, child_id: str) -> tuple[int, ExitReason]:
        ends = ((n, reason) for (one, n), reason in self._ended.items() if one == child_id)
        return max(ends, key=lambda end: end[0], default=(0, NOPROC))

    def _forget(self, ref: str) -> None:
        one = self._monitors.pop(ref, None)
        if one is None:
            return
        self._of_others -= one.owner is not None
        refs = self._refs[one.id]
        del refs[ref]
        if not refs:
            del self._refs[one.id]
