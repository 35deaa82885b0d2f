"""The grammar of a request, as it is sent: a schema becomes one here, in the caller's process.

So a large schema costs its caller a moment, and no model anything but the compiled result.
"""

from __future__ import annotations

import json
import marshal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

from native.errors import InvalidParam
from native.sampling_params import SamplingParams
from runtime.errors import InvalidRequest

AT_ONCE_CHARS: Final = 8_192
"""A schema of up to so many is converted when it is given, in some milliseconds."""
_KEPT: Final = 32
_VALUES_ALONE: Final = 2
"""The version of marshal in which equal values are equal bytes."""


@dataclass(frozen=True, slots=True)
class GrammarSource:
    """What the caller gave."""

    option: str
    """``grammar`` or ``json_schema``."""
    text: str

    @property
    def is_quick(self) -> bool:
        """Whether its rules take no time that others at the same event loop would notice."""
        return self.option == "grammar" or len(self.text) <= AT_ONCE_CHARS

    def rules(self) -> bytes:
        """GBNF in UTF-8. InvalidRequest names what of a schema cannot be obeyed, and where."""
        if self.option == "grammar":
            return self.text.encode()
        try:
            return _rules_of(self.text)
        except InvalidParam as error:
            raise InvalidRequest(str(error)) from error


def json_of(schema: bool | Mapping[str, Any]) -> str:
    """The text of a schema; TypeError or ValueError, if it is no JSON.

    That of one that was given before is known: 80 KB of tools take a millisecond to write.
    """
    plain = schema if isinstance(schema, bool) else dict(schema)
    try:
        key = marshal.dumps(plain, _VALUES_ALONE)
    except ValueError:  # some value in it is of another class
        return json.dumps(plain)
    return _json_of(key)


@lru_cache(maxsize=_KEPT)
def _json_of(key: bytes) -> str:
    return json.dumps(marshal.loads(key))  # noqa: S302 - bytes of our own


@lru_cache(maxsize=_KEPT)
def _rules_of(schema: str) -> bytes:
    from native.schema import grammar_of  # here: few requests have a schema

    return grammar_of(schema).encode()


def split(sampling: SamplingParams) -> tuple[SamplingParams, GrammarSource]:
    """Sampling parameters without their grammar or schema, and that; a small schema is checked."""
    option = "grammar" if sampling.grammar is not None else "json_schema"
    source = GrammarSource(option, sampling.grammar or sampling.json_schema or "")
    if source.is_quick:
        source.rules()
    return replace(sampling, grammar=None, json_schema=None), source
