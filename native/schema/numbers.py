"""Numbers within limits, digit by digit.

A state is how many digits are still to come and whether those so far are the very ones of a limit.
So ``[0.5, 12)`` needs no arithmetic of the matcher. Written are plain decimals without an exponent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

from native.schema.alternatives import Alternative, Bound, Number
from native.schema.refused import Refused
from native.schema.rules import Ref, Rules, Sequence_

DIGITS = 16
"""Digits before the point where no limit needs more; as many as a float can distinguish."""
MAX_DIGITS = 40
MAX_RULES = 4_000

ZERO: Bound = (0, False)


def sequences(rules: Rules, one: Alternative, *, integer: bool) -> list[Sequence_]:
    """The texts of the numbers that obey the limits of an alternative."""
    if one.low is None and one.high is None and not one.multiples:
        return [(Ref("integer" if integer else "number"),)]
    out: list[Sequence_] = []
    low, high = one.low, one.high
    if low is None or low[0] < 0:
        nearest = ZERO if high is None or high[0] >= 0 else (-high[0], high[1])
        least = (0, True) if not nearest[0] else nearest
        most = None if low is None else (-low[0], low[1])
        for sequence in _Digits(rules, one, least, most, integer=integer).sequences():
            out.append(('"-"', *sequence))
    if high is None or high[0] >= 0:
        least = ZERO if low is None or low[0] < 0 else low
        out += _Digits(rules, one, least, high, integer=integer).sequences()
    return out


def _split(number: Number, place: str) -> tuple[str, str]:
    """The digits before and after the point."""
    whole, _, fraction = f"{Decimal(number):f}".partition(".")
    fraction = fraction.rstrip("0")
    if len(fraction) > MAX_DIGITS:
        raise Refused(place, f"has more than {MAX_DIGITS} digits after the point")
    return whole, fraction


def _common_multiple(multiples: Sequence[Number], *, integer: bool) -> Fraction | None:
    if not multiples:
        return None
    found = Fraction(1) if integer else Fraction(multiples[0])
    for multiple in map(Fraction, multiples):
        numerator = math.lcm(found.numerator, multiple.numerator)
        found = Fraction(numerator, math.gcd(found.denominator, multiple.denominator))
    return found


class _Digits:
    """Numbers of 0 or more between two limits."""

    def __init__(
        self, rules: Rules, one: Alternative, low: Bound, high: Bound | None, *, integer: bool
    ) -> None:
        self.rules, self.integer = rules, integer
        self.place = one.place("multipleOf", "minimum", "exclusiveMinimum", "maximum")
        self.low, self.low_fraction = _split(low[0], self.place)
        self.high, self.high_fraction = ("", "") if high is None else _split(high[0], self.place)
        self.low_excluded, self.high_excluded = low[1], high is not None and high[1]
        if len(self.low) > MAX_DIGITS:
            raise Refused(self.place, f"needs numbers of more than {MAX_DIGITS} digits")
        self.modulus, self.decimals = 1, 0
        multiple = _common_multiple(one.multiples, integer=integer)
        if multiple is not None:
            while (multiple * 10**self.decimals).denominator != 1:
                self.decimals += 1
            self.modulus = int(multiple * 10**self.decimals)
        self.by_multiple = multiple is not None
        self.known: dict[tuple[object, ...], str] = {}

    def sequences(self) -> list[Sequence_]:
        plain = self.integer and not self.by_multiple
        longest = max(DIGITS if plain else DIGITS - 1 - self.decimals, len(self.low) + 1)
        if self.high:
            longest = min(longest, len(self.high))
        out: list[Sequence_] = []
        for length in range(len(self.low), longest + 1):
            at_low = length == len(self.low)
            at_high = length == len(self.high)
            state = (length, -1, self._fraction_digits(length), at_low, at_high, 0)
            out += self._next_digits(state, range(1 if length > 1 else 0, 10))
        return out

    def _fraction_digits(self, length: int) -> int:
        if self.integer:
            return 0
        if self.by_multiple:
            return self.decimals
        return max(DIGITS - 1 - length, len(self.low_fraction), len(self.high_fraction), 0)

    def _digit(self, whole: str, fraction: str, left: int, done: int) -> int:
        """The digit of a limit with ``left`` whole digits to come and ``done`` others before."""
        if left > 0:
            return int(whole[len(whole) - left])
        return int(fraction[done]) if done < len(fraction) else 0

    def _next_digits(
        self, state: tuple[int, int, int, bool, bool, int], digits: range
    ) -> list[Sequence_]:
        left, done, most, at_low, at_high, sum_ = state
        low = self._digit(self.low, self.low_fraction, left, done) if at_low else 0
        high = self._digit(self.high, self.high_fraction, left, done) if at_high else 9
        after = (left - 1, done) if left > 0 else (left, done + 1)
        weight = 10 ** (left - 1 + self.decimals if left > 0 else max(self.decimals - done - 1, 0))
        by_next: dict[str, list[int]] = {}
        for digit in digits:
            if low <= digit <= high:
                total = (sum_ + digit * weight) % self.modulus
                tight = (at_low and digit == low, at_high and digit == high)
                name = self._state(*after, most, *tight, total)
                if name:
                    by_next.setdefault(name, []).append(digit)
        return [(f"[{''.join(map(str, found))}]", Ref(name)) for name, found in by_next.items()]

    def _state(
        self, left: int, done: int, most: int, at_low: bool, at_high: bool, sum_: int
    ) -> str:
        key = (left, done, most, at_low, at_high, sum_)
        if key in self.known:
            return self.known[key]
        if len(self.known) > MAX_RULES:
            raise Refused(self.place, "needs too many rules; use a smaller or rounder number")
        out: list[Sequence_] = []
        if left > 0:
            out = self._next_digits(key, range(10))
        else:
            if done != 0 and self._may_end(max(done, 0), at_low, at_high, sum_):
                out.append(())
            fraction = self._state(0, 0, most, at_low, at_high, sum_) if done < 0 < most else ""
            if fraction:
                out.append(('"."', Ref(fraction)))
            elif 0 <= done < most:
                out += self._next_digits(key, range(10))
        self.known[key] = ""  # leads to no number
        if out:
            self.known[key] = self.rules.shared("digits", out).name
        return self.known[key]

    def _may_end(self, done: int, at_low: bool, at_high: bool, sum_: int) -> bool:
        if at_low and (len(self.low_fraction) > done or self.low_excluded):
            return False
        if at_high and len(self.high_fraction) <= done and self.high_excluded:
            return False
        return sum_ % self.modulus == 0
