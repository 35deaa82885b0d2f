"""Models that Ollama has fetched, to be read where they lie.

``manifests/HOST/NAMESPACE/MODEL/TAG`` is JSON that lists layers by media type and digest; a layer
is the file ``blobs/sha256-…``. The layer of the model is a GGUF file, with no ending. Nothing here
writes. What cannot be read, or is no manifest, is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from runtime.catalog.names import LATEST
from supervision.frozen import frozen

MODEL_LAYER: Final = "application/vnd.ollama.image.model"
_USUAL_HOST: Final = "registry.ollama.ai"
_USUAL_NAMESPACE: Final = "library"
_DIGEST: Final = re.compile(r"sha256[:-]([0-9a-f]{64})")
_MAX_MANIFEST: Final = 1 << 20


@frozen
class OllamaModel:
    """A model in Ollama's store."""

    name: str
    """As Ollama lists it, with its tag."""
    path: Path
    """Of its GGUF file; a file below ``blobs``."""
    n_bytes: int
    mtime: float
    digest: str
    """SHA-256 of the file, as 64 hexadecimal digits."""


def models_of(root: Path) -> list[OllamaModel]:
    """The models below a folder of Ollama's, by their names; none where it is not there."""
    found = (_read(root, path) for path in _manifests(root / "manifests"))
    return sorted((one for one in found if one is not None), key=lambda one: one.name)


def _manifests(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(one for one in folder.glob("*/*/*/*") if one.is_file())
    except OSError:
        return


def _read(root: Path, manifest: Path) -> OllamaModel | None:
    try:
        if manifest.stat().st_size > _MAX_MANIFEST:
            return None
        digest = _digest(json.loads(manifest.read_bytes()))
        if digest is None:
            return None
        blob = root / "blobs" / f"sha256-{digest}"
        facts = blob.stat()
    except (OSError, ValueError, RecursionError):
        return None
    return OllamaModel(_name(manifest), blob, facts.st_size, facts.st_mtime, digest)


def _digest(manifest: Any) -> str | None:
    """Of the one layer that is the model; None for a manifest without one, or with several."""
    layers = manifest.get("layers") if isinstance(manifest, dict) else None
    if not isinstance(layers, list):
        return None
    models = [
        one for one in layers if isinstance(one, dict) and one.get("mediaType") == MODEL_LAYER
    ]
    if len(models) != 1:
        return None
    found = _DIGEST.fullmatch(str(models[0].get("digest")))
    return None if found is None else found[1]


def _name(manifest: Path) -> str:
    """As Ollama writes it: what is usual is left out, the tag is not."""
    host, namespace, model, tag = manifest.parts[-4:]
    before = "" if host == _USUAL_HOST else f"{host}/"
    if before or namespace != _USUAL_NAMESPACE:
        before += f"{namespace}/"
    return f"{before}{model}:{tag}"


def is_meant(name: str, asked: str) -> bool:
    """Whether a user's word means a model of this name."""
    return asked.lower() in (name.lower(), name.lower().removesuffix(f":{LATEST}"))
