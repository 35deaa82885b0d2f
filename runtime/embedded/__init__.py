"""The embedded model: a small storyteller that this project trains itself, kept as package data.

Only the path lives here; the recipe (``python -m runtime.embedded.train``) needs the ``train``
extra, the corpus (:mod:`runtime.embedded.corpus`) needs nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

EMBEDDED_MODEL_ID: Final = "demo"


def path() -> Path:
    """The GGUF of the embedded model."""
    return Path(__file__).with_name("demo.gguf")
