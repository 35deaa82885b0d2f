"""What a caller may ask of a model and of a sampler. Checked on construction, then frozen."""

from __future__ import annotations

import math
from dataclasses import dataclass

from native.errors import InvalidParam

KV_TYPES = ("f16", "f32", "bf16", "q4_0", "q5_0", "q5_1", "q8_0")
"""KV cache types that llama.cpp can write rows of (ggml type names)."""

MAX_SEQUENCES = 255
"""llama.cpp allows 256 (LLAMA_MAX_SEQ); one of them is our scratch sequence."""

_MAX_CTX = 1 << 24
_MAX_WINDOW = 1 << 16


def _whole(name: str, value: object, low: int, high: int) -> None:
    # bool is an int to isinstance, but True is no token count.
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidParam(name, value, f"a whole number from {low} to {high}")


def _real(name: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or not low <= value <= high or (above and value == low):  # type: ignore[operator]
        edge = "above" if above else "from"
        raise InvalidParam(name, value, f"a number {edge} {low:g} to {high:g}")


@dataclass(frozen=True, slots=True)
class ModelParams:
    """How to load a model. Counts are tokens unless said otherwise.

    ``n_ctx`` is the pool of KV cells all sequences share (llama.cpp rounds it up to 256);
    ``n_ubatch``, rows computed at once, is capped at ``n_batch``. ``n_seq_max`` counts usable
    sequences, the backend adds one scratch sequence itself.
    ``n_threads`` None means: physical cores this process may use. ``n_gpu_layers`` -1 means all.
    """

    n_ctx: int = 4096
    n_batch: int = 512
    n_ubatch: int = 512
    n_seq_max: int = 8
    n_threads: int | None = None
    n_gpu_layers: int = 0
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attn: bool = True
    use_mmap: bool = True
    use_mlock: bool = False

    def __post_init__(self) -> None:
        _whole("n_ctx", self.n_ctx, 1, _MAX_CTX)
        _whole("n_batch", self.n_batch, 1, _MAX_CTX)
        _whole("n_ubatch", self.n_ubatch, 1, _MAX_CTX)
        _whole("n_seq_max", self.n_seq_max, 1, MAX_SEQUENCES)
        if self.n_threads is not None:
            _whole("n_threads", self.n_threads, 1, 512)  # GGML_MAX_N_THREADS; more aborts
        _whole("n_gpu_layers", self.n_gpu_layers, -1, 100_000)
        for name in ("type_k", "type_v"):
            if getattr(self, name) not in KV_TYPES:
                raise InvalidParam(name, getattr(self, name), "one of " + ", ".join(KV_TYPES))
        for name in ("flash_attn", "use_mmap", "use_mlock"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidParam(name, getattr(self, name), "True or False")
        if not self.flash_attn and self.type_v not in {"f16", "f32", "bf16"}:
            raise InvalidParam("type_v", self.type_v, "quantised values need flash_attn=True")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose a token from logits.

    Applied in this order: repetition penalty over the last ``repetition_window`` accepted tokens,
    ``top_k`` (0: off), ``top_p`` (1: off), ``min_p`` (0: off), ``temperature``. Temperature 0 takes
    the likeliest token, the lowest id on a tie. ``seed`` is a 64-bit number; the same seed gives
    the same number at the same index, whatever happened before.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        _real("temperature", self.temperature, 0.0, 100.0)
        _whole("top_k", self.top_k, 0, (1 << 31) - 1)
        _real("top_p", self.top_p, 0.0, 1.0, above=True)
        _real("min_p", self.min_p, 0.0, 1.0)
        _real("repetition_penalty", self.repetition_penalty, 0.0, 100.0, above=True)
        _whole("repetition_window", self.repetition_window, 0, _MAX_WINDOW)
        _whole("seed", self.seed, 0, (1 << 64) - 1)
