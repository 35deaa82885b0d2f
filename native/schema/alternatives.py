"""A schema as alternatives: each a plain conjunction of the conditions on each type.

``Expander.expand`` reads one place, its references and its ``allOf``, ``anyOf``, ``oneOf``,
``not``, ``if`` and ``dependent…`` keywords, but not the schemas of properties and items: those stay
places. So a recursive schema is read as far as it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from native.schema.document import Document, check_keywords, inside
from native.schema.refused import Refused
from native.schema.values import ALL_TYPES, key_of, types_of

MAX_ALTERNATIVES = 2_000
"""Of one place."""
MAX_WORK = 20_000
"""Pairs of alternatives that are joined while one schema is converted."""
MAX_CHAIN = 60
"""References, and schemas within allOf, anyOf and so on, that lead to one another."""

OPPOSITE = "/(not)"
"""Behind a place: whatever does not obey its schema."""

Number = int | Decimal
Bound = tuple[Number, bool]
"""A number, and whether it is excluded itself."""

HINTS = {
    "object": "properties patternProperties additionalProperties unevaluatedProperties"
    " propertyNames required minProperties maxProperties dependentRequired dependentSchemas"
    " dependencies",
    "array": "items prefixItems additionalItems unevaluatedItems minItems maxItems"
    " uniqueItems contains",
    "string": "minLength maxLength pattern format",
    "number": "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf",
}
"""Where no ``type`` is given, a value of a type that some keyword is about is generated."""
_HINTS = {word: types_of(kind) for kind, words in HINTS.items() for word in words.split()}


@dataclass(frozen=True, slots=True)
class ListPart:
    """``prefixItems`` and ``items`` of one schema, as places."""

    prefix: tuple[str | None, ...]
    rest: str | None


@dataclass(frozen=True, slots=True)
class ObjectPart:
    """``properties``, ``patternProperties`` and ``additionalProperties`` of one schema, as places.

    None as a place: anything goes.
    """

    names: Mapping[str, str | None]
    patterns: tuple[tuple[str, str | None], ...]
    rest: str | None
    at: str
    evaluates: bool = True
    """Whether its properties count for ``unevaluatedProperties``; those of a failed test do not."""

    def places(self, name: str, matches: Any) -> list[str]:
        """The places whose schemas a property must obey."""
        found = [place for pattern, place in self.patterns if matches(pattern, name, self.at)]
        known = bool(found) or name in self.names
        if name in self.names:
            found.insert(0, self.names[name])
        if not known:
            found.append(self.rest)
        return [place for place in found if place is not None]


@dataclass(frozen=True, slots=True)
class Alternative:
    """What a value must obey, all of it; what is about other types than its own does not count."""

    types: frozenset[str] | None = None
    hints: frozenset[str] = frozenset()
    values: tuple[Any, ...] | None = None
    excluded: tuple[Any, ...] = ()
    nots: tuple[str, ...] = ()
    low: Bound | None = None
    high: Bound | None = None
    multiples: tuple[Number, ...] = ()
    min_length: int = 0
    max_length: int | None = None
    patterns: tuple[tuple[str, str], ...] = ()
    not_patterns: tuple[tuple[str, str], ...] = ()
    formats: tuple[tuple[str, str], ...] = ()
    lists: tuple[ListPart, ...] = ()
    min_items: int = 0
    max_items: int | None = None
    unique: bool = False
    contains: tuple[tuple[str, int, int | None], ...] = ()
    objects: tuple[ObjectPart, ...] = ()
    required: tuple[str, ...] = ()
    forbidden: frozenset[str] = frozenset()
    min_properties: int = 0
    max_properties: int | None = None
    property_names: tuple[str, ...] = ()
    at: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Of keywords, where they stand."""

    def place(self, *keywords: str) -> str:
        """Where the first of ``keywords`` that was given stands."""
        return next((self.at[word] for word in keywords if word in self.at), "#")

    @property
    def generated(self) -> frozenset[str]:
        """The types of the values to generate."""
        return self.types if self.types is not None else self.hints or ALL_TYPES


