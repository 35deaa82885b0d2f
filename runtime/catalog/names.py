"""Names of models as users write them, and the ids that a node gives them. Pure.

A model of a hub is ``org/repo``, with the tag of its quantisation behind a colon: a word in the
name of its file, or that whole name. ``hf.co/`` and a whole address before it mean the same.
"""

from __future__ import annotations

import re
from typing import Final

from runtime.catalog.files import PART, SUFFIX
from supervision.frozen import frozen

HOSTS: Final = ("hf.co/", "www.hf.co/", "huggingface.co/", "www.huggingface.co/")
LATEST: Final = "latest"
"""The tag that Ollama's users write for none."""
MAX_ID: Final = 64
_WORD: Final = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HUB: Final = re.compile(rf"(?P<repo>{_WORD}/{_WORD})(?::(?P<tag>{_WORD}))?")
_ODD: Final = re.compile(r"[^A-Za-z0-9._-]+")
_SCHEME: Final = re.compile(r"https?://", re.I)


@frozen
class HubName:
    """A model of a hub; without a tag the usual quantisation is meant."""

    repo: str
    """``org/repo``."""
    tag: str = ""

    def __str__(self) -> str:
        return f"{self.repo}:{self.tag}" if self.tag else self.repo


def hub_name(text: str) -> HubName | None:
    """The model of a hub that the text names; None where it has another form."""
    plain = _SCHEME.sub("", text.strip()).rstrip("/")
    is_address = plain != text
    for host in HOSTS:
        if plain.lower().startswith(host):
            plain, is_address = plain[len(host) :], True
    found = _HUB.fullmatch(plain)
    if found is None or (found["repo"].endswith(SUFFIX) and not is_address):
        return None
    tag = found["tag"] or ""
    return HubName(found["repo"], "" if tag.lower() == LATEST else tag)


def stem_of(file_name: str) -> str:
    """The name of a model's file without its folder, its ending and its part."""
    stem = file_name.rpartition("/")[2].removesuffix(SUFFIX)
    part = PART.fullmatch(stem)
    return stem if part is None else part["stem"]


def model_id(name: str) -> str:
    """An id that a node takes, as like the name as possible."""
    plain = _ODD.sub("-", name.removesuffix(f":{LATEST}")).strip("-._")
    return plain[:MAX_ID].rstrip("-._") or "model"


def id_beside(model: str, path: str) -> str:
    """Another id for a file where ``model`` is the id of another file; the same at each call."""
    from hashlib import blake2b

    mark = blake2b(path.encode("utf-8", "surrogateescape"), digest_size=3).hexdigest()
    return f"{model[: MAX_ID - len(mark) - 1]}-{mark}"
