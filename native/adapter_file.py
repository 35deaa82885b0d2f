"""A LoRA adapter's file, checked before llama.cpp reads it.

llama.cpp asserts, and so ends the process, on metadata of the wrong type and, when it first
computes, on matrices that do not fit together. What it needs, found in its adapter loader:
``general.type`` = "adapter", ``adapter.type`` = "lora", the model's architecture, a float32
``adapter.lora.alpha``; tensors in pairs ``<name>.lora_a`` (n_in, rank) and ``<name>.lora_b``
(rank, n_out) for a weight (n_in, n_out) of the model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from native.errors import AdapterRefused, ModelNotFound
from native.file_kind import why_no_adapter
from native.fingerprint import Fingerprints
from native.gguf_header import GgufSummary, TensorFacts, check_gguf

_STRING, _FLOAT32 = 8, 6
_NVFP4 = 40
_INTEGERS = (24, 25, 26, 27, 28)  # I8 to I64, F64: no matrix products
_MAX_DIMS = 4


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """A file that was checked, and its identity at that time."""

    path: str
    fingerprint: bytes
    """BLAKE3 of its content."""
    n_bytes: int
    stamp: tuple[int, ...]

    def check_unchanged(self) -> None:
        """``AdapterRefused`` if the file is not the one that was fingerprinted."""
        if _stamp(self.path) != self.stamp:
            raise AdapterRefused(self.path, "it changed while it was loaded")


def check_adapter(path: str | Path, model: Sequence[GgufSummary]) -> AdapterFile:
    """Check the file against the headers of the model's files, and fingerprint it.

    Raises ``ModelFileError``: not found, not GGUF, truncated, or ``AdapterRefused``.
    """
    stamp = _stamp(path)
    header = check_gguf(path)
    why = why_no_adapter(header)
    if why:
        raise AdapterRefused(path, why)
    _check_metadata(path, header, model[0].architecture)
    _check_tensors(path, header, {n: t for file in model for n, t in file.tensors.items()})
    digest = Fingerprints().of([Path(path)])
    checked = AdapterFile(str(path), digest, header.file_bytes, stamp)
    checked.check_unchanged()
    return checked


def _stamp(path: str | Path) -> tuple[int, ...]:
    try:
        facts = os.stat(path)
    except (OSError, ValueError) as error:
        raise ModelNotFound(path, f"cannot be read: {error}") from error
    return (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, facts.st_dev)


def _check_metadata(path: str | Path, header: GgufSummary, architecture: str) -> None:
    wanted = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "general.architecture": architecture,
    }
    for key, value in wanted.items():
        if header.kinds.get(key) != _STRING or header.metadata.get(key) != value:
            found = header.metadata.get(key)
            raise AdapterRefused(path, f"its {key} is {found!r}, not {value!r}")
    if header.kinds.get("adapter.lora.alpha", _FLOAT32) != _FLOAT32:
        raise AdapterRefused(path, "its adapter.lora.alpha is no 32-bit number")
    if "adapter.alora.invocation_tokens" in header.kinds:
        raise AdapterRefused(path, "it is an activated LoRA (aLoRA), which is not supported")


def _check_tensors(path: str | Path, header: GgufSummary, weights: dict[str, TensorFacts]) -> None:
    pairs: dict[str, dict[str, TensorFacts]] = {}
    for name, tensor in header.tensors.items():
        base, _, kind = name.rpartition(".")
        if kind in ("lora_a", "lora_b"):
            pairs.setdefault(base, {})[kind] = tensor
        elif not name.endswith("_norm.weight"):  # which llama.cpp skips
            raise AdapterRefused(path, f"its tensor {name!r} is neither lora_a nor lora_b")
    if not pairs:
        raise AdapterRefused(path, "it has no LoRA tensors")
    for base, pair in pairs.items():
        if len(pair) != 2:
            raise AdapterRefused(path, f"one of the two matrices for {base!r} is missing")
        weight = weights.get(base)
        if weight is None:
            raise AdapterRefused(path, f"the model has no tensor {base!r}")
        why = _why_not(base, pair["lora_a"], pair["lora_b"], weight, weights)
        if why:
            raise AdapterRefused(path, f"its matrices for {base!r} {why}")


def _why_not(
    base: str,
    a: TensorFacts,
    b: TensorFacts,
    weight: TensorFacts,
    weights: dict[str, TensorFacts],
) -> str:
    """Why the matrices do not fit, as the end of a sentence; empty if they do."""
    if a.kind in _INTEGERS or b.kind in _INTEGERS:
        return "have a type that cannot be multiplied"
    if weight.kind == _NVFP4:
        return "are for a weight in NVFP4, to which none can be applied"
    of_a, of_b, of_weight = _padded(a.dims), _padded(b.dims), _padded(weight.dims)
    if base == "token_embd.weight":  # looked up by row, so both are the other way round
        fits = of_weight[:2] == (of_b[1], of_a[1]) and of_a[0] == of_b[0]
        if "output.weight" not in weights:
            return "change the embeddings, which are also the output of this model"
    else:
        fits = of_weight[:2] == (of_a[0], of_b[1]) and of_a[1] == of_b[0]
    same_rest = of_a[2:] == of_b[2:] == of_weight[2:]
    if not fits or not same_rest or 0 in (*of_a, *of_b):
        return f"have the shapes {a.dims} and {b.dims}, which do not fit {weight.dims}"
    return ""


def _padded(dims: tuple[int, ...]) -> tuple[int, ...]:
    return (*dims, *(1,) * (_MAX_DIMS - len(dims)))
