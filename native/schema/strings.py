"""The texts that a string of an alternative may be, as an automaton."""

from __future__ import annotations

from native.schema import automaton
from native.schema.alternatives import Alternative
from native.schema.automaton import Dfa
from native.schema.refused import Refused
from native.schema.regex import BadPattern

_YEAR = r"(?:[1-9]\d{3}|0[1-9]\d{2}|00[1-9]\d|000[1-9])"
_LEAP = r"(?:\d{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    rf"|02-(?:0[1-9]|1\d|2[0-8]))|{_LEAP}-02-29)"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{3})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_LABEL = r"[A-Za-z0-9](?:-?[A-Za-z0-9]){0,20}"  # two hyphens in a row mark Punycode
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,5}}"
_PATH = r"[A-Za-z0-9._~-]+(?:/[A-Za-z0-9._~-]*)*(?:\?[A-Za-z0-9._~&=-]*)?(?:#[A-Za-z0-9._~-]*)?"
_URI = (
    rf"(?:https?|ftp)://{_HOST}(?::[1-9]\d{{0,3}})?(?:/[A-Za-z0-9._~-]*)*"
    r"(?:\?[A-Za-z0-9._~&=-]*)?(?:#[A-Za-z0-9._~-]*)?"
)
_POINTER = r"(?:/(?:[^/~]|~[01])*)*"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "ipv6": r"[0-9a-fA-F]{1,4}(?::[0-9a-fA-F]{1,4}){7}",
    "hostname": _HOST,
    "email": rf"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@{_LABEL}(?:\.{_LABEL}){{1,5}}",
    "uri": _URI,
    "duration": r"P(?:\d+W|\d+D(?:T\d+H)?|\d+Y(?:\d+M)?|\d+M(?:\d+D)?"
    r"|T\d+H(?:\d+M(?:\d+S)?)?|T\d+M|T\d+S)",
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(?:0|[1-9]\d{{0,3}})(?:#|{_POINTER})",
    "uri-reference": rf"(?:{_URI}|/?{_PATH})",
}
for _name, _part in {
    "idn-email": "email", "idn-hostname": "hostname", "iri": "uri",
    "iri-reference": "uri-reference", "uri-template": "uri-reference",
}.items():  # fmt: skip
    FORMATS[_name] = FORMATS[_part]
"""What is generated for a format: a part of what its standard allows, of the usual form."""

REFUSED_FORMATS = frozenset(["regex"])
"""The other format of the standard. Any other name is of a vendor and an annotation."""


def of_pattern(pattern: str, place: str, *, wide: bool = False) -> Dfa:
    """The texts in which a pattern is found; Refused, if it is not regular or too large."""
    try:
        return automaton.of_pattern(pattern, wide=wide)
    except BadPattern as error:
        raise Refused(place, f"cannot be obeyed: {error}") from None


def matches(pattern: str, text: str, place: str) -> bool:
    return of_pattern(pattern, place).accepts(text)


def of_format(name: str, place: str) -> Dfa:
    if name in REFUSED_FORMATS:
        known = ", ".join(FORMATS)
        raise Refused(place, f"{name!r} is not supported; write a pattern, or one of {known}")
    if name not in FORMATS:
        return automaton.ANYTHING
    return of_pattern(f"^(?:{FORMATS[name]})$", place)


def parts_of(one: Alternative, *, wide: bool = False) -> list[tuple[Dfa, str]]:
    """What must all accept a text, lengths left out, with the places they come from."""
    found = [(of_pattern(pattern, place, wide=wide), place) for pattern, place in one.patterns]
    found += [(of_format(name, place), place) for name, place in one.formats]
    for pattern, place in one.not_patterns:
        dfa = of_pattern(pattern, place, wide=not wide)
        found.append((automaton.complement(dfa), place))
    excluded = [value for value in one.excluded if isinstance(value, str)]
    if excluded:
        texts = automaton.of_texts(excluded)
        found.append((automaton.complement(texts), one.place("not")))
    return [(dfa, place) for dfa, place in found if dfa is not automaton.ANYTHING]


def of_alternative(one: Alternative) -> Dfa | None:
    """The texts that a string may be; None: any text of the required lengths."""
    parts = parts_of(one)
    if not parts:
        return None
    dfa, place = parts[0]
    try:
        for more, place in parts[1:]:  # noqa: B007 - the place is for the error
            dfa = automaton.intersection(dfa, more)
        if dfa.is_empty:
            return dfa
        place = one.place("minLength", "maxLength")
        return _of_lengths(dfa, one.min_length, one.max_length)
    except BadPattern as error:
        raise Refused(
            place,
            f"cannot be obeyed beside the pattern or format: {error}; put it into the pattern",
        ) from None


def _of_lengths(dfa: Dfa, least: int, most: int | None) -> Dfa:
    shortest, longest = automaton.lengths(dfa)
    fits = most is None or (longest is not None and longest <= most)
    if least <= shortest and fits:
        return dfa
    return automaton.intersection(dfa, automaton.of_lengths(least, None if fits else most))


def accepts(one: Alternative, text: str) -> bool:
    """Whether a string obeys an alternative."""
    if len(text) < one.min_length or (one.max_length is not None and len(text) > one.max_length):
        return False
    if any(matches(pattern, text, place) for pattern, place in one.not_patterns):
        return False
    return all(matches(pattern, text, place) for pattern, place in one.patterns) and all(
        of_format(name, place).accepts(text) for name, place in one.formats
    )
