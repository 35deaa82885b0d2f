"""The embedded model: a small storyteller that this project trains itself, kept as package data.

The recipe that trains it is ``examples/train_demo_model``, which is not part of the package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

EMBEDDED_MODEL_ID: Final = "demo"


def path() -> Path:
    """The GGUF of the embedded model."""
    return Path(__file__).with_name("demo.gguf")
