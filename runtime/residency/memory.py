"""What models take: expected from their files, measured of their processes, and what is free."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from actors.messages import LoadModel
from native.errors import NativeError
from native.estimate import Room, estimate, settle_n_ctx
from native.gguf_header import GgufSummary
from native.overrides import model_headers
from native.params import ModelParams
from native.system_memory import available_memory

LEAST_CTX: Final = 4096
"""Cells for which there must be room where ``n_ctx`` is 0; more are taken where they fit."""
_GPUS: Final = (("dev", "nvidia[0-9]*"), ("dev", "kfd"))
MAX_KEPT: Final = 1024
"""Measurements that are kept; the oldest go first."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Memory of a process, in bytes."""

    own: int
    """Its own pages, without shared memory."""
    mapped: int
    """Pages of files, as of weights: the kernel counts them as free, and the model needs them."""
    device: int = 0
    """On GPUs, as the process reports it."""

    @property
    def host(self) -> int:
        return self.own + self.mapped

    @property
    def total(self) -> int:
        return self.host + self.device


@dataclass(frozen=True, slots=True)
class Need:
    """What a model is expected to take, in bytes."""

    n_bytes: int = 0
    host_bytes: int = 0
    headers: tuple[GgufSummary, ...] = ()
    """Of its files; empty where they cannot be read, which loading it will report."""
    is_upper_bound: bool = False


def has_gpu(root: Path = Path("/")) -> bool:
    """Whether this machine seems to have a GPU that llama.cpp can use."""
    return any(any((root / folder).glob(name)) for folder, name in _GPUS)


def need_of(spec: LoadModel, *, on_gpu: bool) -> Need:
    """What loading it will take, by the headers of its files."""
    if spec.backend != "llama":
        return Need()
    try:
        headers = tuple(model_headers(spec.path, spec.params.metadata_overrides))
        params = spec.params
        if not params.n_ctx:
            most = settle_n_ctx(headers, params, Room()).n_ctx
            params = params.with_n_ctx(min(most, LEAST_CTX))
        found = estimate(headers, params, has_gpu=on_gpu)
    except (NativeError, OSError):
        return Need()
    return Need(found.total, found.host.total, headers, found.is_upper_bound)


def settled(params: ModelParams, headers: Sequence[GgufSummary], room: int | None) -> ModelParams:
    """The same with a context that fits into ``room`` bytes, where ``n_ctx`` is 0."""
    if params.n_ctx or not headers or room is None:
        return params
    found = settle_n_ctx(headers, params, Room(room))
    trained = settle_n_ctx(headers, params, Room()).n_ctx
    return found.with_n_ctx(max(found.n_ctx, min(LEAST_CTX, trained)))


def taken_by(pid: int) -> Taken | None:
    """What a process takes now; None if it is gone."""
    facts: dict[str, int] = {}
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            key, _, rest = line.partition(":")
            if key in ("RssAnon", "RssFile"):
                facts[key] = int(rest.split()[0]) << 10
    except (OSError, ValueError, IndexError):
        return None
    return Taken(facts.get("RssAnon", 0), facts.get("RssFile", 0))


def room_without(residents: Sequence[Taken]) -> int | None:
    """Host memory that would be free were these not loaded; None: not known.

    Their mapped pages count as free already.
    """
    free = available_memory()
    return None if free is None else free + sum(one.own for one in residents)


class Measured:
    """What models took when they ran, by file and options; kept in a file where there is one."""

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path)
        self._kept: dict[str, tuple[int, int, int]] = {}
        if self._path is not None:
            with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
                plain = json.loads(self._path.read_text(encoding="utf-8"))
                self._kept = {str(key): tuple(map(int, one)) for key, one in plain.items()}  # type: ignore[misc]

    def get(self, spec: LoadModel) -> Taken | None:
        """What it took when it was measured last."""
        found = self._kept.get(_key(spec) or "")
        return None if found is None or len(found) != 3 else Taken(*found)

    def note(self, spec: LoadModel, taken: Taken) -> None:
        """It takes this now."""
        key = _key(spec)
        if key is None or self._kept.get(key) == (taken.own, taken.mapped, taken.device):
            return
        self._kept.pop(key, None)
        self._kept[key] = (taken.own, taken.mapped, taken.device)
        while len(self._kept) > MAX_KEPT:
            self._kept.pop(next(iter(self._kept)))
        if self._path is not None:
            with contextlib.suppress(OSError):  # it is measured again next time
                temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
                temporary.write_text(json.dumps(self._kept), encoding="utf-8")
                temporary.replace(self._path)


def _key(spec: LoadModel) -> str | None:
    """The same for the same files and the same options that cost memory; None: no file."""
    try:
        found = os.stat(spec.path)
    except (OSError, ValueError):
        return None
    params = replace(spec.params, n_threads=None, n_threads_batch=None)
    return f"{spec.path}|{found.st_size}|{found.st_mtime_ns}|{params!r}"


def file_bytes(path: str) -> int:
    """The size of a file; 0 where there is none."""
    try:
        return os.path.getsize(path)
    except (OSError, ValueError):
        return 0
