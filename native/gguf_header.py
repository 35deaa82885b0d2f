"""Checks a GGUF file in plain Python before llama.cpp reads it.

A missing, foreign, damaged or half-copied file gets its own name here instead of a line in a log
or an aborted process. Nothing is allocated by a number read from the file: the file is mapped and
walked, so time and memory are bounded by its real size.

Layout (version 2 and 3, little endian), from the GGUF specification:
``"GGUF" · version u32 · n_tensors u64 · n_kv u64 · n_kv times (key, type u32, value) ·
n_tensors times (name, n_dims u32, dims u64 …, type u32, offset u64) · padding · tensor data``.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from native._ggml_types import BLOCKS
from native.errors import ModelNotFound, NotAGguf, TruncatedGguf

_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4  # GGML_MAX_DIMS
_MAX_NAME = 65_535  # the specification's limit for keys
_KEPT_TEXT = 4096  # longer strings (chat templates) are walked over, not kept
_SMALLEST_HEADER = 24
_KEPT_NUMBERS = 4096  # of an array: one for each layer, at most; vocabularies are walked over
_MAX_TENSORS = 1 << 16  # several times more than any model has


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One tensor: dimensions as GGUF writes them, fastest first, its ggml type, its bytes.

    ``offset`` counts from the start of the data.
    """

    dims: tuple[int, ...]
    kind: int
    n_bytes: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class GgufSummary:
    """The content of a header.

    ``metadata`` holds numbers, flags and short texts, ``kinds`` their GGUF types; ``arrays`` holds
    short arrays of numbers, ``tensors`` the table of tensors by name.
    """

    path: str
    version: int
    n_tensors: int
    data_offset: int
    file_bytes: int
    metadata: dict[str, int | float | bool | str] = field(repr=False)
    kinds: dict[str, int] = field(repr=False, default_factory=dict)
    arrays: dict[str, tuple[int | float | bool, ...]] = field(repr=False, default_factory=dict)
    tensors: dict[str, TensorFacts] = field(repr=False, default_factory=dict)

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def n_splits(self) -> int:
        """Files the model consists of; 1 when it is not split."""
        count = self.metadata.get("split.count", 1)
        return max(count, 1) if isinstance(count, int) else 1


