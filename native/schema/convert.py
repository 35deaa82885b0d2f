"""From a JSON schema to a grammar whose texts are exactly JSON that obeys the schema.

Exactly: nothing else. Not all: properties come in the order they are written in, only those that
are declared unless there is a schema for others, and values in their usual form.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from native.schema import automaton, numbers, strings
from native.schema.alternatives import OPPOSITE, Alternative, Expander
from native.schema.automaton import Dfa
from native.schema.checks import Checker, places_of
from native.schema.document import Document
from native.schema.exclusion import Exclusion, is_open, known_names
from native.schema.refused import Refused
from native.schema.regex import BadPattern
from native.schema.rules import Ref, Rules, Sequence_, literal
from native.schema.values import key_of, text_of, type_of

MAX_LEAST = 10_000
"""Of minItems and minLength."""
MAX_NODES = 50_000
MAX_NAME_PATTERNS = 4
MAX_UNIQUE = 2_000
"""Different sets of items that a uniqueItems array may have begun with."""
MAX_COUNTED = 4_000
MAX_GAPS = 16
"""Numbers that may be excluded from a range."""
MAX_INTEGERS = 1_000
KINDS = ("object", "array", "string", "number", "boolean", "null")

Places = tuple[str, ...]
Reasons = list[tuple[str, str]]


def convert(text: str) -> str:
    """The grammar of a schema's JSON text. ``Refused`` names what cannot be obeyed and where."""
    automaton.BUDGET.begin()
    return _Converter(Document(text)).convert()


