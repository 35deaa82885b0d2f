"""Write control vectors: real files, as published tools write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

Directions = Mapping[int, np.ndarray[Any, Any]]


def directions(n_embd: int, layers: range, *, seed: int = 1, size: float = 1.0) -> Directions:
    """Random numbers for each layer."""
    rng = np.random.default_rng(seed)
    return {one: rng.standard_normal(n_embd, dtype=np.float32) * size for one in layers}


def write_control_vector(
    path: Path, given: Directions, *, arch: str = "controlvector", names: str = "direction.{}"
) -> Path:
    writer = GGUFWriter(path, arch)
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(given))
    for layer, numbers in given.items():
        writer.add_tensor(names.format(layer), numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
