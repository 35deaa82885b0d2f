"""Which request crashes a model: found by running suspects alone. No clock, no process, no message.

A request is a completion or a question. A model's process dies, and which of its requests caused it
cannot be seen from outside. So each of them is charged with the crash and becomes a *suspect*; it
is run again when the model is back, and now **alone**: nothing else is sent to the model until it
has ended, or has gone ``PROOF_TOKENS`` beyond what it did at the crash. Then it is *cleared*: its
charge is dropped. If the model dies again, nothing else can have been the cause: at
``POISON_CRASHES`` charges a request is *poisonous*, which ends the search. A SIGKILL counts half:
the kernel sends it to a process that takes too much memory, but it may have been sent for any other
reason; so after the first one all run together again, and only the second makes them run alone.
What ran beside a poisonous request is charged once and completes at the second try; what waited
behind a suspect is not charged at all.

What a request *is* here is a digest of what the engine computes from it, so that a repeated request
is recognised, and an identical one of another caller is too.

Being alone costs the others time, so it is bounded: a suspect waits at most ``DRAIN_S`` for those
that run already and then starts beside them, and after ``ALONE_S`` without a crash it is cleared.
Charges are forgotten after ``SUSPECT_FOR_S``, poisonous digests after ``POISONOUS_FOR_S``: the
model file or the build may have changed, and being wrong costs one more crash. The sheet holds
``SHEET_LIMIT`` digests; beyond it the oldest suspects are dropped first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

POISON_CRASHES: Final = 2
DRAIN_S: Final = 5.0  # most requests end within it
ALONE_S: Final = 10.0  # a crash comes with the prompt or within the first tokens, or hardly ever
ALONE_CRASHES: Final = 1.0
PROOF_TOKENS: Final = 8
KILLED_WEIGHT: Final = 0.5  # SIGKILL: of the OOM killer because of a request, or for another reason
SUSPECT_FOR_S: Final = 300.0
POISONOUS_FOR_S: Final = 900.0
SHEET_LIMIT: Final = 1024


@dataclass(slots=True)
class _Charge:
    crashes: float
    until: float
    why: str = ""
    """How the process ended at the last of them."""

    @property
    def is_poisonous(self) -> bool:
        return self.crashes >= POISON_CRASHES


class ChargeSheet:
    """How many crashes each digest was running at. Times are monotonic seconds."""

    def __init__(self, limit: int = SHEET_LIMIT) -> None:
        self._limit = limit
        self._charges: dict[bytes, _Charge] = {}

    def __len__(self) -> int:
        return len(self._charges)

    def crashes(self, digest: bytes, now: float) -> float:
        """Charges of a digest that still count; 0 for one that is no suspect."""
        charge = self._charges.get(digest)
        if charge is not None and now >= charge.until:
            del self._charges[digest]
            charge = None
        return 0 if charge is None else charge.crashes

    def is_poisonous(self, digest: bytes, now: float) -> bool:
        return self.crashes(digest, now) >= POISON_CRASHES

    def why(self, digest: bytes) -> str:
        """How the process ended when this digest was charged last; empty if it was not."""
        charge = self._charges.get(digest)
        return "" if charge is None else charge.why

    def charge(self, digest: bytes, now: float, weight: float = 1.0, why: str = "") -> bool:
        """Charge a digest with one crash; whether it is poisonous now."""
        crashes = self.crashes(digest, now) + weight
        lasts_s = POISONOUS_FOR_S if crashes >= POISON_CRASHES else SUSPECT_FOR_S
        self._charges.pop(digest, None)  # the latest charge goes to the end
        self._charges[digest] = _Charge(crashes, now + lasts_s, why)
        while len(self._charges) > self._limit:
            suspects = (one for one, charge in self._charges.items() if not charge.is_poisonous)
            del self._charges[next(suspects, next(iter(self._charges)))]
        return crashes >= POISON_CRASHES

    def clear(self, digest: bytes) -> None:
        """Drop the charges of a suspect; a poisonous digest stays."""
        charge = self._charges.get(digest)
        if charge is not None and not charge.is_poisonous:
            del self._charges[digest]

    def expire(self, now: float) -> None:
        """Forget what is too old to count."""
        for digest in [one for one, charge in self._charges.items() if now >= charge.until]:
            del self._charges[digest]

    def counts(self) -> tuple[int, int]:
        """How many suspects and how many poisonous digests there are."""
        poisonous = sum(1 for charge in self._charges.values() if charge.is_poisonous)
        return len(self._charges) - poisonous, poisonous


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a crash means for the requests of a model."""

    poisonous: tuple[str, ...]
    """They were running, and not for the first time."""
    suspects: tuple[str, ...]
    """They were running; their next run is alone."""
    held: tuple[str, ...]
    """They had not been sent to the model: not charged."""


@dataclass(frozen=True, slots=True)
class _Held:
    request_id: str
    digest: bytes | None


