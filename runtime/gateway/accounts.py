"""What is counted over all workers: uses of limited keys, and what replies have cost. Pure.

Each change is handed to ``write`` under a name, where the last value counts, so that it can be read
again by ``restore`` in the next process. Seconds come in; all processes of a machine count them
from the same start.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from runtime.gateway.keys import Key
from runtime.gateway.limits import Bucket, Limits, Use
from runtime.gateway.wire.metrics import Counts
from runtime.gateway.wire.rates import Rates
from runtime.gateway.wire.series import Table, add_to, unpacked
from supervision.exits import ExitKind

KEPT_INCARNATIONS: Final = 4
"""Of each worker, whose counts are kept apart; those of older ones are added up."""
LIKELY: Final = (ExitKind.KILLED.value, ExitKind.ABNORMAL.value)
"""Why processes are restarted."""
MOST_ACTORS: Final = 64
"""Whose restarts are counted."""
_KEY, _USE, _COUNTS, _SERIES, _RESTARTS = "key:", "use:", "counts:", "series:", "restarts:"

Ended = Iterable[tuple[str, int]]
"""Uses that have ended, and the tokens that were computed for each."""


@dataclass(frozen=True, slots=True, order=True)
class Incarnation:
    """One process of the worker with a number."""

    number: int
    started_ns: int
    """By the monotonic clock."""


@dataclass(frozen=True, slots=True)
class Running:
    """A request of a limited key."""

    who: Incarnation
    key: Key
    """As far as it limits."""
    turn: int
    """Of its worker when it began; a report of an earlier turn could not list it."""


@dataclass(frozen=True, slots=True)
class _Level:
    """What one key has used, as it is written: levels of its buckets, and when each was right."""

    amounts: tuple[int | None, int | None]
    requests: tuple[float, float] | None
    tokens: tuple[float, float] | None


@dataclass(slots=True)
class _Counted:
    """What the incarnations of one worker have counted."""

    old: Counts = field(default_factory=Counts)
    kept: dict[int, Counts] = field(default_factory=dict)
    """By when they started."""

    def put(self, started_ns: int, counts: Counts) -> bool:
        """Whether that changed anything."""
        if self.kept.get(started_ns) == counts:
            return False
        if started_ns not in self.kept and len(self.kept) >= KEPT_INCARNATIONS:
            oldest = min(self.kept)
            if started_ns < oldest:
                return False  # of one that ended long ago
            self.old = self.old.plus(self.kept.pop(oldest))
        self.kept[started_ns] = counts
        return True

    def total(self) -> Counts:
        found = self.old
        for one in self.kept.values():
            found = found.plus(one)
        return found


@dataclass(slots=True)
class _Measured:
    """Series of the incarnations of one worker."""

    old: Table = field(default_factory=dict)
    kept: dict[int, bytes] = field(default_factory=dict)
    """Packed, by when they started."""

    def put(self, started_ns: int, series: bytes) -> bool:
        """Whether that changed anything."""
        if self.kept.get(started_ns) == series:
            return False
        if started_ns not in self.kept and len(self.kept) >= KEPT_INCARNATIONS:
            oldest = min(self.kept)
            if started_ns < oldest:
                return False  # of one that ended long ago
            add_to(self.old, unpacked(self.kept.pop(oldest)))
        self.kept[started_ns] = series
        return True

    def add_to(self, total: Table) -> None:
        add_to(total, self.old)
        for one in self.kept.values():
            add_to(total, unpacked(one))


@dataclass(slots=True)
class Restarts:
    """Of the actors of the node."""

    known: dict[str, int] = field(default_factory=dict)
    """How often each was restarted, as its supervisor has counted it last."""
    counted: dict[tuple[str, str], int] = field(default_factory=dict)
    """All restarts, by actor and reason."""

    def note(self, actor: str, restarts: int, reason: str) -> bool:
        """Whether that is news. A supervisor that was restarted itself counts from 0 again."""
        before = self.known.get(actor)
        if before == restarts or (before is None and len(self.known) >= MOST_ACTORS):
            return False
        self.known[actor] = restarts
        before = before or 0
        n_new = restarts - before if restarts > before else restarts
        if n_new:
            pair = (actor, reason)
            self.counted[pair] = self.counted.get(pair, 0) + n_new
        return True

    def all(self) -> tuple[tuple[str, str, int], ...]:
        """Actor, reason, how often: also 0, so that the first restart is seen as one more."""
        none = {(actor, reason): 0 for actor in self.known for reason in LIKELY}
        return tuple((*pair, n) for pair, n in (none | self.counted).items())


@dataclass(frozen=True, slots=True)
class Now:
    """What one worker does at present."""

    running: int = 0
    """Requests for replies."""
    connections: int = 0


class Accounts:
    """Of one gateway."""

    def __init__(self, write: Callable[[str, bytes | None], None]) -> None:
        """``write`` with None: nothing counts under this name any more."""
        self._write = write
        self._limits = Limits()
        self._uses: dict[str, Running] = {}
        self._counts: dict[int, _Counted] = {}
        """By the number of the worker."""
        self._now: dict[int, tuple[Incarnation, Now]] = {}
        """By the number of the worker."""
        self._series: dict[int, _Measured] = {}
        """The same."""
        self.restarts = Restarts()

    # ── uses of keys ────────────────────────────────────────────────────────────────────────────

    def begin(self, use: str, running: Running, now: float, *, is_checked: bool = True) -> Rates:
        """A request begins; Refused where its key may not yet.

        One that is known goes on in this worker, and is not counted again.
        """
        known, key = self._uses.get(use), running.key
        if known is None:
            self._limits.begin(key, now, is_checked=is_checked)
            self._put_level(key)
        if known is None or known.who <= running.who:
            self._uses[use] = running
            self._write(_USE + use, msgspec.msgpack.encode(running))
        return self._limits.rates(key, now)

    def rates(self, key: Key, now: float) -> Rates:
        """What is left to this key."""
        return self._limits.rates(key, now)

    def is_busy(self, key: Key) -> bool:
        """Whether so many requests of this key run as may."""
        return self._limits.is_busy(key)

    def end(self, ended: Ended, now: float) -> None:
        """Uses have ended; those that are not known ended before."""
        for use, n_tokens in ended:
            running = self._uses.pop(use, None)
            if running is not None:
                self._limits.end(running.key, now, n_tokens)
                self._write(_USE + use, None)
                self._put_level(running.key)

    def keep_only(self, who: Incarnation, turn: int, uses: Collection[str], now: float) -> None:
        """These are all uses of a worker; others, also of its predecessors, have ended."""
        gone = [
            use
            for use, one in self._uses.items()
            if one.who.number == who.number and use not in uses
            if one.who < who or (one.who == who and one.turn <= turn)
        ]
        self.end(((use, 0) for use in gone), now)

    def _put_level(self, key: Key) -> None:
        self._write(_KEY + key.name, self._level(key.name))

    def _level(self, name: str) -> bytes:
        use = self._limits.uses[name]
        requests, tokens = (
            None if one is None else (one.level, one.at) for one in (use.requests, use.tokens)
        )
        return msgspec.msgpack.encode(_Level(use.amounts, requests, tokens))

    # ── what replies have cost ──────────────────────────────────────────────────────────────────

    def count(self, who: Incarnation, counts: Counts, now: Now, series: bytes = b"") -> None:
        """What a worker has counted since it started, and what it does.

        Without ``series``: they are as in its last report.
        """
        known = self._now.get(who.number)
        if known is None or known[0] <= who:
            self._now[who.number] = (who, now)
        counted = self._counts.setdefault(who.number, _Counted())
        if counted.put(who.started_ns, counts):
            self._write(f"{_COUNTS}{who.number}", msgspec.msgpack.encode(counted))
        if series:
            measured = self._series.setdefault(who.number, _Measured())
            if measured.put(who.started_ns, series):
                self._write(f"{_SERIES}{who.number}", msgspec.msgpack.encode(measured))

    def total(self) -> Counts:
        """Of all workers, also of those that are gone."""
        found = Counts()
        for one in self._counts.values():
            found = found.plus(one.total())
        return found

    def series(self) -> Table:
        """Of all workers, also of those that are gone."""
        found: Table = {}
        for one in self._series.values():
            one.add_to(found)
        return found

    def running(self, but: int | None = None) -> int:
        """Requests that run in all workers, ``but`` the one with this number."""
        return sum(now.running for number, (_, now) in self._now.items() if number != but)

    def connections(self) -> int:
        """Of all workers."""
        return sum(now.connections for _, now in self._now.values())

    # ── restarts of processes ───────────────────────────────────────────────────────────────────

    def note_restarts(self, actor: str, restarts: int, reason: str) -> None:
        """How often an actor of the node was restarted, and why its last process had ended."""
        if self.restarts.note(actor, restarts, reason):
            self._write(_RESTARTS, msgspec.msgpack.encode(self.restarts))

    # ── again ───────────────────────────────────────────────────────────────────────────────────

    def restore(self, records: Mapping[str, bytes]) -> None:
        """Go on with what a predecessor has written."""
        for name, raw in records.items():
            kind, _, rest = name.partition(":")
            match f"{kind}:":
                case "key:":
                    self._limits.uses[rest] = _use_of(msgspec.msgpack.decode(raw, type=_Level))
                case "use:":
                    self._uses[rest] = msgspec.msgpack.decode(raw, type=Running)
                case "counts:":
                    self._counts[int(rest)] = msgspec.msgpack.decode(raw, type=_Counted)
                case "series:":
                    self._series[int(rest)] = msgspec.msgpack.decode(raw, type=_Measured)
                case "restarts:":
                    self.restarts = msgspec.msgpack.decode(raw, type=Restarts)
                case _:
                    raise ValueError(f"a record {name[:20]!r}")
        for running in self._uses.values():
            self._limits.continues(running.key)

    def records(self) -> Iterator[tuple[str, bytes]]:
        """All that counts, as it is written."""
        for name in self._limits.uses:
            yield _KEY + name, self._level(name)
        for use, running in self._uses.items():
            yield _USE + use, msgspec.msgpack.encode(running)
        for number, counted in self._counts.items():
            yield f"{_COUNTS}{number}", msgspec.msgpack.encode(counted)
        for number, measured in self._series.items():
            yield f"{_SERIES}{number}", msgspec.msgpack.encode(measured)
        if self.restarts.known:
            yield _RESTARTS, msgspec.msgpack.encode(self.restarts)


def _use_of(level: _Level) -> Use:
    requests, tokens = (
        None if amount is None or used is None else Bucket(amount, *used)
        for amount, used in zip(level.amounts, (level.requests, level.tokens), strict=True)
    )
    return Use(level.amounts, requests, tokens)
