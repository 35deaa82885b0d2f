"""llama.cpp behind one protocol: the only code of the project that can crash a process.

Importing this package loads no native code. Actors are forked from a process that has imported
everything; libllama, with its threads and its process-wide log, must be loaded only in the process
of one model. ``load_backend`` loads it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from native.errors import (
    AdapterRefused,
    BackendClosed,
    ContextCreateFailed,
    ControlVectorRefused,
    DecodeAborted,
    DecodeFailed,
    InvalidParam,
    InvalidToken,
    ModelFileError,
    ModelLoadFailed,
    ModelNotFound,
    NativeError,
    NoKvSpace,
    NotAGguf,
    NotAModel,
    NotEnoughMemory,
    NoTokenLeft,
    NotSupported,
    PromptTooLong,
    StateRefused,
    TextTooLong,
    TruncatedGguf,
)

if TYPE_CHECKING:
    from native.adapters import LoadedAdapter
    from native.backend import Backend, Batch, Embedder, Logprobs, MemoryUse, ModelInfo, Sampler
    from native.fingerprint import Fingerprints
    from native.params import ModelParams, SamplingParams

BackendKind = Literal["llama", "stub"]


def load_backend(
    kind: BackendKind,
    path: str | Path,
    params: ModelParams,
    progress: Callable[[float], None] | None = None,
    fingerprints: Fingerprints | None = None,
    memory_available: int | None = None,
) -> Backend:
    """Load ``path`` and return a backend ready to decode.

    ``progress`` is called with fractions from 0 to 1 while llama.cpp loads; ``fingerprints``
    identifies the file, and may cache its digest; ``memory_available`` is the most bytes to take.
    Raises ``ModelFileError`` for the file, ``ContextCreateFailed`` for the parameters, and
    ``NotEnoughMemory`` before anything is loaded. The stub ignores the content of the file.
    """
    if kind == "llama":
        from native.llama import LlamaBackend

        return LlamaBackend.load(
            path,
            params,
            progress=progress,
            fingerprints=fingerprints,
            memory_available=memory_available,
        )
    if kind == "stub":
        from native.stub import StubBackend

        return StubBackend.load(path, params, progress=progress)
    raise InvalidParam("kind", kind, "'llama' or 'stub'")


__all__ = [
    "AdapterRefused",
    "Backend",
    "BackendClosed",
    "BackendKind",
    "Batch",
    "ContextCreateFailed",
    "ControlVectorRefused",
    "DecodeAborted",
    "DecodeFailed",
    "Embedder",
    "Fingerprints",
    "InvalidParam",
    "InvalidToken",
    "LoadedAdapter",
    "Logprobs",
    "MemoryUse",
    "ModelFileError",
    "ModelInfo",
    "ModelLoadFailed",
    "ModelNotFound",
    "ModelParams",
    "NativeError",
    "NoKvSpace",
    "NoTokenLeft",
    "NotAGguf",
    "NotAModel",
    "NotEnoughMemory",
    "NotSupported",
    "PromptTooLong",
    "Sampler",
    "SamplingParams",
    "StateRefused",
    "TextTooLong",
    "TruncatedGguf",
    "load_backend",
]

_HOMES: Final = {
    name: module
    for module, names in {
        "native.adapters": ("LoadedAdapter",),
        "native.backend": (
            "Backend",
            "Batch",
            "Embedder",
            "Logprobs",
            "MemoryUse",
            "ModelInfo",
            "Sampler",
        ),
        "native.fingerprint": ("Fingerprints",),
        "native.params": ("ModelParams", "SamplingParams"),
    }.items()
    for name in names
}
"""Where each public name is defined."""


if not TYPE_CHECKING:  # a type checker takes the names from the imports above, and refuses others

    def __getattr__(name: str) -> Any:
        """A public name, when it is first used: a command imports only what it needs."""
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(home), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