class _Converter:
    def __init__(self, document: Document) -> None:
        exclusion = Exclusion()
        self.expander = exclusion.expander = Expander(document, exclusion.apart)
        self.checker = Checker(self.expander)
        self.rules = Rules()
        self._nodes: dict[Places, str] = {}
        self._todo: list[Places] = []
        self._reasons: dict[str, Reasons] = {}
        self._of_texts: dict[int, tuple[Dfa, Ref]] = {}

    def convert(self) -> str:
        root = self.node(("#",))
        while self._todo:
            self._fill(self._todo.pop())
        alive = self.rules.productive()
        if root.name not in alive:
            reasons = (
                one for name in self._reasons if name not in alive for one in self._reasons[name]
            )
            place, why = next(
                reasons, ("#", "allows no value, or only one that contains itself without an end")
            )
            raise Refused(place, why)
        return self.rules.text(root.name, alive)

    def node(self, places: Places) -> Ref:
        """The rule of the values that obey the schemas at all ``places``."""
        key = tuple(sorted(set(places)))
        if not key:
            return Ref("value")
        if key not in self._nodes:
            if len(self._nodes) >= MAX_NODES:
                raise Refused("#", f"has more than {MAX_NODES:,} different combinations of schemas")
            self._nodes[key] = self.rules.new("node")
            self._todo.append(key)
        return Ref(self._nodes[key])

    def _fill(self, places: Places) -> None:
        name = self._nodes[places]
        found = self.expander.together(places)
        reasons: Reasons = []
        out: list[Sequence_] = []
        texts: list[str] = []
        for one in found:
            values = self._listed(one)
            if values is None:
                out += self._kinds(one, reasons)
                continue
            texts += map(text_of, values)
            if not values:
                place = one.place("enum", "const", "not")
                reasons.append((place, "leaves no value that obeys the keywords beside it"))
        if texts:
            out.append(self.rules.texts(texts))
        if not out and found and len(places) == 1:
            raise Refused(*(reasons or [(places[0], "allows no value")])[0])
        self._reasons[name] = reasons
        self.rules.add(name, out)

    # --- values that can be listed ---------------------------------------------------------------

    def _listed(self, one: Alternative) -> list[Any] | None:
        """The values of an alternative that lists them; None: it does not."""
        values: Any = one.values
        others = replace(one, values=None)
        if values is None and (one.excluded or one.nots or one.unique):
            values = _few(one)
        if values is None:
            return None
        return [value for value in values if self.checker.fits(others, value)]

    def finite(self, places: Places) -> list[Any] | None:
        """All values that obey the schemas at ``places``, if they are few."""
        found: dict[Any, Any] = {}
        for one in self.expander.together(places):
            values = one.values if one.values is not None else _few(one)
            if values is None:
                return None
            found |= {key_of(value): value for value in values if self.checker.fits(one, value)}
        return list(found.values())

    # --- by type ---------------------------------------------------------------------------------

    def _kinds(self, one: Alternative, reasons: Reasons) -> list[Sequence_]:
        out: list[Sequence_] = []
        kinds = one.generated
        if not kinds:
            reasons.append((one.place("type", "not"), "leaves no type that all keywords allow"))
        if one.nots and kinds:
            raise Refused(
                one.place("not"),
                "cannot be obeyed: it excludes by keywords that have no opposite "
                "here; describe what is wanted instead",
            )
        if kinds & {"integer", "fraction"}:
            out += self._numbers(one, reasons)
        if "string" in kinds:
            out += self._strings(one, reasons)
        if "array" in kinds:
            out += self._arrays(one, reasons)
        if "object" in kinds:
            out += self._objects(one, reasons)
        excluded = {text_of(value) for value in one.excluded}
        for kind, words in (("boolean", ("true", "false")), ("null", ("null",))):
            if kind in kinds:
                out += [(literal(word),) for word in words if word not in excluded]
        return out

    def _none_excluded(self, one: Alternative, *kinds: str) -> None:
        if any(type_of(value) in kinds for value in one.excluded):
            raise Refused(
                one.place("not"), f"cannot exclude a value of type {kinds[0]}; list what is wanted"
            )

    def _numbers(self, one: Alternative, reasons: Reasons) -> list[Sequence_]:
        if "integer" not in one.generated:
            raise Refused(one.place("not"), "cannot exclude whole numbers from numbers")
        is_whole = "fraction" not in one.generated
        out: list[Sequence_] = []
        for part in self._around_excluded(one):
            out += numbers.sequences(self.rules, part, integer=is_whole)
        if not out:
            words = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf")
            reasons.append((one.place(*words), "leaves no number"))
        return out

    def _around_excluded(self, one: Alternative) -> list[Alternative]:
        """The ranges between the numbers that an alternative excludes."""
        gaps = sorted({v for v in one.excluded if type_of(v) in ("integer", "fraction")})
        if len(gaps) > MAX_GAPS:
            raise Refused(one.place("not"), f"excludes more than {MAX_GAPS} numbers; use limits")
        parts, rest = [], one
        for gap in gaps:
            if self.checker.fits(replace(rest, excluded=(), values=None), gap):
                parts.append(replace(rest, high=(gap, True)))
                rest = replace(rest, low=(gap, True))
        return [*parts, rest]

    # --- strings ---------------------------------------------------------------------------------

    def _strings(self, one: Alternative, reasons: Reasons) -> list[Sequence_]:
        _check_limits(one, "minLength", "maxLength", one.min_length, one.max_length)
        dfa = strings.of_alternative(one)
        if dfa is not None and dfa.is_empty:
            words = ("pattern", "format", "not", "minLength", "maxLength")
            reasons.append(
                (one.place(*words), "allows no text together with the keywords beside it")
            )
            return []
        if dfa is not None:
            return [(literal('"'), self.text_rule(dfa))]
        if one.min_length == 0 and one.max_length is None:
            return [(Ref("string"),)]
        body = self.rules.repeated("char", one.min_length, one.max_length)
        return [(self.rules.shared("string", [(literal('"'), *body, literal('"'))]),)]

    def text_rule(self, dfa: Dfa) -> Ref:
        """The rest of a JSON string, its closing quote included, that an automaton accepts."""
        known = self._of_texts.get(id(dfa))
        if known is None:
            known = self._of_texts[id(dfa)] = (dfa, self._new_text_rule(dfa))
        return known[1]

    def _new_text_rule(self, dfa: Dfa) -> Ref:
        names = [self.rules.new("state") for _ in dfa.steps]
        for state, steps in enumerate(dfa.steps):
            out: list[Sequence_] = [(literal('"'),)] if state in dfa.accepting else []
            out += [(self.rules.chars(ranges), Ref(names[target])) for ranges, target in steps]
            self.rules.add(names[state], out)
        return Ref(names[0])

    # --- arrays ----------------------------------------------------------------------------------

    def _arrays(self, one: Alternative, reasons: Reasons) -> list[Sequence_]:
        self._none_excluded(one, "array")
        counted = [one_of for one_of in one.contains if one_of[1] > 0 or one_of[2] is not None]
        longest = max((len(part.prefix) for part in one.lists), default=0)
        least, most = one.min_items, one.max_items
        rests = [part.rest for part in one.lists if part.rest is not None]
        ends = longest and not all(map(self.expander.expand, rests))
        if ends or (longest and not rests and least <= longest):
            most = longest if most is None else min(most, longest)
            least = most if "minItems" not in one.at else least
        if _check_limits(one, "minItems", "maxItems", least, most, reasons):
            return []
        if one.unique and (most is None or most > 1):
            if counted:
                raise Refused(one.place("contains"), "cannot be obeyed beside uniqueItems")
            return self._unique(one, least, most, longest)
        if counted:
            return self._counted_items(one, least, most, longest, counted)
        return self._items(one, least, most, longest)

    def _counted_items(
        self,
        one: Alternative,
        least: int,
        most: int | None,
        longest: int,
        counted: list[tuple[str, int, int | None]],
    ) -> list[Sequence_]:
        """Items of which some must obey ``contains``: a state is how many there are of either."""
        place, wanted, limit = counted[0]
        end = max(least, longest, 1) if most is None else most
        top = wanted if limit is None else limit
        if len(counted) > 1 or (end + 1) * (top + 1) > MAX_COUNTED:
            raise Refused(
                one.place("contains"),
                "cannot be obeyed: too many to count; use prefixItems or items",
            )
        names = {
            (index, count): self.rules.new("counted")
            for index in range(end + 1)
            for count in range(top + 1)
        }
        other = () if limit is None else (place + OPPOSITE,)
        for (index, count), name in names.items():
            out: list[Sequence_] = [()] if index >= least and count >= wanted else []
            comma: Sequence_ = (literal(","), Ref("space")) if index else ()
            after = min(index + 1, end)
            if index < end or most is None:
                plain = self.node((*_item_places(one, index), *other))
                out.append((*comma, plain, Ref(names[after, count])))
                if count < top:
                    match = self.node((*_item_places(one, index), place))
                    out.append((*comma, match, Ref(names[after, count + 1])))
            self.rules.add(name, out)
        return [(literal("["), Ref("space"), Ref(names[0, 0]), Ref("space"), literal("]"))]

    def _items(
        self, one: Alternative, least: int, most: int | None, longest: int
    ) -> list[Sequence_]:
        out: list[Sequence_] = [(literal("["), Ref("space"), literal("]"))] if least == 0 else []
        if most == 0:
            return out
        more = self._more_items(one, 1, least, most, longest)
        first = self.node(_item_places(one, 0))
        out.append((literal("["), Ref("space"), first, more, Ref("space"), literal("]")))
        return out

    def _more_items(
        self, one: Alternative, begin: int, least: int, most: int | None, longest: int
    ) -> Ref:
        """Items from ``begin`` on, each with the comma before it."""
        end = max(longest, begin)
        if most is not None and most < end:
            end = most
        item = self._further(one, end)
        left = (max(least - end, 0), None if most is None else most - end)
        tail: list[Sequence_] = [()] if left[0] == 0 else []
        if left[1] is None or left[1] > 0:
            tail.append(self.rules.repeated(item.name, max(left[0], 1), left[1]))
        name = self.rules.shared("items", tail)
        for index in reversed(range(begin, end)):
            out: list[Sequence_] = [()] if index >= least else []
            out.append((self._further(one, index), name))
            name = self.rules.shared("items", out)
        return name

    def _further(self, one: Alternative, index: int) -> Ref:
        item = self.node(_item_places(one, index))
        return self.rules.shared("item", [(literal(","), Ref("space"), item)])

    def _unique(
        self, one: Alternative, least: int, most: int | None, longest: int
    ) -> list[Sequence_]:
        values = self.finite(_item_places(one, 0)) if not longest else None
        n = 0 if values is None else len(values)
        top = n if most is None else min(most, n)
        if values is None or sum(math.comb(n, used) for used in range(top + 1)) > MAX_UNIQUE:
            raise Refused(
                one.place("uniqueItems"),
                "cannot be obeyed unless maxItems is 1 or the items are few listed values (10, or "
                "more with a low maxItems); leave it out and remove doubles from the reply",
            )
        texts = [literal(text_of(value)) for value in values]
        names: dict[int, str] = {}

        def rest(used: int) -> Ref:
            if used not in names:
                names[used] = self.rules.new("unique")
                count = used.bit_count()
                out: list[Sequence_] = [()] if count >= least else []
                comma = (literal(","), Ref("space")) if used else ()
                for index, text in enumerate(texts):
                    if count < top and not used >> index & 1:
                        out.append((*comma, text, rest(used | 1 << index)))
                self.rules.add(names[used], out)
            return Ref(names[used])

        return [(literal("["), Ref("space"), rest(0), Ref("space"), literal("]"))]

    # --- objects ---------------------------------------------------------------------------------

    def _objects(self, one: Alternative, reasons: Reasons) -> list[Sequence_]:
        self._none_excluded(one, "object")
        if one == _BARE_OBJECT or not _is_about_objects(one):
            return [(Ref("object"),)]
        if _check_limits(
            one, "minProperties", "maxProperties", one.min_properties, one.max_properties, reasons
        ):
            return []
        pairs = self._pairs(one, reasons)
        if pairs is None:
            return []
        free = self._free_pairs(one) if is_open(one) else []
        return _ObjectWriter(self.rules, one, pairs, free).sequences()

    def _pairs(self, one: Alternative, reasons: Reasons) -> list[tuple[Ref, bool]] | None:
        """The known properties and whether each is required; None: a required one is impossible."""
        pairs = []
        clash = [name for name in one.required if name in one.forbidden]
        for name in [*known_names(one), *clash]:
            places = places_of(one, name)
            possible = name not in clash and self.checker.name_fits(one, name)
            if possible and self.expander.together(places):
                value = self.node(places)
                key = literal(text_of(name)) + ' ":"'
                pair = self.rules.shared("pair", [(key, Ref("space"), value)])
                pairs.append((pair, name in one.required))
            elif name in one.required:
                reasons.append(
                    (one.place("required", "not"), f"lists {name!r}, which is not allowed")
                )
                return None
        return pairs

    def _free_pairs(self, one: Alternative) -> list[Ref]:
        """Properties with other names than the known ones."""
        patterns = {p: part.at for part in one.objects for p, _ in part.patterns}
        if len(patterns) > MAX_NAME_PATTERNS:
            raise Refused(
                one.place("patternProperties"),
                f"has more than {MAX_NAME_PATTERNS} patterns; use fewer",
            )
        rests = tuple(part.rest for part in one.objects if part.rest is not None)
        if not patterns and rests and not self.expander.together(rests):
            return []  # additionalProperties: false
        known = [*known_names(one), *one.forbidden]
        out = []
        try:
            names = automaton.complement(automaton.of_texts(known)) if known else automaton.ANYTHING
            names = automaton.intersection(names, self._names(one))
            for chosen in range(1 << len(patterns)):
                found, matched = names, set()
                for bit, (pattern, at) in enumerate(patterns.items()):
                    is_found = bool(chosen >> bit & 1)
                    dfa = strings.of_pattern(pattern, at, wide=not is_found)
                    if is_found:
                        matched.add(pattern)
                    found = automaton.intersection(
                        found, dfa if is_found else automaton.complement(dfa)
                    )
                if not found.is_empty:
                    out.append(self._free_pair(one, found, matched))
        except BadPattern as error:
            raise Refused(
                one.place("patternProperties", "propertyNames"), f"cannot be obeyed: {error}"
            ) from None
        return out

    def _free_pair(self, one: Alternative, names: Dfa, matched: set[str]) -> Ref:
        places = []
        for part in one.objects:
            own = [place for pattern, place in part.patterns if pattern in matched]
            is_matched = any(pattern in matched for pattern, _ in part.patterns)
            places += own if is_matched else [part.rest]
        value = self.node(tuple(place for place in places if place is not None))
        plain = names is automaton.ANYTHING
        key: Sequence_ = (Ref("string"),) if plain else (literal('"'), self.text_rule(names))
        return self.rules.shared("free", [(*key, literal(":"), Ref("space"), value)])

    def _names(self, one: Alternative) -> Dfa:
        """What ``propertyNames`` allows."""
        names = automaton.ANYTHING
        for place in one.property_names:
            allowed = []
            for alternative in self.expander.expand(place):
                kinds = alternative.types
                if kinds is None or "string" in kinds:
                    allowed.append(self._name_texts(alternative))
            if len(allowed) > 1:
                raise Refused(
                    place, "cannot be obeyed with alternatives; write one pattern or enum"
                )
            names = automaton.intersection(names, allowed[0] if allowed else automaton.NOTHING)
        return names

    def _name_texts(self, one: Alternative) -> Dfa:
        if one.values is not None:
            return automaton.of_texts(
                v for v in one.values if isinstance(v, str) and self.checker.fits(one, v)
            )
        if one.nots:
            raise Refused(one.place("not"), "cannot be obeyed for names")
        dfa = strings.of_alternative(one)
        return automaton.of_lengths(one.min_length, one.max_length) if dfa is None else dfa


