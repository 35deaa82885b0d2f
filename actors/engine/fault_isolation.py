"""Whose fault was it? A step failed that many requests shared; only one of them must pay.

A batch that llama.cpp could not compute does not say which row it was. So everybody in it becomes
a *suspect* and runs **alone** for one step, oldest first: who gets through is innocent, who fails
alone is the cause and ends with a typed error. The others wait meanwhile, a step each.

Values only; the engine owns time and native code.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Generic, TypeVar

R = TypeVar("R")
FAULTS_UNTIL_REBUILD: Final = 2


class Isolation(Generic[R]):
    """The suspects of one engine, and whether its context is still to be trusted."""

    def __init__(self) -> None:
        self._suspects: list[R] = []
        self._faults = 0

    def __len__(self) -> int:
        return len(self._suspects)

    def accuse(self, requests: Iterable[R]) -> list[R]:
        """A step of these failed; the one that is to blame, if that is certain."""
        ran = list(requests)
        if len(ran) == 1:
            self.forget(ran[0])
            return ran
        self._suspects += [one for one in ran if one not in self._suspects]
        return []

    def acquit(self, requests: Iterable[R]) -> None:
        """A step of these went well."""
        for one in requests:
            self.forget(one)

    def forget(self, request: R) -> None:
        """It has ended, or is innocent."""
        if request in self._suspects:
            self._suspects.remove(request)

    def keep(self, present: Iterable[R]) -> None:
        """Only these are still there; who has left can be blamed no more."""
        still = list(present)
        self._suspects = [one for one in self._suspects if one in still]

    def choose(self, ready: list[R]) -> list[R]:
        """Who takes part in the next step: one suspect alone, or everybody who is ready."""
        for suspect in self._suspects:
            if suspect in ready:
                return [suspect]
        return ready

    def found_bad_numbers(self) -> bool:
        """Logits were not finite; whether that happens so often that the memory must be the cause.

        On recurrent models a broken state may be inherited by whoever uses its cells next.
        """
        self._faults += 1
        if self._faults < FAULTS_UNTIL_REBUILD:
            return False
        self._faults = 0
        return True

    def found_good_numbers(self) -> None:
        self._faults = 0
