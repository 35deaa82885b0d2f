"""What a list of models shows of a file: its quantisation and its kind, by the header alone."""

from __future__ import annotations

from pathlib import Path

from native.errors import ModelFileError
from native.gguf_header import first_metadata
from runtime.catalog.quantisations import FILE_TYPES
from supervision.frozen import frozen


@frozen
class Header:
    """Of a GGUF file; empty texts where it has no such value, or cannot be read."""

    quantisation: str = ""
    architecture: str = ""
    trouble: str = ""
    """Why it cannot be read."""


def header_of(path: Path) -> Header:
    """The header of a model, as far as a list shows it."""
    try:
        found = first_metadata(path)
    except ModelFileError as error:
        return Header(trouble=str(error))
    kind = found.get("general.file_type")
    named = FILE_TYPES.get(kind & ~_GUESSED, f"type {kind}") if isinstance(kind, int) else ""
    return Header(named, str(found.get("general.architecture", "")))


_GUESSED = 1024
"""Set by llama.cpp where it guessed the type."""
