"""The pulse: one page of shared memory in which a process shows that it works and what it does.

A supervisor makes a page for each child before it forks it. Only the child writes;
the supervisor reads at any time, also when the child hangs and after it was killed. Type
names, times and counts are in it, never the content of a message.

The page. Native byte order, every field 8 bytes and aligned:

    offset  type  name
         0  f8    alive     last sign of life, time.monotonic()
         8  u8    turns     hooks that returned
        16  f8    since     when the hook that runs now began; 0: none runs
        24  u8    mailbox   messages received and not yet handled
        32  f8    engine    last beat of the engine inside a step; 0: it is in none
        40  f8    beat_s    how often to show life when idle, set by the supervisor; 0: never
        64  ring  32 times: f8 began, f8 took_s (-1: it runs), u8 number of its name
       832  names 68 times 48 bytes of UTF-8, filled with zeros; number 0 is for what has no room

Torn reads: each field is one aligned store, so no field is ever half written (``struct`` would
fill it with zeros first). Fields among each other need not match to the nanosecond. A place in the
ring is written again 32 turns later, and a reader drops the places that the writer may have
reached while it read. A name is written before its number is used, and never again.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

SHOWN: Final = 16
"""So many of the last messages are read."""
_RING: Final = 32
_RING_AT: Final = 8  # in fields of 8 bytes
_NAMES_AT: Final = (_RING_AT + 3 * _RING) * 8
_NAME_BYTES: Final = 48
_NAMES: Final = (mmap.PAGESIZE - _NAMES_AT) // _NAME_BYTES
_ALIVE, _TURNS, _SINCE, _MAILBOX, _ENGINE, _BEAT = range(6)


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: its type, when its hook began, how long it took. None: it runs."""

    name: str
    began: float
    took_s: float | None


@dataclass(frozen=True, slots=True)
class Reading:
    """A page at one moment. Times as ``time.monotonic``, the same in all processes."""

    alive: float
    turns: int
    since: float
    mailbox: int
    engine: float
    last: tuple[Turn, ...] = ()
    """The last messages, oldest first; one that runs comes last."""

    @property
    def doing(self) -> str:
        """The message whose hook runs; empty between two."""
        return self.last[-1].name if self.last and self.last[-1].took_s is None else ""


class Page:
    """One page. Its process writes with ``begin``, ``end`` and ``beat``; its supervisor reads."""

    to_inherit: ClassVar[Page | None] = None
    """Set just before a fork: the page that the new process writes into."""
    _open: ClassVar[set[Page]] = set()

    def __init__(self, beat_s: float = 0.0) -> None:
        self._map = mmap.mmap(-1, mmap.PAGESIZE)
        self._bytes = memoryview(self._map)
        self._floats = self._bytes.cast("d")
        self._counts = self._bytes.cast("Q")
        self._numbers: dict[str, int] = {}
        self._number("(other)")
        self._at = _RING_AT
        self._floats[_BEAT] = beat_s
        self._floats[_ALIVE] = time.monotonic()
        Page._open.add(self)

    @classmethod
    def inherit(cls) -> Page:
        """The page of this process, which was just forked; those of its siblings are unmapped."""
        mine, cls.to_inherit = cls.to_inherit, None
        for one in cls._open - {mine}:
            one.close()
        return mine or cls()

    @property
    def beat_s(self) -> float:
        """How often to show life when idle, in seconds; 0: no supervisor looks."""
        return self._floats[_BEAT]

    def close(self) -> None:
        """Unmap the page in this process."""
        if self in Page._open:
            Page._open.remove(self)
            for view in (self._floats, self._counts, self._bytes):
                view.release()
            self._map.close()

    # ── the process itself ───────────────────────────────────────────────────

    def begin(self, name: str, mailbox: int) -> None:
        """A hook begins, for a message of this type."""
        now = time.monotonic()
        at, floats, counts = self._at, self._floats, self._counts
        floats[at] = now
        floats[at + 1] = -1.0
        counts[at + 2] = self._numbers.get(name) or self._number(name)
        counts[_MAILBOX] = mailbox
        floats[_ALIVE] = now
        floats[_SINCE] = now

    def end(self, mailbox: int) -> None:
        """The hook that ran, if any, has returned; a sign of life either way."""
        now = time.monotonic()
        floats, counts = self._floats, self._counts
        if floats[_SINCE]:
            at = self._at
            floats[at + 1] = now - floats[_SINCE]
            turns = counts[_TURNS] + 1
            self._at = _RING_AT + 3 * (turns % _RING)
            floats[_SINCE] = 0.0
            counts[_TURNS] = turns
        counts[_MAILBOX] = mailbox
        floats[_ALIVE] = now

    def beat(self) -> None:
        """The engine is inside a step and makes progress; from the engine thread."""
        self._floats[_ENGINE] = time.monotonic()

    def rest(self) -> None:
        """The engine is in no step: its silence has no limit."""
        self._floats[_ENGINE] = 0.0

    def _number(self, name: str) -> int:
        number = len(self._numbers)
        if number >= _NAMES:
            return 0
        text = name.encode()[:_NAME_BYTES].decode(errors="ignore").encode()
        at = _NAMES_AT + number * _NAME_BYTES
        self._bytes[at : at + len(text)] = text
        self._numbers[name] = number
        return number

    # ── its supervisor ───────────────────────────────────────────────────────

    def read(self) -> Reading:
        """The page as it is now; the writer may be at work, stopped or dead."""
        turns, since = self._counts[_TURNS], self._floats[_SINCE]
        found = [(number, self._turn(number)) for number in range(max(0, turns - SHOWN), turns)]
        if since:
            found.append((turns, self._turn(turns)))
        reached = self._counts[_TURNS] - _RING
        return Reading(
            alive=self._floats[_ALIVE],
            turns=turns,
            since=since,
            mailbox=self._counts[_MAILBOX],
            engine=self._floats[_ENGINE],
            last=tuple(turn for number, turn in found if number > reached),
        )

    def signs(self) -> tuple[float, float]:
        """Only ``alive`` and ``engine``."""
        return self._floats[_ALIVE], self._floats[_ENGINE]

    def _turn(self, number: int) -> Turn:
        at = _RING_AT + 3 * (number % _RING)
        took_s = self._floats[at + 1]
        where = _NAMES_AT + min(self._counts[at + 2], _NAMES - 1) * _NAME_BYTES
        name = (
            bytes(self._bytes[where : where + _NAME_BYTES]).rstrip(b"\0").decode(errors="replace")
        )
        return Turn(name, self._floats[at], None if took_s < 0 else took_s)


