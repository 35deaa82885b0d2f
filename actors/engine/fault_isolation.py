"""Finds which request of a failed batch caused the failure, so that only that one fails.

A batch that llama.cpp could not compute does not report which row it was. So each request in it
becomes a *suspect* and runs **alone** for one step, oldest first: a request that succeeds alone is
cleared, one that fails alone is the cause and ends with a typed error. The others wait meanwhile, a
step each.

Values only; the engine owns time and native code.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Generic, TypeVar

R = TypeVar("R")
FAULTS_UNTIL_REBUILD: Final = 2


class FaultIsolation(Generic[R]):
    """The suspects of one engine, and whether its context is to be replaced."""

    def __init__(self) -> None:
        self._suspects: list[R] = []
        self._faults = 0

    def __len__(self) -> int:
        return len(self._suspects)

    def suspect(self, requests: Iterable[R]) -> list[R]:
        """A step of these failed; the one that caused it, if that is certain."""
        ran = list(requests)
        if len(ran) == 1:
            self.forget(ran[0])
            return ran
        self._suspects += [one for one in ran if one not in self._suspects]
        return []

    def clear(self, requests: Iterable[R]) -> None:
        """A step of these succeeded."""
        for one in requests:
            self.forget(one)

    def forget(self, request: R) -> None:
        """It has ended, or is cleared."""
        if request in self._suspects:
            self._suspects.remove(request)

    def keep(self, present: Iterable[R]) -> None:
        """Only these still run; the others are no suspects any more."""
        still = list(present)
        self._suspects = [one for one in self._suspects if one in still]

    def choose(self, ready: list[R]) -> list[R]:
        """Which requests the next step computes: one suspect alone, or all that are ready."""
        for suspect in self._suspects:
            if suspect in ready:
                return [suspect]
        return ready

    def found_bad_numbers(self) -> bool:
        """Logits were not finite; whether that happens so often that the memory must be the cause.

        On recurrent models the next user of a sequence's cells may inherit a broken state.
        """
        self._faults += 1
        if self._faults < FAULTS_UNTIL_REBUILD:
            return False
        self._faults = 0
        return True

    def found_good_numbers(self) -> None:
        self._faults = 0