class Lane:
    """Admission to one model: what runs, what is held back, and what must run alone.

    Every method that may let requests in returns their ids, in order of arrival. Without suspects
    a lane holds nothing back: how many run together is decided by the model.
    """

    def __init__(self, sheet: ChargeSheet | None = None) -> None:
        self.sheet = ChargeSheet() if sheet is None else sheet
        self._running: dict[str, bytes | None] = {}
        self._since: dict[str, float] = {}
        self._proved: set[str] = set()
        self._held: deque[_Held] = deque()
        self._alone: str | None = None
        self._alone_until = 0.0
        self._drain_until: float | None = None

    @property
    def n_held(self) -> int:
        return len(self._held)

    @property
    def running(self) -> tuple[str, ...]:
        return tuple(self._running)

    @property
    def alone(self) -> str | None:
        """The request that has the model to itself, if one has."""
        return self._alone

    def due(self) -> float | None:
        """When ``tick`` should be called, unless something else happens first."""
        if not self._held:
            return None
        return self._alone_until if self._alone is not None else self._drain_until

    # ── events ──────────────────────────────────────────────────────────────────────────────────

    def arrive(self, request_id: str, digest: bytes | None, now: float) -> tuple[str, ...]:
        """A request arrives. ``digest`` is ``None`` where the sheet is empty and none is needed.

        The caller has refused poisonous digests before.
        """
        self._held.append(_Held(request_id, digest))
        return self._let_in(now)

    def ended(self, request_id: str, now: float) -> tuple[str, ...]:
        """A request ended without a crash, which clears it, or was removed while it was held."""
        if request_id in self._running:
            digest = self._running.pop(request_id)
            del self._since[request_id]
            self._proved.discard(request_id)
            if digest is not None:
                self.sheet.clear(digest)
        else:
            self._held = deque(one for one in self._held if one.request_id != request_id)
            self._drain_until = None  # the head may be another one now
        if self._alone == request_id:
            self._alone = None
        return self._let_in(now)

    def interrupted(self, request_id: str) -> None:
        """A running request is being cancelled: its end does not clear it."""
        if request_id in self._running:
            self._running[request_id] = None

    def proved(self, request_id: str, now: float) -> tuple[str, ...]:
        """A running suspect has done again what it did at the crash, and more: it is cleared."""
        digest = self._running.get(request_id)
        if digest is not None:
            self.sheet.clear(digest)
            self._proved.add(request_id)  # so the next suspect need not wait for its end
        if self._alone == request_id:
            self._alone = None
        return self._let_in(now)

    def tick(self, now: float) -> tuple[str, ...]:
        """Time has passed."""
        return self._let_in(now)

    def crashed(
        self, digests: Mapping[str, bytes], now: float, weight: float = 1.0, why: str = ""
    ) -> Verdict:
        """The model's process died by itself; ``digests`` of those that ran, where they are known.

        Several identical requests that ran at one crash are charged once: it was one crash. What
        had run for ``ALONE_S`` is cleared of earlier ones.
        """
        self.sheet.expire(now)
        for one, since in self._since.items():
            if one in digests and now - since >= ALONE_S:
                self.sheet.clear(digests[one])
        ran = {one: digests[one] for one in self._running if one in digests}
        poisonous_digests = {
            one for one in set(ran.values()) if self.sheet.charge(one, now, weight, why)
        }
        poisonous = tuple(one for one, digest in ran.items() if digest in poisonous_digests)
        suspects = tuple(one for one in self._running if one not in poisonous)
        verdict = Verdict(poisonous, suspects, tuple(one.request_id for one in self._held))
        self.lost()
        return verdict

    def lost(self) -> tuple[str, ...]:
        """The model's process has ended, and not because of its requests; returns all of them."""
        everyone = (*self._running, *(one.request_id for one in self._held))
        self._running.clear()
        self._since.clear()
        self._proved.clear()
        self._held.clear()
        self._alone = self._drain_until = None
        return everyone

    # ── the rule ────────────────────────────────────────────────────────────────────────────────

    def _let_in(self, now: float) -> tuple[str, ...]:
        """Strictly in order of arrival: passing a suspect by could keep it waiting without end."""
        let_in: list[str] = []
        while self._held and not self._is_closed(now):
            head = self._held[0]
            if head.digest and self.sheet.crashes(head.digest, now) >= ALONE_CRASHES:
                if not self._may_be_alone(now):
                    break
                self._alone, self._alone_until = head.request_id, now + ALONE_S
                self._drain_until = None
            self._held.popleft()
            self._running[head.request_id] = head.digest
            self._since[head.request_id] = now
            let_in.append(head.request_id)
        return tuple(let_in)

    def _is_closed(self, now: float) -> bool:
        """Whether a suspect has the model to itself."""
        if self._alone is None:
            return False
        if now < self._alone_until:
            return True
        digest = self._running.get(self._alone)
        if digest is not None:
            self.sheet.clear(digest)
        self._alone = None
        return False

    def _may_be_alone(self, now: float) -> bool:
        if self._running.keys() <= self._proved:
            return True
        if self._drain_until is None:
            self._drain_until = now + DRAIN_S
        return now >= self._drain_until