class _ObjectWriter:
    """The pairs of an object in their order, counted where their number is limited."""

    def __init__(
        self, rules: Rules, one: Alternative, pairs: list[tuple[Ref, bool]], free: list[Ref]
    ) -> None:
        self.rules, self.pairs = rules, pairs
        self.least, self.most = one.min_properties, one.max_properties
        required = sum(is_required for _, is_required in pairs)
        if self.most is not None and not free and self.most >= len(pairs):
            self.most = None
        if self.least <= required:
            self.least = 0
        # A free name may come twice, and is then one property, so one of them is sure to count.
        self.out_of_reach = self.least > len(pairs) + (1 if free else 0)
        if self.out_of_reach:
            why = (
                "names are free and may be equal; name the properties"
                if free
                else "there are fewer"
            )
            raise Refused(one.place("minProperties"), f"cannot be obeyed: {why}")
        if (self.most or self.least) * max(len(pairs), 1) > MAX_COUNTED:
            raise Refused(one.place("maxProperties", "minProperties"), "is too large to be counted")
        self.free = rules.shared("free", [(one_free,) for one_free in free]) if free else None
        self.known: dict[tuple[int, int, bool, bool], Ref] = {}

    def sequences(self) -> list[Sequence_]:
        body = self.rest(0, 0, False, False)
        return [(literal("{"), Ref("space"), body, Ref("space"), literal("}"))]

    def rest(self, index: int, count: int, begun: bool, was_free: bool) -> Ref:
        """What may follow before the closing brace; made from the end, so that depth is bounded."""
        for at in range(len(self.pairs), index, -1):
            for number in range(min(count + at - index, self._cap()) + 1):
                for some in (False, True):
                    self._state(at, number, some, False)
        return self._state(index, count, begun, was_free)

    def _cap(self) -> int:
        return 0 if self.most is None and not self.least else max(self.least, (self.most or 0))

    def _state(self, index: int, count: int, begun: bool, was_free: bool) -> Ref:
        key = (index, count, begun, was_free)
        if key in self.known:
            return self.known[key]
        name = self.rules.new("pairs")
        self.known[key] = Ref(name)
        comma: Sequence_ = (literal(","), Ref("space")) if begun else ()
        out: list[Sequence_] = []
        room = self.most is None or count < self.most
        after = min(count + 1, self._cap())
        if index < len(self.pairs):
            pair, is_required = self.pairs[index]
            if room:
                out.append((*comma, pair, self._state(index + 1, after, True, False)))
            if not is_required:
                out.append((self._state(index + 1, count, begun, False),))
        else:
            if count >= self.least:
                out.append(())
            if self.free is not None and room:
                counted = after if not was_free or self.most is not None else count
                if not was_free or count >= self.least:
                    out.append((*comma, self.free, self._state(index, counted, True, True)))
        self.rules.add(name, out)
        return self.known[key]