def _least(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else min(a, b)


def _low(a: Bound | None, b: Bound | None) -> Bound | None:
    return b if a is None else a if b is None else max(a, b)


def _high(a: Bound | None, b: Bound | None) -> Bound | None:
    if a is None or b is None:
        return a or b
    return min(a, b, key=lambda bound: (bound[0], not bound[1]))


def _shared_values(a: Alternative, b: Alternative) -> tuple[Any, ...] | None:
    if a.values is None or b.values is None:
        return b.values if a.values is None else a.values
    known = {key_of(value) for value in b.values}
    return tuple(value for value in a.values if key_of(value) in known)


def _shared_types(a: Alternative, b: Alternative) -> frozenset[str] | None:
    if a.types is None or b.types is None:
        return b.types if a.types is None else a.types
    return a.types & b.types


_JOINED = ("excluded", "nots", "multiples", "patterns", "not_patterns", "formats", "lists",
           "contains", "objects", "property_names")  # fmt: skip


def merged(a: Alternative, b: Alternative) -> Alternative:
    """What obeys both."""
    joined = {name: getattr(a, name) + getattr(b, name) for name in _JOINED}
    return Alternative(
        types=_shared_types(a, b),
        hints=a.hints | b.hints,
        values=_shared_values(a, b),
        low=_low(a.low, b.low),
        high=_high(a.high, b.high),
        min_length=max(a.min_length, b.min_length),
        max_length=_least(a.max_length, b.max_length),
        min_items=max(a.min_items, b.min_items),
        max_items=_least(a.max_items, b.max_items),
        unique=a.unique or b.unique,
        required=tuple(dict.fromkeys((*a.required, *b.required))),
        forbidden=a.forbidden | b.forbidden,
        min_properties=max(a.min_properties, b.min_properties),
        max_properties=_least(a.max_properties, b.max_properties),
        at={**b.at, **a.at},
        **joined,
    )


ANY = Alternative()


Branches = list[tuple[Alternative, ...]]
Apart = Callable[[str, Branches], tuple[Alternative, ...]]
"""From the place of a oneOf and its branches to alternatives that obey one branch alone."""


class Expander:
    """Reads places of one document."""

    def __init__(self, document: Document, apart: Apart) -> None:
        self.document = document
        self._apart = apart
        self._known: dict[str, tuple[Alternative, ...]] = {}
        self._together: dict[tuple[str, ...], tuple[Alternative, ...]] = {}
        self._open: list[str] = []
        self._work = 0

    def together(self, places: Iterable[str]) -> tuple[Alternative, ...]:
        """The alternatives of a value that obeys the schemas at all ``places``."""
        key = tuple(places)
        if key not in self._together:
            found: tuple[Alternative, ...] = (ANY,)
            for place in key:
                found = self.cross(place, found, self.expand(place))
            self._together[key] = found
        return self._together[key]

    def cross(
        self, place: str, a: Iterable[Alternative], b: Iterable[Alternative]
    ) -> tuple[Alternative, ...]:
        """What obeys one of ``a`` and one of ``b``, without those that contradict themselves.

        If all do, one of them is left, for the reason.
        """
        seconds = tuple(b)
        out: list[Alternative] = []
        contradiction: tuple[Alternative, ...] = ()
        for one in a:
            for other in seconds:
                is_merged = one is not ANY and other is not ANY
                self._work += is_merged
                both = merged(one, other) if is_merged else other if one is ANY else one
                if both.types == frozenset() or not both.forbidden.isdisjoint(both.required):
                    contradiction = (both,)
                else:
                    out.append(both)
                if self._work > MAX_WORK or len(out) > MAX_ALTERNATIVES:
                    raise Refused(place, "has too many alternatives, multiplied out; use fewer")
        return tuple(out) or contradiction

    def expand(self, place: str) -> tuple[Alternative, ...]:
        """The alternatives of a value that obeys the schema at ``place``; none: no value does."""
        if place not in self._known:
            if place in self._open:
                raise Refused(
                    place,
                    "is made of references that come back to itself, and so describes nothing",
                )
            if len(self._open) > MAX_CHAIN:
                raise Refused(
                    place, f"is reached by more than {MAX_CHAIN} references or nested schemas"
                )
            self._open.append(place)
            self._known[place] = self._expand(place)
            self._open.pop()
        return self._known[place]

    def _expand(self, place: str) -> tuple[Alternative, ...]:
        if place.endswith(OPPOSITE):
            return self._not(place.removesuffix(OPPOSITE))
        schema = self.document.at(place)
        if isinstance(schema, bool):
            return (ANY,) if schema else ()
        check_keywords(place, schema)
        found = self.cross(place, (ANY,), (own(place, schema),))
        if "$ref" in schema:
            target = self.document.follow(place, schema["$ref"])
            found = self.cross(place, found, self.expand(target))
        for index in range(len(schema.get("allOf", ()))):
            found = self.cross(place, found, self.expand(inside(place, "allOf", index)))
        if "anyOf" in schema:
            n = len(schema["anyOf"])
            any_of = [one for i in range(n) for one in self.expand(inside(place, "anyOf", i))]
            found = self.cross(place, found, any_of)
        if "not" in schema:
            found = self.cross(place, found, self._not(inside(place, "not")))
        if "if" in schema:
            found = self.cross(place, found, self._conditional(place, schema))
        for one in self._dependent(place, schema):
            found = self.cross(place, found, one)
        if "oneOf" in schema:
            found = self._one_of(inside(place, "oneOf"), len(schema["oneOf"]), found)
        if "unevaluatedProperties" in schema:
            rest = inside(place, "unevaluatedProperties")
            found = tuple(_close(one, rest) for one in found)
        if "unevaluatedItems" in schema:
            rest = inside(place, "unevaluatedItems")
            found = tuple(_close_list(one, rest) for one in found)
        return found

    def _one_of(self, place: str, n: int, base: tuple[Alternative, ...]) -> tuple[Alternative, ...]:
        branches = [
            self.cross(place, base, self.expand(inside(place, index))) for index in range(n)
        ]
        return self._apart(place, branches)

    def _conditional(self, place: str, schema: dict[str, Any]) -> list[Alternative]:
        test = inside(place, "if")
        found: list[Alternative] = []
        for holds, word in ((True, "then"), (False, "else")):
            outcome = self.expand(inside(place, word)) if word in schema else (ANY,)
            tested = self.expand(test) if holds else self._not(test)
            found += self.cross(place, tested, outcome)
        return found

    def _dependent(self, place: str, schema: dict[str, Any]) -> list[list[Alternative]]:
        found = []
        for word in ("dependentRequired", "dependentSchemas", "dependencies"):
            for name, wanted in schema.get(word, {}).items():
                absent = Alternative(forbidden=frozenset((name,)))
                at = {"required": inside(place, word, name)}
                if isinstance(wanted, list):
                    names = tuple(dict.fromkeys((name, *wanted)))
                    found.append([absent, Alternative(required=names, at=at)])
                    continue
                present = Alternative(required=(name,), at=at)
                inner = self.expand(inside(place, word, name))
                found.append([absent, *self.cross(place, (present,), inner)])
        return found

    # --- not -------------------------------------------------------------------------------------

    def _not(self, place: str) -> tuple[Alternative, ...]:
        """What does not obey the schema at ``place``."""
        found: tuple[Alternative, ...] = (ANY,)
        for one in self.expand(place):
            opposite = self._opposite(place, one)
            if opposite is None:  # may still be decided for values that are listed
                return (Alternative(nots=(place,), at={"not": place}),)
            found = self.cross(place, found, opposite)
        return found

    def _opposite(self, place: str, one: Alternative) -> list[Alternative] | None:
        """Alternatives that together are all values that ``one`` refuses; None: there are none."""
        at = {"not": place}
        if one.nots or one.multiples or one.formats or one.lists or one.unique or one.contains:
            return None
        if one.property_names or one.excluded or any(p.patterns for p in one.objects):
            return None
        found: list[Alternative] = []
        if one.types is not None:
            found.append(Alternative(types=ALL_TYPES - one.types, at=at))
        if one.values is not None:
            found.append(Alternative(excluded=one.values, at=at))
        found += _opposite_limits(one, at)
        for pattern in one.patterns:
            found.append(_only("string", at, not_patterns=(pattern,)))
        for pattern in one.not_patterns:
            found.append(_only("string", at, patterns=(pattern,)))
        found += [_only("object", at, forbidden=frozenset((n,))) for n in one.required]
        found += [_only("object", at, required=(n,)) for n in one.forbidden]
        for part in one.objects:
            if part.rest is not None:
                return None
            found += [self._opposite_property(n, p, at) for n, p in part.names.items() if p]
        return found

    def _opposite_property(self, name: str, place: str, at: dict[str, str]) -> Alternative:
        opposite = place + OPPOSITE
        part = ObjectPart({name: opposite}, (), None, place, evaluates=False)
        return _only("object", at, objects=(part,), required=(name,))


def _only(kind: str, at: dict[str, str], **limits: Any) -> Alternative:
    return Alternative(types=types_of(kind), at=at, **limits)


def _opposite_limits(one: Alternative, at: dict[str, str]) -> list[Alternative]:
    found = []
    if one.low is not None:
        found.append(_only("number", at, high=(one.low[0], not one.low[1])))
    if one.high is not None:
        found.append(_only("number", at, low=(one.high[0], not one.high[1])))
    for kind, least, most in (
        ("string", "min_length", "max_length"),
        ("array", "min_items", "max_items"),
        ("object", "min_properties", "max_properties"),
    ):
        if getattr(one, least) > 0:
            found.append(_only(kind, at, **{most: getattr(one, least) - 1}))
        if getattr(one, most) is not None:
            found.append(_only(kind, at, **{least: getattr(one, most) + 1}))
    return found


# --- one schema's own keywords -------------------------------------------------------------------


def own(place: str, schema: dict[str, Any]) -> Alternative:
    """The constraints of one schema's keywords on the value itself."""
    at = {word: inside(place, word) for word in schema}
    limits: dict[str, Any] = {"at": at, "hints": frozenset[str]()}
    for word in schema:
        limits["hints"] |= _HINTS.get(word, frozenset())
    if "type" in schema:
        wanted = schema["type"]
        names = wanted if isinstance(wanted, list) else [wanted]
        limits["types"] = frozenset[str]().union(*map(types_of, names))
    values = [(value,) for value in (schema["const"],)] if "const" in schema else []
    if "enum" in schema:
        values.append(tuple({key_of(one): one for one in schema["enum"]}.values()))
    if values:
        first = Alternative(values=values[0])
        limits["values"] = _shared_values(first, Alternative(values=values[-1]))
    _own_numbers(schema, limits)
    _own_strings(schema, at, limits)
    _own_arrays(place, schema, limits)
    _own_objects(place, schema, limits)
    return Alternative(**limits)


def _own_numbers(schema: dict[str, Any], limits: dict[str, Any]) -> None:
    for word, name, better in (("inimum", "low", _low), ("aximum", "high", _high)):
        prefix = "m"
        bound = (schema[prefix + word], False) if prefix + word in schema else None
        apart = schema.get("exclusiveM" + word)
        if apart is True and bound is not None:  # as draft 4 wrote it
            bound = (bound[0], True)
        elif apart is not None and not isinstance(apart, bool):
            bound = better(bound, (apart, True))
        limits[name] = bound
    if "multipleOf" in schema:
        limits["multiples"] = (schema["multipleOf"],)


def _own_strings(schema: dict[str, Any], at: dict[str, str], limits: dict[str, Any]) -> None:
    limits["min_length"] = int(schema.get("minLength", 0))
    limits["max_length"] = int(schema["maxLength"]) if "maxLength" in schema else None
    if "pattern" in schema:
        limits["patterns"] = ((schema["pattern"], at["pattern"]),)
    if "format" in schema:
        limits["formats"] = ((schema["format"], at["format"]),)


def _own_arrays(place: str, schema: dict[str, Any], limits: dict[str, Any]) -> None:
    limits["min_items"] = int(schema.get("minItems", 0))
    limits["max_items"] = int(schema["maxItems"]) if "maxItems" in schema else None
    limits["unique"] = schema.get("uniqueItems", False)
    if "contains" in schema:
        most = schema.get("maxContains")
        least = int(schema.get("minContains", 1))
        limits["contains"] = (
            (inside(place, "contains"), least, None if most is None else int(most)),
        )
    items = schema.get("items")
    listed = "items" if isinstance(items, list) else "prefixItems"
    prefix = tuple(inside(place, listed, i) for i in range(len(schema.get(listed, ()))))
    rest = "additionalItems" if isinstance(items, list) else "items"
    if prefix or rest in schema:
        more = inside(place, rest) if rest in schema else None
        limits["lists"] = (ListPart(prefix, more),)


def _own_objects(place: str, schema: dict[str, Any], limits: dict[str, Any]) -> None:
    limits["min_properties"] = int(schema.get("minProperties", 0))
    if "maxProperties" in schema:
        limits["max_properties"] = int(schema["maxProperties"])
    limits["required"] = tuple(dict.fromkeys(schema.get("required", ())))
    if "propertyNames" in schema:
        limits["property_names"] = (inside(place, "propertyNames"),)
    words = ("properties", "patternProperties", "additionalProperties")
    if any(word in schema for word in words):
        names = {n: inside(place, words[0], n) for n in schema.get(words[0], {})}
        patterns = tuple((p, inside(place, words[1], p)) for p in schema.get(words[1], {}))
        rest = inside(place, words[2]) if words[2] in schema else None
        limits["objects"] = (ObjectPart(names, patterns, rest, inside(place, words[1])),)


def _close(one: Alternative, rest: str) -> Alternative:
    """Names that no part of an alternative is about obey ``rest``."""
    parts = [part for part in one.objects if part.evaluates]
    if any(part.rest is not None for part in parts):
        return one
    names = {name: None for part in parts for name in part.names}
    patterns = tuple((pattern, None) for part in parts for pattern, _ in part.patterns)
    part = ObjectPart(names, patterns, rest, rest)
    return replace(one, objects=(*one.objects, part))


def _close_list(one: Alternative, rest: str) -> Alternative:
    """Items that no part of an alternative is about obey ``rest``."""
    if any(part.rest is not None for part in one.lists):
        return one
    longest = max((len(part.prefix) for part in one.lists), default=0)
    return replace(one, lists=(*one.lists, ListPart((None,) * longest, rest)))