# ── which processes hang ─────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Sign:
    """What was read of one child. A limit of None: its silence is allowed."""

    heartbeat_s: float | None
    alive: float
    engine_heartbeat_s: float | None = None
    engine: float = 0.0
    """0: the engine is in no step."""
    waited_s: float | None = None
    """How long its main thread has ever waited for a CPU; None: not read this time."""


@dataclass(slots=True)
class _Silence:
    """One silence: since when, and what of it was not the child's own."""

    stamp: float
    forgiven_s: float = 0.0
    waited_at: float | None = None


@dataclass(slots=True)
class Heartbeats:
    """Decides which processes hang. Pure: numbers in, names out.

    From a silence the larger of two times is subtracted: that by which the looks
    themselves came late (the whole node was stopped, its supervisor too), and that which the
    child spent waiting for a CPU that others had.
    """

    interval_s: float
    """How often ``look`` is meant to be called. The first look finds no process that hangs."""
    _looked: float | None = None
    _silences: dict[tuple[str, str], _Silence] = field(default_factory=dict)

    def look(self, now: float, signs: Mapping[str, Sign]) -> list[tuple[str, str]]:
        """The names that hang at ``now``, and what hangs of each: ``hook`` or ``engine``."""
        first = self._looked is None
        late_s = max(0.0, now - (self._looked or now) - self.interval_s)
        self._looked = now
        before, self._silences = self._silences, {}
        hung: list[tuple[str, str]] = []
        for name, sign in signs.items():
            for what, stamp, limit_s in (
                ("hook", sign.alive, sign.heartbeat_s),
                ("engine", sign.engine, sign.engine_heartbeat_s),
            ):
                if limit_s is None or not stamp:
                    continue
                silence = before.get((name, what))
                if silence is None or silence.stamp != stamp:
                    silence = _Silence(stamp)
                self._silences[name, what] = silence
                silence.forgiven_s += max(0.0, now - stamp) if first else late_s
                # The larger of the two: on a crowded machine they are the same time, seen twice.
                excused_s = max(silence.forgiven_s, _waited(silence, sign))
                if now - stamp - excused_s > limit_s:
                    hung.append((name, what))
                    break
        return hung


def _waited(silence: _Silence, sign: Sign) -> float:
    """Time without a CPU since the first look that asked for it in this silence."""
    if sign.waited_s is None:
        return 0.0
    if silence.waited_at is None:
        silence.waited_at = sign.waited_s
    return max(0.0, sign.waited_s - silence.waited_at)
