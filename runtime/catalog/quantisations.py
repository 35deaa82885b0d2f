"""Which files of a repository are the model of a tag, as llama.cpp's ``-hf`` chooses. Pure.

A tag is searched in the paths of the GGUF files, before a ``.`` or ``-``; the first that has it is
the model, with all its parts. A name that has it as a word of its own goes first, so that ``F16``
is not found in ``BF16``. Without a tag: Q4_K_M, then Q8_0, then the first file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from runtime.catalog.files import PART, SUFFIX
from runtime.catalog.names import stem_of

USUAL: Final = ("Q4_K_M", "Q8_0")
"""Tags that are looked for where none is given."""
FILE_TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
    40: "Q1_0", 41: "Q2_0",
}  # fmt: skip
"""The quantisation that ``general.file_type`` of a GGUF header means (``enum llama_ftype``)."""
_NO_MODEL: Final = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
"""In names of files that go with a model and are none."""
_TAG: Final = re.compile(r"[-.]([A-Z0-9_]+)$", re.I)


def chosen(paths: Sequence[str], tag: str = "") -> tuple[str, ...]:
    """The files of the model, its first part first; empty where the tag finds none.

    A part that the repository does not have is missing in what is returned.
    """
    models = [one for one in paths if _is_first_of_model(one)]
    first = next(_found(models, tag), None)
    return () if first is None else tuple(_with_parts(first, paths))


def tag_of(path: str) -> str:
    """The word that names a file's quantisation, else its whole name."""
    stem = stem_of(path)
    found = _TAG.search(stem)
    return found[1].upper() if found else stem


def tags_in(paths: Sequence[str]) -> list[str]:
    """The tags that a repository has, each once."""
    return list(dict.fromkeys(tag_of(one) for one in paths if _is_first_of_model(one)))


def part_count(path: str) -> int:
    """The files that a model has by the name of one."""
    part = _part(path)
    return 1 if part is None else int(part["count"])


def _found(models: Sequence[str], tag: str) -> Iterator[str]:
    if tag.endswith(SUFFIX):
        yield from (one for one in models if tag in (one, one.rpartition("/")[2]))
        return
    for wanted in (tag,) if tag else USUAL:
        for before in (r"(^|[-._/])", ""):
            pattern = re.compile(before + re.escape(wanted) + "[.-]", re.I)
            yield from (one for one in models if pattern.search(one))
    if not tag:
        yield from models


def _with_parts(first: str, paths: Sequence[str]) -> list[str]:
    part = _part(first)
    if part is None:
        return [first]
    same = f"{first[: -len(SUFFIX) - len('00001-of-00001')]}"
    count = part["count"]
    wanted = [f"{same}{n:05}-of-{count}{SUFFIX}" for n in range(1, int(count) + 1)]
    return [one for one in wanted if one in set(paths)]


def _is_first_of_model(path: str) -> bool:
    name = path.rpartition("/")[2]
    if not name.endswith(SUFFIX) or any(word in name for word in _NO_MODEL):
        return False
    part = _part(path)
    return part is None or int(part["number"]) == 1


def _part(path: str) -> re.Match[str] | None:
    return PART.fullmatch(path.rpartition("/")[2].removesuffix(SUFFIX))
