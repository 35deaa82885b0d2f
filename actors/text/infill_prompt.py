"""What surrounds a gap as one prompt, for models that fill in the middle of a text.

The order is that of llama-server's ``/infill``, in token ids: before the gap, then what follows it,
then the token behind which the model writes what belongs between; or the other way round for models
that were trained so. Other files come first, each behind its name where the vocabulary has a token
for that. Texts are tokenised as plain text, so none of them can forge one of these tokens.

Unlike there, the token that begins texts begins the prompt also when there are other files, no part
is cut to fit, and the names of the repository and of the file are the caller's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from actors.messages.errors import InvalidRequest, UnsupportedRequest
from native.backend import InfillTokens, Vocabulary

MAX_EXTRA: Final = 1024  # files
REPOSITORY: Final = "myproject"
FILE: Final = "filename"
"""Where names are needed and not given; those of llama-server."""
_BETWEEN: Final = "\n\n--- snippet ---\n\n"
_KNOWN: Final = frozenset({"prefix", "suffix", "extra", "repository", "file", "suffix_first"})


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the model gets to read."""

    prefix: str
    suffix: str
    extra: tuple[tuple[str, str], ...] = ()
    """(name, text) of other files."""
    repository: str | None = None
    file: str | None = None
    """The name of the file with the gap."""
    suffix_first: bool = False

    def texts(self) -> Iterator[str]:
        """All of them, for a look at their sizes."""
        yield from (self.prefix, self.suffix, self.repository or "", self.file or "")
        for name, text in self.extra:
            yield from (name, text)


def infill_from(raw: str | bytes) -> Surroundings:
    """The JSON of an ``InfillPrompt``, checked; ``InvalidRequest`` names what is wrong."""
    try:
        given: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"cannot read what surrounds the gap: {error}") from error
    if not isinstance(given, dict):
        raise InvalidRequest("send a prefix and a suffix")
    unknown = sorted(given.keys() - _KNOWN)
    if unknown:
        raise InvalidRequest(f"{unknown[0]} is unknown; known are {', '.join(sorted(_KNOWN))}")
    for name in ("prefix", "suffix"):
        if not isinstance(given.get(name), str):
            raise InvalidRequest(f"send a {name}, which is a text")
    for name in ("repository", "file"):
        if not isinstance(given.get(name), str | None):
            raise InvalidRequest(f"{name} is no text")
    if not isinstance(given.get("suffix_first", False), bool):
        raise InvalidRequest("suffix_first is neither true nor false")
    if not given["prefix"] and not given["suffix"]:
        raise InvalidRequest("prefix and suffix are both empty; send some text")
    return Surroundings(
        given["prefix"],
        given["suffix"],
        _extra(given.get("extra") or []),
        given.get("repository"),
        given.get("file"),
        given.get("suffix_first", False),
    )


def _extra(given: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(given, list) or len(given) > MAX_EXTRA:
        raise InvalidRequest(f"extra is no list of at most {MAX_EXTRA} files")
    for at, one in enumerate(given):
        if not isinstance(one, dict) or not all(
            isinstance(one.get(name), str) for name in ("name", "text")
        ):
            raise InvalidRequest(f"extra file {at} has no name or no text")
    return tuple((one["name"], one["text"]) for one in given)


def infill_tokens(backend: Vocabulary, given: Surroundings) -> list[int]:
    """The tokens of the prompt; ``UnsupportedRequest`` where the model cannot do it."""
    marks = backend.info.infill
    if marks is None:
        raise UnsupportedRequest(
            "this model cannot fill in the middle of a text: its vocabulary has no tokens for "
            "prefix, suffix and middle. Use one that was trained for that, mostly a model for code"
        )
    bos = backend.info.bos_token
    found = [bos] if backend.info.add_bos and bos is not None else []
    if given.extra or given.repository is not None or given.file is not None:
        found += _other_files(backend, marks, given)
    prefix = [marks.prefix, *_plain(backend, given.prefix)]
    suffix = [marks.suffix, *_plain(backend, given.suffix)]
    found += [*suffix, *prefix] if given.suffix_first else [*prefix, *suffix]
    return [*found, marks.middle]


def _other_files(backend: Vocabulary, marks: InfillTokens, given: Surroundings) -> list[int]:
    """What comes before the file with the gap, and its name."""
    found: list[int] = []
    if marks.repository is not None:
        name = REPOSITORY if given.repository is None else given.repository
        found += [marks.repository, *_plain(backend, f"{name}\n")]
    for name, text in given.extra:
        found += _file(backend, marks, name) or _plain(backend, _BETWEEN)
        found += _plain(backend, text)
    return found + _file(backend, marks, FILE if given.file is None else given.file)


def _file(backend: Vocabulary, marks: InfillTokens, name: str) -> list[int]:
    return [] if marks.file is None else [marks.file, *_plain(backend, f"{name}\n")]


def _plain(backend: Vocabulary, text: str) -> list[int]:
    return backend.tokenize(text, add_special=False) if text else []
