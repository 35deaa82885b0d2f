"""JSON schemas as grammars: each keyword is obeyed, or the schema is refused by keyword and place.

===================  ==============================================================================
``convert.py``       the way from a schema to the text of a grammar
``document.py``      places and references of a document; the table of all keywords
``alternatives.py``  a schema as alternatives, each a plain conjunction
``exclusion.py``     ``oneOf``: telling its branches apart
``checks.py``        whether a value that the schema lists obeys it
``strings.py``       patterns, formats and lengths as automata
``regex.py``         regular expressions, ``automaton.py`` what is computed with them
``numbers.py``       limits and multiples of numbers, digit by digit
``rules.py``         the rules of the grammar and their text
===================  ==============================================================================
"""

from __future__ import annotations

from functools import lru_cache

from native.errors import InvalidParam
from native.schema.convert import convert
from native.schema.refused import Refused
from native.schema.rules import literal

__all__ = ["grammar_of", "literal"]

KEPT = 32


def grammar_of(text: str) -> str:
    """The grammar (GBNF) of a JSON schema's text; the last few are kept.

    ``InvalidParam``, if the text is no schema or holds what cannot be obeyed: its value is the
    place as a JSON pointer, and its reason is about the keyword there.
    """
    found = _converted(text)
    if isinstance(found, str):
        return found
    raise InvalidParam("json_schema", *found)


@lru_cache(maxsize=KEPT)
def _converted(text: str) -> str | tuple[str, str]:
    try:
        return convert(text)
    except RecursionError:
        return "#", "its parts refer to one another more deeply than can be followed"
    except Refused as refused:
        return refused.place, f"{_word(refused.place)}{refused.why}"


def _word(place: str) -> str:
    """The keyword at a place, as the beginning of a sentence; a list's with its index."""
    parts = place.split("/")[1:]
    if not parts:
        return ""
    n = 2 if len(parts) > 1 and parts[-1].isdecimal() else 1
    return "/".join(parts[-n:]) + " "
