"""Control vectors: read from GGUF files, checked, and added up to what llama.cpp applies.

A file holds a tensor ``direction.N`` for each layer N from 1 on: as many float32 numbers as the
model's embeddings have, which are added to what that layer computes. Several files are added up,
each times its scale; the sums are those of llama.cpp's own loader, in float32.
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from native.errors import ControlVectorRefused, ModelNotFound
from native.file_kind import why_no_control_vector
from native.gguf_header import GgufSummary, check_gguf
from native.model_params import Adapter

_FLOAT32 = 0
_DIRECTION = re.compile(r"direction\.([0-9]{1,4})")
_MAX_BYTES = 1 << 30  # several times the directions of the largest model


@dataclass(frozen=True, slots=True)
class ControlVector:
    """What is added to layers 1 to n_layer - 1: ``n_embd`` numbers each, one after the other."""

    numbers: array[float]
    n_embd: int
    identity: str
    """Digest of the numbers: those of another file, scale or range of layers have another."""


def read_control_vectors(
    given: Iterable[Adapter], layers: tuple[int, int] | None, n_embd: int, n_layer: int
) -> ControlVector | None:
    """Add up the files, times their scales, in the layers from the first to the last of ``layers``.

    None when that changes nothing. Raises ``ModelFileError``: not found, not GGUF, truncated, or
    ``ControlVectorRefused``.
    """
    first, last = layers or (1, n_layer - 1)
    sums = array("f", bytes(4 * n_embd * max(0, n_layer - 1)))
    for path, scale in given:
        factor = array("f", (scale,))[0]
        for layer, numbers in _directions(path, n_embd, n_layer):
            if first <= layer <= last:
                scaled = array("f", (number * factor for number in numbers))
                for at, number in enumerate(scaled, (layer - 1) * n_embd):
                    sums[at] += number
        if not all(map(_is_number, sums)):
            raise ControlVectorRefused(path, f"times {scale:g} its numbers are not finite")
    if not any(sums):
        return None
    head = struct.pack("<II", n_embd, n_layer)
    return ControlVector(sums, n_embd, blake3(head + sums.tobytes()).hexdigest())


def _directions(path: str, n_embd: int, n_layer: int) -> Iterable[tuple[int, array[float]]]:
    """(layer, numbers) of each direction of a file."""
    header = check_gguf(path)
    why = why_no_control_vector(header) or _why_not(header, n_embd, n_layer)
    if why:
        raise ControlVectorRefused(path, why)
    try:
        with Path(path).open("rb") as file:
            for name, tensor in header.tensors.items():
                file.seek(header.data_offset + tensor.offset)
                numbers = array("f", file.read(tensor.n_bytes))
                if len(numbers) != n_embd:
                    raise ControlVectorRefused(path, "it changed while it was read")
                if not all(map(_is_number, numbers)):
                    raise ControlVectorRefused(path, f"its {name} has numbers that are not finite")
                yield _layer(name), numbers
    except OSError as error:
        raise ModelNotFound(path, f"cannot be read: {error.strerror}") from error


def _why_not(header: GgufSummary, n_embd: int, n_layer: int) -> str:
    """Why the file does not fit the model, as a sentence; empty if it does."""
    if not header.tensors:
        return "it has no directions"
    if sum(tensor.n_bytes for tensor in header.tensors.values()) > _MAX_BYTES:
        return f"its directions are more than {_MAX_BYTES >> 20} MiB"
    for name, tensor in header.tensors.items():
        layer = _layer(name)
        if layer < 1:
            return f"its tensor {name!r} is no direction of a layer from 1 on"
        if layer >= n_layer:
            return f"its {name} is for a layer that the model does not have: it has {n_layer}"
        if tensor.kind != _FLOAT32:
            return f"its {name} is not of float32 numbers"
        if tensor.dims != (n_embd,):
            shape = " by ".join(map(str, tensor.dims))
            return f"its {name} has {shape} numbers, and the model's embeddings have {n_embd}"
    return ""


def _layer(name: str) -> int:
    match = _DIRECTION.fullmatch(name)
    return int(match[1]) if match else 0


def _is_number(number: float) -> bool:
    return number - number == 0.0
