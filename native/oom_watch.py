"""Detects kills by the kernel's out-of-memory killer, by the counters of the kernel.

The exit status of a process ended by SIGKILL does not contain the sender. The kernel counts each
process that it kills for lack of memory in the process's control group, and how often a group has
reached its limit. ``OomWatch`` keeps the counters and reports which have risen recently.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from native.control_groups import ROOT, Group, flat_keyed, groups
from native.system_memory import limit_bytes

_KILLS: Final = "kills"
RECENT_S: Final = 10.0
"""An exit is handled milliseconds after the counter rose, and the counters are read each second; on
a busy machine later. An older rise belongs to another process."""


@dataclass(slots=True)
class _Risen:
    """A counter, and the times of its rises that no exit was attributed to yet."""

    last: int
    rises: list[float] = field(default_factory=list)

    def look(self, value: int, now: float) -> None:
        self.rises = [at for at in self.rises if now - at <= RECENT_S]
        self.rises += [now] * min(max(0, value - self.last), 1000)
        self.last = value


class OomWatch:
    """The counters of this process's own groups; its children are in the same ones.

    ``look`` must be called at least every few seconds: a rise is dated by the call that sees it.
    A forked copy continues from the counters of its parent.
    """

    def __init__(self, root: Path = ROOT, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._counters: dict[str, _Risen] = {}
        self._chain: tuple[Group, ...] = ()
        self.look()

    def look(self) -> None:
        """Find the groups, which a process may be moved between, and read the counters."""
        self._chain = groups("memory", self._root)
        self._read()

    def cause(self) -> str:
        """Why the kernel killed a process of these groups a moment ago; empty if it did not.

        Each kill that the kernel counted is the cause of one exit.
        """
        self._read()  # only the groups of the last look: a restart waits for this call
        kills = self._counters.get(_KILLS)
        if kills is None or not kills.rises:
            return ""
        kills.rises.pop(0)
        for group in self._chain:
            risen = self._counters.get(_key(group))
            limit = limit_bytes(group)
            if risen is not None and risen.rises and limit is not None:
                limit_text = f"limit {_size(limit)} of control group {group.name}"
                return f"by the kernel for lack of memory ({limit_text})"
        return "by the kernel for lack of memory (of the whole machine)"

    def _read(self) -> None:
        now = self._clock()
        kills = self._kills(self._chain)
        if kills is not None:
            self._note(_KILLS, kills, now)
        for group in self._chain:
            hits = _hits(group)
            if hits is not None:
                self._note(_key(group), hits, now)

    def _note(self, name: str, value: int, now: float) -> None:
        self._counters.setdefault(name, _Risen(value)).look(value, now)

    def _kills(self, chain: tuple[Group, ...]) -> int | None:
        """Processes killed in this process's own group, else on the machine; None: not counted."""
        for group in chain:
            file = "memory.events" if group.version == 2 else "memory.oom_control"
            kills = group.counters(file).get("oom_kill")
            if kills is not None:
                return kills
        return flat_keyed(self._root / "proc/vmstat").get("oom_kill")


def _key(group: Group) -> str:
    return f"{group.version}:{group.name}"


def _hits(group: Group) -> int | None:
    """How often the group's limit could not be kept: version 2 counts the groups below it too."""
    if group.version == 2:
        return group.counters("memory.events").get("oom")
    return group.number("memory.failcnt")


def _size(n_bytes: int) -> str:
    if n_bytes >= 1 << 30:
        return f"{n_bytes / (1 << 30):.1f} GiB"
    return f"{n_bytes / (1 << 20):.0f} MiB"