_BARE_OBJECT = Alternative(types=frozenset(("object",)))


def _is_about_objects(one: Alternative) -> bool:
    return bool(
        one.objects or one.required or one.forbidden or one.property_names
        or one.min_properties or one.max_properties is not None
    )  # fmt: skip


def _item_places(one: Alternative, index: int) -> Places:
    found = (part.prefix[index] if index < len(part.prefix) else part.rest for part in one.lists)
    return tuple(place for place in found if place is not None)


def _few(one: Alternative) -> list[Any] | None:
    """The values of an alternative of few; None: they are many."""
    kinds = one.generated
    found: list[Any] = []
    if "integer" in kinds:
        if one.low is None or one.high is None or "fraction" in kinds:
            return None
        if one.high[0] - one.low[0] > MAX_INTEGERS:
            return None
        found += range(-int(-one.low[0] // 1), int(one.high[0] // 1) + 1)
    if kinds - {"integer", "boolean", "null"}:
        return None
    return found + [False, True] * ("boolean" in kinds) + [None] * ("null" in kinds)


def _check_limits(
    one: Alternative,
    low: str,
    high: str,
    least: int,
    most: int | None,
    reasons: Reasons | None = None,
) -> bool:
    """Refused, where a limit is too large; whether the limits leave nothing."""
    if least > MAX_LEAST:
        raise Refused(
            one.place(low), f"is more than {MAX_LEAST:,}, which no reply can be sure to reach"
        )
    if most is None or most >= least:
        return False
    if reasons is None:
        raise Refused(one.place(high, low), f"leaves nothing: at least {least} and at most {most}")
    reasons.append((one.place(high, low), f"leaves nothing: at least {least} and at most {most}"))
    return True
