"""Reads bodies: JSON as values of a struct, with an error that names the place."""

from __future__ import annotations

import re
from typing import Any, Final, TypeVar

import msgspec

from runtime.gateway.wire.failure import invalid

B = TypeVar("B")

MAX_OBJECTS: Final = 1 << 19
"""Objects and lists of a body, by its brackets. Small ones take up to 60 times their bytes."""
MAX_ITEMS: Final = 1 << 21
"""Elements and fields, by its commas."""

_PLACE: Final = re.compile(r" - at `(?P<path>.*)`$")
_MISSING: Final = re.compile(r"^Object missing required field `(?P<name>.*?)`")


def read(body: bytes, kind: type[B]) -> B:
    """The body as a value of ``kind``; Refused names what is wrong, and where."""
    if not body.strip():
        raise invalid("the body is empty; send a JSON object")
    _check_number(body, "objects and lists", b"{[", MAX_OBJECTS)
    _check_number(body, "elements", b",", MAX_ITEMS)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise invalid(*_explained(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"the body is no JSON: {error}") from None
    except RecursionError:
        raise invalid("the body is nested too deeply") from None


def _check_number(body: bytes, what: str, signs: bytes, most: int) -> None:
    """Refused before anything is made of the body. A text with so many signs is too long anyway."""
    if len(body) > most and sum(body.count(sign) for sign in signs) > most:
        raise invalid(f"the body has more than {most} {what}, which is too much for one request")


def _explained(text: str) -> tuple[str, str | None]:
    """Msgspec's message in the words of an API, and the field that it is about."""
    found = _PLACE.search(text)
    path = found["path"].removeprefix("$").removeprefix(".") if found else ""
    what = text[: found.start()] if found else text
    missing = _MISSING.match(what)
    if missing:
        name = f"{path}.{missing['name']}" if path else missing["name"]
        return f"{name} is missing", name
    what = what[:1].lower() + what[1:]
    return (f"{path}: {what}", path) if path else (f"the body: {what}", None)


def text_json(text: str) -> bytes:
    """A text as JSON, with its characters as they are."""
    return msgspec.json.encode(text)


encode: Final = msgspec.json.Encoder().encode


def are_token_ids(given: list[Any]) -> bool:
    """Whether they are token ids, if any; ``true`` is none. There may be a million."""
    return set(map(type, given)) <= {int}