def check_gguf(path: str | Path) -> GgufSummary:
    """Read the header of ``path``; raises a ``ModelFileError`` that names the fault."""
    descriptor = _open(path)
    try:
        size = os.fstat(descriptor).st_size
        if size < _SMALLEST_HEADER:
            raise NotAGguf(path, f"{size} bytes are too few for a GGUF header")
        with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as mapped:
            return _read(path, mapped, size)
    except OSError as error:
        raise ModelNotFound(path, f"cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def first_metadata(path: str | Path) -> dict[str, int | float | bool | str]:
    """The values of a header that are about the model: all before the first of its vocabulary.

    For lists of many files: the rest of a header, which is most of it, is not read. Raises a
    ``ModelFileError`` for what is no GGUF file.
    """
    descriptor = _open(path)
    try:
        size = os.fstat(descriptor).st_size
        if size < _SMALLEST_HEADER:
            raise NotAGguf(path, f"{size} bytes are too few for a GGUF header")
        with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as mapped:
            walk = _Walk(path, mapped, size)
            _read_version(walk)
            _, n_kv = walk.count(), walk.count()
            return dict(_first_values(walk, n_kv))
    except OSError as error:
        raise ModelNotFound(path, f"cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _first_values(walk: _Walk, n_kv: int) -> Iterator[tuple[str, int | float | bool | str]]:
    for _ in range(n_kv):
        key, kind = walk.name("key"), walk.count("I")
        if key.startswith("tokenizer."):
            return
        value = _value(walk, kind)
        if value is not None and not isinstance(value, tuple):
            yield key, value


def all_splits(path: str | Path, summary: GgufSummary) -> list[Path]:
    """Return the files of the model in order, or raise ``ModelNotFound`` for a missing one."""
    n = summary.n_splits
    if n == 1:
        return [Path(path)]
    match = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", Path(path).name)
    if match is None or int(match[3]) != n or int(match[2]) != 1:
        raise NotAGguf(path, f"one of {n} splits; load the file named …-00001-of-{n:05d}.gguf")
    files = [Path(path).with_name(f"{match[1]}-{i:05d}-of-{n:05d}.gguf") for i in range(1, n + 1)]
    for file in files[1:]:
        check_gguf(file)
    return files


def _open(path: str | Path) -> int:
    try:
        # Not blocking: opening a named pipe must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelNotFound(path, f"cannot be opened: {reason}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelNotFound(path, "is not a regular file")
    return descriptor


class _Walk:
    """A position in the mapped file; leaving the file means the file is too short."""

    def __init__(self, path: str | Path, data: mmap.mmap, size: int) -> None:
        self.path = path
        self.data = data
        self.size = size
        self.at = 0

    def skip(self, n: int) -> None:
        if n > self.size - self.at:
            raise TruncatedGguf(self.path, self.at + n, self.size)
        self.at += n

    def number(self, code: str) -> int | float | bool:
        start = self.at
        self.skip(struct.calcsize("<" + code))
        value: int | float | bool = struct.unpack_from("<" + code, self.data, start)[0]
        return value

    def count(self, code: str = "Q") -> int:
        return int(self.number(code))

    def text(self, limit: int) -> str | None:
        """Read a string; None when it is longer than ``limit`` bytes, which is then skipped."""
        length = self.count()
        start = self.at
        self.skip(length)
        if length > limit:
            return None
        return self.data[start : self.at].decode("utf-8", errors="replace")

    def name(self, what: str) -> str:
        name = self.text(_MAX_NAME)
        if name is None:
            raise NotAGguf(self.path, f"the name of a {what} is longer than {_MAX_NAME} bytes")
        return name


def _read(path: str | Path, data: mmap.mmap, size: int) -> GgufSummary:
    walk = _Walk(path, data, size)
    version = _read_version(walk)
    n_tensors, n_kv = walk.count(), walk.count()
    metadata: dict[str, int | float | bool | str] = {}
    kinds: dict[str, int] = {}
    arrays: dict[str, tuple[int | float | bool, ...]] = {}
    for _ in range(n_kv):
        key, kind = walk.name("key"), walk.count("I")
        kinds[key] = kind
        value = _value(walk, kind)
        if isinstance(value, tuple):
            arrays[key] = value
        elif value is not None:
            metadata[key] = value
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise NotAGguf(path, f"has an alignment of {alignment!r}, which is no power of two")
    if n_tensors > _MAX_TENSORS:
        raise NotAGguf(path, f"announces {n_tensors} tensors; no model has that many")
    needed = 0
    tensors: dict[str, TensorFacts] = {}
    for _ in range(n_tensors):
        needed = max(needed, _read_tensor(walk, alignment, tensors))
    data_offset = -(-walk.at // alignment) * alignment
    if needed and data_offset + needed > size:
        raise TruncatedGguf(path, data_offset + needed, size)
    return GgufSummary(
        str(path), version, n_tensors, data_offset, size, metadata, kinds, arrays, tensors
    )


def _read_version(walk: _Walk) -> int:
    magic = walk.data[:4]
    walk.skip(4)
    if magic != b"GGUF":
        raise NotAGguf(walk.path, f"starts with {magic!r}, not with b'GGUF'")
    version = walk.count("I")
    if version not in {2, 3}:
        raise NotAGguf(walk.path, f"is GGUF version {version}; versions 2 and 3 are supported")
    return version


def _value(
    walk: _Walk, kind: int
) -> int | float | bool | str | tuple[int | float | bool, ...] | None:
    if kind in _SCALARS:
        return walk.number(_SCALARS[kind])
    if kind == _STRING:
        return walk.text(_KEPT_TEXT)
    if kind == _ARRAY:
        return _array(walk)
    raise NotAGguf(walk.path, f"has a value of the unknown type {kind}")


def _array(walk: _Walk) -> tuple[int | float | bool, ...] | None:
    """The numbers of a short array; others are skipped."""
    kind, length = walk.count("I"), walk.count()
    if kind in _SCALARS:
        start, code = walk.at, _SCALARS[kind]
        walk.skip(length * struct.calcsize("<" + code))
        if length <= _KEPT_NUMBERS:
            return struct.unpack_from(f"<{length}{code}", walk.data, start)
    elif kind == _STRING:
        for _ in range(length):
            walk.skip(walk.count())
    else:
        raise NotAGguf(walk.path, f"has an array of the unsupported type {kind}")
    return None


def _read_tensor(walk: _Walk, alignment: int, tensors: dict[str, TensorFacts]) -> int:
    """Record one tensor description; return where its data ends, from the start of the data."""
    name = walk.name("tensor")
    n_dims = walk.count("I")
    if n_dims > _MAX_DIMS:
        raise NotAGguf(walk.path, f"tensor {name!r} has {n_dims} dimensions")
    dims = tuple(walk.count() for _ in range(n_dims))
    elements = math.prod(dims)
    kind, offset = walk.count("I"), walk.count()
    if kind not in BLOCKS:
        raise NotAGguf(walk.path, f"tensor {name!r} has the unknown type {kind}")
    if offset % alignment:
        raise NotAGguf(walk.path, f"tensor {name!r} is not aligned to {alignment} bytes")
    per_block, block_bytes = BLOCKS[kind]
    n_bytes = -(-elements // per_block) * block_bytes
    tensors[name] = TensorFacts(dims, kind, n_bytes, offset)
    return offset + n_bytes
