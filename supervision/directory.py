"""The directory: every child of the tree and its address, kept up to date in every process.

The directory flows along the tree and nowhere else. Each supervisor reports its own children
upwards; the root has the whole tree and is the only one to publish; what it publishes flows
down to every worker. So every process sees the same changes in the same order. When a supervisor
dies, its supervisor takes its whole subtree out of the directory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from supervision.address import Address
from supervision.effects import Child, State
from supervision.exits import ExitKind, ExitReason
from supervision.frozen import frozen
from supervision.messages import (
    Demonitor,
    DirectoryChanged,
    Entry,
    Init,
    Located,
    Monitor,
    NotLocated,
    SubtreeChanged,
    WhereIs,
)
from supervision.monitors import Due
from supervision.spec import ChildKind
from supervision.worker import Worker

_PUSH_PAUSE_S = 0.005
"""Changes without an arrival wait this long: mostly the child is up again by then."""


_PUSH_PAUSE_PER_ENTRY_S = 0.001
"""Changes go to every process, so a large tree gathers them for longer: a fifth of the time at most
goes into notifying a hundred processes of each other."""
_WAITING = 10_000
_WAIT_S = 60.0
_PUSH_AGAIN_S = 1.0
"""A child accepted no push, so it is ending or stopped; nothing is urgent for it."""


@frozen
class PushDue:
    """Timer: the pause before a directory push is over."""


@frozen
class LocateDue:
    """Timer: answer a request that waits for a child to come up."""

    ref: str


@dataclass(slots=True)
class ChildProcess:
    """The process of one incarnation of one child."""

    pid: int
    started_at: float
    address: Address | None = None
    pushing: bool = False
    """A directory push is on its way and was not accepted yet."""
    push_again: bool = False
    """Another one was due meanwhile."""


class DirectoryKeeper(Worker):
    """The part of a supervisor that reports its children upwards and passes changes downwards."""

    _push_due = False
    _pushed_at = 0.0

    def prepare(self, init: Init) -> None:
        self._processes: dict[str, ChildProcess] = {}
        self._reported: dict[str, Entry] = {}
        self._known: dict[str, tuple[object, ...]] = {}
        self._unpushed: dict[str, tuple[dict[str, Entry], dict[str, Entry]]] = {}
        self._waiting: dict[str, tuple[str, Address]] = {}
        """Requests that wait for a child to come up: its id and the asker, by ref."""
        self._incarnations = dict(init.incarnations)
        for entry in init.directory:
            self._note_incarnation(entry)

    @property
    def _is_root(self) -> bool:
        return self.parent_id == ""

    def _entry(self, child: Child) -> Entry:
        process = self._processes.get(child.id)
        alive = process if child.has_process else None
        old = self._reported.get(child.id)
        return Entry(
            id=child.id,
            kind=child.spec.kind,
            parent=self.id,
            actor=child.spec.actor,
            address=alive.address if alive and child.state is State.UP else None,
            pid=alive.pid if alive else None,
            incarnation=child.incarnation,
            state=child.state.value,
            restarts=child.restarts,
            started_at=process.started_at if process else (old.started_at if old else 0.0),
            last_exit=child.last_exit,
        )

    def _own_entry(self, actor: str) -> Entry:
        return Entry(
            self.id, ChildKind.SUPERVISOR, "", actor, self.address, os.getpid(), self.incarnation,
            "up", 0, time.time(),
        )  # fmt: skip

    def _changed_entries(self, children: Iterable[Child]) -> tuple[Entry, ...]:
        changed: list[Entry] = []
        for child in children:
            # What an entry is made of, compared without making one: there may be hundreds.
            process = self._processes.get(child.id)
            known = (
                child.state, child.incarnation, child.restarts, child.last_exit,
                process.pid if process else 0, process.address if process else None,
            )  # fmt: skip
            if self._known.get(child.id) != known:
                self._known[child.id] = known
                entry = self._reported[child.id] = self._entry(child)
                changed.append(entry)
        return tuple(changed)

    def _below(self, supervisor_id: str) -> tuple[Entry, ...]:
        """The entries below a supervisor that died, marked as down."""
        above = {supervisor_id}
        gone: list[Entry] = []
        while below := [
            e for e in self.directory.values() if e.parent in above and e.id not in above
        ]:
            above.update(entry.id for entry in below)
            gone.extend(below)
        lost = ExitReason(ExitKind.KILLED, f"its supervisor {supervisor_id} died")
        return tuple(replace(e, state="down", address=None, pid=None, last_exit=lost) for e in gone)

    def _report(
        self, changed: tuple[Entry, ...], removed: tuple[Entry, ...], lost: tuple[str, ...] = ()
    ) -> None:
        for entry in removed:
            self._reported.pop(entry.id, None)
            self._known.pop(entry.id, None)
        if not (changed or removed or lost):
            return
        if self._is_root:
            for supervisor_id in lost:
                removed = (*removed, *self._below(supervisor_id))
            self._apply_directory(changed, removed)
        else:
            report = SubtreeChanged(self.id, self.incarnation, changed, removed, lost)
            self._mailbox.send(self._parent, report)

    def _apply_directory(self, changed: tuple[Entry, ...], removed: tuple[Entry, ...]) -> None:
        super()._apply_directory(changed, removed)
        for entry in (*changed, *removed):
            self._note_incarnation(entry)
        for child_id in self._processes:
            add_news(self._unpushed.setdefault(child_id, ({}, {})), changed, removed)
        if self._waiting:
            self._answer_waiting()
        # Only the root pauses; what it has published is passed down at once. An arrival
        # is worth a message, while publishing that a child went down would delay its restart.
        if not self._is_root:
            self._push_all()
            return
        is_arrival = self._is_ready and any(entry.is_up for entry in changed)
        pause_s = max(_PUSH_PAUSE_S, _PUSH_PAUSE_PER_ENTRY_S * len(self.directory))
        left_s = self._pushed_at + pause_s - time.monotonic()
        if is_arrival and left_s <= 0:
            self._push_all()
        elif not self._push_due:
            self._push_due = True
            self.after(max(_PUSH_PAUSE_S, left_s), PushDue())

    def _locate(self, request: WhereIs, asker: Address) -> None:
        """Answer where a child is, now or when it is up."""
        entry = self.directory.get(request.id)
        is_coming = entry is not None and not entry.is_up and request.until_up_s > 0
        if is_coming and len(self._waiting) < _WAITING:
            self._waiting[request.ref] = (request.id, asker)
            self.after(min(request.until_up_s, _WAIT_S), LocateDue(request.ref))
        else:
            self._answer_where(request.ref, request.id, asker)

    def _answer_where(self, ref: str, child_id: str, asker: Address) -> None:
        entry = self.directory.get(child_id)
        self.tell(asker, Located(ref, entry) if entry else NotLocated(ref, child_id))

    def _locate_due(self, due: LocateDue) -> None:
        child_id, asker = self._waiting.pop(due.ref, ("", None))
        if asker is not None:
            self._answer_where(due.ref, child_id, asker)

    def _answer_waiting(self) -> None:
        """Something changed: answer the requests whose child is up, or gone for good."""
        for ref, (child_id, asker) in list(self._waiting.items()):
            entry = self.directory.get(child_id)
            if entry is None or entry.is_up:
                del self._waiting[ref]
                self._answer_where(ref, child_id, asker)

    def _push_all(self) -> None:
        self._pushed_at = time.monotonic()
        for child_id in self._processes:
            self._push(child_id)

    def _push(self, child_id: str) -> None:
        """Send a child the changes that it has not received.

        One push at a time: a child that is busy gets one message with the latest state later
        instead of a queue of stale ones.
        """
        process = self._processes.get(child_id)
        if process is None:
            return
        if process.pushing:
            process.push_again = True
            return
        changed, removed = self._unpushed.pop(child_id, ({}, {}))
        if not (changed or removed):
            return
        process.pushing = True

        def accepted(arrived: bool) -> None:
            process.pushing = False
            if self._processes.get(child_id) is not process:
                return
            if arrived:
                if process.push_again:
                    process.push_again = False
                    self._push(child_id)
                return
            newer = self._unpushed.get(child_id, ({}, {}))
            add_news((changed, removed), newer[0].values(), newer[1].values())
            self._unpushed[child_id] = (changed, removed)
            self.after(_PUSH_AGAIN_S, PushDue())

        push = DirectoryChanged(tuple(changed.values()), tuple(removed.values()))
        self._mailbox.send(process.pid, push, accepted)

    def _note_incarnation(self, entry: Entry) -> None:
        last = self._incarnations.get(entry.id, 0)
        self._incarnations[entry.id] = max(last, entry.incarnation)

    # ── monitors of hosts ────────────────────────────────────────────────────

    def _set_monitor(self, request: Monitor | Demonitor, sender: Address) -> None:
        """Keep, renew or forget a monitor for a host."""
        match request:
            case Monitor(ref, child_id, incarnation):
                self._monitors.add(
                    ref, child_id, self.directory.get(child_id), incarnation=incarnation,
                    latest=self._incarnations.get(child_id, 0), owner=sender,
                )  # fmt: skip
                due = self._monitors.take(ref)
                if due is not None:
                    self._deliver_down(due)
            case Demonitor(""):
                self._monitors.remove_owner(sender)
            case Demonitor(ref):
                self._monitors.remove(ref)

    def _deliver_down(self, due: Due) -> None:
        owner = due.owner
        if owner is None:
            super()._deliver_down(due)
            return

        def accepted(arrived: bool) -> None:
            # Gone, or a thread that does not read just now: it renews what it needs when it does.
            if not arrived:
                self._monitors.remove_owner(owner)

        self._mailbox.send(owner, due.down, accepted)


def add_news(
    waiting: tuple[dict[str, Entry], dict[str, Entry]],
    changed: Iterable[Entry],
    removed: Iterable[Entry],
) -> None:
    """Fold changes into what waits to be pushed as (changed, removed).

    Of two entries of an id only the later one is pushed; why the earlier incarnation ended is kept
    for monitors whose owner never sees its end, if the later one does not have it: a restarted
    supervisor has not seen what happened under the one before it.
    """
    for entry in changed:
        before = waiting[1].pop(entry.id, None) or waiting[0].get(entry.id)
        if entry.last_exit is None and before is not None and before.last_exit is not None:
            waiting[0][entry.id] = replace(entry, last_exit=before.last_exit)
        else:
            waiting[0][entry.id] = entry
    for entry in removed:
        waiting[1][entry.id] = entry
        waiting[0].pop(entry.id, None)
