"""Which model a name means: an id, an alias, or the only model that is loaded. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Final

from runtime.embedded import EMBEDDED_MODEL_ID
from runtime.gateway.wire.failure import Failure, Fault, Refused
from runtime.settings.gateway import UnknownModel

LATEST: Final = ":latest"
_WILD: Final = frozenset("*?[")


def resolve(
    asked: str,
    loaded: Iterable[str],
    aliases: Sequence[tuple[str, str]] = (),
    unknown_model: UnknownModel = "only",
) -> str:
    """The id of the model that a client's name means; Refused with the names that there are.

    Aliases are patterns and ids; the first that matches counts.
    """
    ids = list(loaded)
    if asked in ids:
        return asked
    if asked.removesuffix(LATEST) in ids:
        return asked.removesuffix(LATEST)  # Ollama's clients write it
    for pattern, model in aliases:
        if fnmatchcase(asked, pattern):
            return model
    if asked == EMBEDDED_MODEL_ID:
        return asked  # it is loaded at its first use
    if len(ids) == 1 and (unknown_model == "only" or not asked):
        return ids[0]
    raise Refused(Failure(Fault.NO_MODEL, _unknown(asked, ids, aliases), "model"))


def other_names(model: str, aliases: Sequence[tuple[str, str]]) -> list[str]:
    """The aliases of a model that are names, and no patterns."""
    return [name for name, meant in aliases if meant == model and not set(name) & _WILD]


def _unknown(asked: str, ids: list[str], aliases: Sequence[tuple[str, str]]) -> str:
    if not ids:
        what = f"there is no model {asked!r}, and none is loaded" if asked else "no model is loaded"
        return f"{what}; load one (`llama-actors load NAME=PATH`)"
    names = ", ".join([*ids, *(pattern for pattern, _ in aliases)])
    if not asked:
        return f"the request names no model; there are: {names}"
    return f"there is no model {asked!r}; there are: {names}"
