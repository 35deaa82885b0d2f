"""Whether a value obeys a schema: for values that a schema lists itself."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any

from native.schema import strings
from native.schema.alternatives import Alternative, Expander
from native.schema.values import key_of, type_of


class Checker:
    """Decides by the same alternatives that the grammar is made of."""

    def __init__(self, expander: Expander) -> None:
        self._expander = expander

    def obeys(self, place: str, value: Any) -> bool:
        return any(self.fits(one, value) for one in self._expander.expand(place))

    def fits(self, one: Alternative, value: Any) -> bool:
        """Whether ``value`` obeys an alternative."""
        kind = type_of(value)
        if one.types is not None and kind not in one.types:
            return False
        key = key_of(value)
        if one.values is not None and all(key != key_of(other) for other in one.values):
            return False
        if any(key == key_of(other) for other in one.excluded):
            return False
        if any(self.obeys(place, value) for place in one.nots):
            return False
        return self._fits_kind(kind, one, value)

    def _fits_kind(self, kind: str, one: Alternative, value: Any) -> bool:
        if kind in ("integer", "fraction"):
            return fits_number(one, value)
        if kind == "string":
            return strings.accepts(one, value)
        if kind == "array":
            return self._fits_array(one, value)
        return kind != "object" or self._fits_object(one, value)

    def _fits_array(self, one: Alternative, value: list[Any]) -> bool:
        if not within(len(value), one.min_items, one.max_items):
            return False
        if one.unique and len({key_of(item) for item in value}) < len(value):
            return False
        for wanted, least, most in one.contains:
            if not within(sum(self.obeys(wanted, item) for item in value), least, most):
                return False
        for part in one.lists:
            for index, item in enumerate(value):
                place = part.prefix[index] if index < len(part.prefix) else part.rest
                if place is not None and not self.obeys(place, item):
                    return False
        return True

    def _fits_object(self, one: Alternative, value: dict[str, Any]) -> bool:
        if not within(len(value), one.min_properties, one.max_properties):
            return False
        if any(name not in value for name in one.required) or one.forbidden & value.keys():
            return False
        return all(
            self.obeys(place, item)
            for name, item in value.items()
            for place in places_of(one, name)
        ) and all(self.name_fits(one, name) for name in value)

    def name_fits(self, one: Alternative, name: str) -> bool:
        """Whether ``propertyNames`` allows a name."""
        return all(self.obeys(place, name) for place in one.property_names)


def places_of(one: Alternative, name: str) -> tuple[str, ...]:
    """The places whose schemas the property ``name`` of an alternative must obey, each once."""
    found: Iterable[str] = (p for part in one.objects for p in part.places(name, strings.matches))
    return tuple(dict.fromkeys(found))


def within(n: int, least: int, most: int | None) -> bool:
    return n >= least and (most is None or n <= most)


def fits_number(one: Alternative, value: int | Decimal) -> bool:
    if one.low is not None and (value < one.low[0] or (one.low[1] and value == one.low[0])):
        return False
    if one.high is not None and (value > one.high[0] or (one.high[1] and value == one.high[0])):
        return False
    return all(
        (Fraction(value) / Fraction(multiple)).denominator == 1 for multiple in one.multiples
    )
