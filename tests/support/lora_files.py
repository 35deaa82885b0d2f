"""Write LoRA adapters for the models of ``gguf_files``: real files for llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

from tests.support.gguf_files import TINY, Shape

RANK = 4


def tiny_lora(path: Path, *, seed: int = 1, shape: Shape = TINY, **changes: Any) -> Path:
    """An adapter of every attention matrix of ``shape``, strong enough to change the reply.

    ``changes``: ``alpha``, ``general_type``, ``adapter_type``, ``arch``, ``tensors`` (name → pair
    of arrays, in place of the usual ones); a value of another type is written as it is.
    """
    writer = GGUFWriter(path, changes.get("arch", shape.arch))
    writer.add_type(changes.get("general_type", "adapter"))
    adapter_type = changes.get("adapter_type", "lora")
    if isinstance(adapter_type, str):
        writer.add_string("adapter.type", adapter_type)
    else:
        writer.add_uint32("adapter.type", adapter_type)
    alpha = changes.get("alpha", 8.0)
    if isinstance(alpha, int):
        writer.add_uint32("adapter.lora.alpha", alpha)
    else:
        writer.add_float32("adapter.lora.alpha", alpha)
    for name, array in (changes.get("tensors") or _tensors(shape, seed)).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(shape: Shape, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    embd, kv = shape.n_embd, shape.n_kv * shape.n_embd // shape.n_head
    for layer in range(shape.n_layer):
        for matrix, rows in (("attn_q", embd), ("attn_v", kv), ("attn_output", embd)):
            tensors |= lora_pair(f"blk.{layer}.{matrix}.weight", embd, rows, rng)
    return tensors


def lora_pair(
    weight: str, n_in: int, n_out: int, rng: np.random.Generator, rank: int = RANK
) -> dict[str, np.ndarray[Any, Any]]:
    """The two matrices for one weight."""
    return {
        f"{weight}.lora_a": rng.standard_normal((rank, n_in), dtype=np.float32) * 0.2,
        f"{weight}.lora_b": rng.standard_normal((n_out, rank), dtype=np.float32) * 0.2,
    }
