"""``oneOf``: alternatives of one branch that no other branch allows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from native.schema import automaton, strings
from native.schema.alternatives import Alternative, Branches, Expander
from native.schema.automaton import Dfa
from native.schema.checks import Checker, places_of
from native.schema.refused import Refused
from native.schema.regex import BadPattern
from native.schema.values import key_of

MAX_DEPTH = 4
MAX_PAIRS = 40_000


class Exclusion:
    """Decides it by types, listed values, limits, patterns and required properties.

    What it cannot decide counts as allowed by both.
    """

    def __init__(self) -> None:
        self.expander: Expander
        self._pairs = 0
        self._known_keys: dict[int, tuple[tuple[Any, ...], frozenset[Any]]] = {}

    def apart(self, place: str, branches: Branches) -> tuple[Alternative, ...]:
        """All alternatives of all branches, narrowed where that makes them obey one branch only.

        ``Refused``, where they cannot be distinguished.
        """
        self._checker = Checker(self.expander)
        branches = self._with_tag(branches)
        found: list[Alternative] = []
        for index, branch in enumerate(branches):
            others = [(i, two) for i, more in enumerate(branches) if i != index for two in more]
            for narrowed in branch:
                for other, two in others:
                    alone = self._narrowed(narrowed, two)
                    if alone is None:
                        raise _not_apart(place, *sorted((index, other)))
                    narrowed = alone  # noqa: PLW2901
                found.append(narrowed)
        return tuple(found)

    def _with_tag(self, branches: Branches) -> Branches:
        """A property that every alternative declares, with other values in each, is required."""
        every = [one for branch in branches for one in branch]
        if len(every) < 2 or any(one.generated != {"object"} for one in every):
            return branches
        names = [{name for part in one.objects for name in part.names} for one in every]
        for name in sorted(set.intersection(*names)):
            tagged = [
                tuple(
                    replace(one, required=tuple(dict.fromkeys((*one.required, name))))
                    for one in branch
                )
                for branch in branches
            ]
            if all(
                self._property_apart(one, two, name, 0)
                for i, branch in enumerate(tagged)
                for more in tagged[:i]
                for one in branch
                for two in more
            ):
                return tagged
        return branches

    def _narrowed(self, one: Alternative, two: Alternative) -> Alternative | None:
        if self.excludes(one, two):
            return one
        if one.generated == {"object"} and one.values is None:
            for name in two.required:
                if name not in one.required:
                    return replace(one, forbidden=one.forbidden | {name})
        return None

    def excludes(self, one: Alternative, two: Alternative, depth: int = 0) -> bool:
        """Whether no value that is generated for ``one`` obeys ``two``."""
        listed = one.values is not None and two.values is not None
        if listed and self._keys(one.values or ()).isdisjoint(self._keys(two.values or ())):
            return True
        self._pairs += 1
        if depth > MAX_DEPTH or self._pairs > MAX_PAIRS:
            return False
        for a, b in ((one, two), (two, one)):
            if a.values is not None:
                return not any(
                    self._checker.fits(a, v) and self._checker.fits(b, v) for v in a.values
                )
        kinds = one.generated & (two.types if two.types is not None else one.generated)
        return all(self._excludes_kind(kind, one, two, depth) for kind in kinds)

    def _excludes_kind(self, kind: str, one: Alternative, two: Alternative, depth: int) -> bool:
        if kind in ("integer", "fraction"):
            return _numbers_apart(one, two)
        if kind == "string":
            return _strings_apart(one, two)
        if kind == "array":
            return self._arrays_apart(one, two, depth)
        return kind == "object" and self._objects_apart(one, two, depth)

    def _keys(self, values: tuple[Any, ...]) -> frozenset[Any]:
        known = self._known_keys.get(id(values))
        if known is None:
            known = self._known_keys[id(values)] = (values, frozenset(map(key_of, values)))
        return known[1]

    def places_apart(self, a: tuple[str, ...], b: tuple[str, ...], depth: int) -> bool:
        firsts, seconds = self.expander.together(a), self.expander.together(b)
        return all(self.excludes(one, two, depth + 1) for one in firsts for two in seconds)

    def _arrays_apart(self, one: Alternative, two: Alternative, depth: int) -> bool:
        if _counts_apart(one.min_items, one.max_items, two.min_items, two.max_items):
            return True
        if not (one.min_items or two.min_items):
            return False
        return self.places_apart(_first_item(one), _first_item(two), depth)

    def _objects_apart(self, one: Alternative, two: Alternative, depth: int) -> bool:
        if _counts_apart(
            one.min_properties, one.max_properties, two.min_properties, two.max_properties
        ):
            return True
        if any(name not in known_names(one) for name in two.required) and not is_open(one):
            return True
        names = dict.fromkeys((*one.required, *two.required))
        return any(self._property_apart(one, two, name, depth) for name in names)

    def _property_apart(self, one: Alternative, two: Alternative, name: str, depth: int) -> bool:
        """``name`` is required in one of them."""
        if name in one.forbidden or name in two.forbidden:
            return True
        return self.places_apart(places_of(one, name), places_of(two, name), depth)


def _not_apart(place: str, low: int, high: int) -> Refused:
    return Refused(
        place,
        f"cannot be obeyed: a value of alternative {low} may obey alternative {high} too; give "
        "each a required property with a const of its own, or write anyOf",
    )


def known_names(one: Alternative) -> dict[str, None]:
    """Property names that an alternative declares or requires, in the order to write them."""
    declared = [name for part in one.objects for name in part.names]
    return {n: None for n in dict.fromkeys((*declared, *one.required)) if n not in one.forbidden}


def is_open(one: Alternative) -> bool:
    """Whether other properties than the known ones are generated.

    Where properties are declared, only if a schema for others is given too.
    """
    declared = any(part.names for part in one.objects)
    return not declared or any(part.rest is not None or part.patterns for part in one.objects)


def _first_item(one: Alternative) -> tuple[str, ...]:
    firsts = (part.prefix[0] if part.prefix else part.rest for part in one.lists)
    return tuple(place for place in firsts if place is not None)


def _counts_apart(least: int, most: int | None, low: int, high: int | None) -> bool:
    return (most is not None and most < low) or (high is not None and high < least)


def _numbers_apart(one: Alternative, two: Alternative) -> bool:
    for a, b in ((one, two), (two, one)):
        if a.low is not None and b.high is not None:
            if a.low[0] > b.high[0]:
                return True
            if a.low[0] == b.high[0] and (a.low[1] or b.high[1]):
                return True
    return False


def _strings_apart(one: Alternative, two: Alternative) -> bool:
    if _counts_apart(one.min_length, one.max_length, two.min_length, two.max_length):
        return True
    try:
        found: Dfa = automaton.ANYTHING
        for dfa, _ in (*strings.parts_of(one, wide=True), *strings.parts_of(two, wide=True)):
            found = automaton.intersection(found, dfa)
    except BadPattern:
        return False
    return found.is_empty
