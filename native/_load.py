"""Creates the objects that a backend owns: the model, then its context."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from native import _faults
from native._llama import ffi, lib
from native.errors import InvalidParam, ModelLoadFailed
from native.gguf_header import GgufSummary
from native.machine import physical_cores
from native.model_params import POOLINGS, ROPE_SCALINGS, SPLIT_MODES
from native.overrides import EXPERTS, KINDS, MetadataOverride
from native.params import ModelParams

_GGML_TYPE = {
    "f32": 0, "f16": 1, "q4_0": 2, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30,
}  # fmt: skip
_UNSPECIFIED = -1  # in llama.cpp: the model's own value
RANK = "rank"
"""The pooling of a model that ranks: scores in place of a vector."""
_POOLING_IDS = {name: number + _UNSPECIFIED for number, name in enumerate((*POOLINGS, RANK))}


class _Progress:
    """Passes the caller's callback through C, and its exception back to the caller."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self.report = report
        self.error: BaseException | None = None


@ffi.def_extern(error=0)  # type: ignore[untyped-decorator]  # 0 would cancel the load
def la_on_progress(done: float, user: Any) -> int:
    hook: _Progress = ffi.from_handle(user)
    try:
        hook.report(done)
    except BaseException as error:  # noqa: BLE001 - it is raised again by load_model
        hook.error = error
        return 0
    return 1


def load_model(
    path: str | Path, params: ModelParams, progress: Callable[[float], None] | None
) -> Any:
    out = ffi.new("la_model **")
    hook = _Progress(progress) if progress is not None else None
    handle = ffi.new_handle(hook) if hook is not None else ffi.NULL
    options, borrowed = _model_options(params)
    if hook is not None:
        options.progress, options.user = lib.la_on_progress, handle
    status = lib.la_model_load(os.fsencode(path), options, out)
    del borrowed
    if hook is not None and hook.error is not None:
        if not status:
            lib.la_model_free(out[0])
        raise hook.error
    if status == lib.LA_OVERRIDE:
        wrong = params.override_kv[lib.la_error_value()]
        raise InvalidParam(
            "override_kv", wrong, f"{_faults.last_text()}; change it or leave it out"
        )
    if status:
        raise ModelLoadFailed(path, _faults.log_tail() or _faults.last_text())
    return out[0]


def check_placement(params: ModelParams, headers: Sequence[GgufSummary]) -> None:
    """Refuse places of tensors that this model or this machine does not have."""
    known = buffer_types()
    names = "\n".join(name for header in headers for name in header.tensors)
    for text, one in zip(params.override_tensors, params.tensor_overrides, strict=False):
        if one.buffer not in known:
            wanted = f"a buffer type of this machine behind the =: {', '.join(known)}"
            raise InvalidParam("override_tensors", text, wanted)
        _require_found("override_tensors", text, one.pattern, names)
    for name in ("cpu_moe", "n_cpu_moe"):
        if getattr(params, name):
            _require_found(name, getattr(params, name), EXPERTS, names)


def _require_found(name: str, value: object, pattern: str, names: str) -> None:
    found = ffi.new("int *")
    if lib.la_pattern_finds(pattern.encode(), names.encode(), found):
        raise InvalidParam(name, value, _faults.last_text())
    if not found[0] and name == "override_tensors":
        raise InvalidParam(name, value, "a pattern that is found in the name of a tensor")
    if not found[0]:
        raise InvalidParam(name, value, "only for models with experts, and this one has none")


def buffer_types() -> tuple[str, ...]:
    """Names of the buffer types that tensors can be placed in."""
    length = lib.la_buffer_types(ffi.NULL, 0)
    out = ffi.new("char[]", max(0, length) + 1)
    lib.la_buffer_types(out, len(out))
    return tuple(ffi.string(out).decode("utf-8", "replace").splitlines())


def _model_options(params: ModelParams) -> tuple[Any, Any]:
    """The options for C, and the memory that they point to."""
    n_gpus = lib.la_gpus(ffi.NULL, 0)
    if n_gpus > 0 and params.main_gpu >= n_gpus:
        raise InvalidParam("main_gpu", params.main_gpu, f"0 to {n_gpus - 1}: one of the GPUs here")
    options = ffi.new("la_model_wishes *")
    options.n_gpu_layers = params.n_gpu_layers
    options.split_mode = SPLIT_MODES.index(params.split_mode)
    options.main_gpu = params.main_gpu
    options.use_mmap, options.use_mlock = params.use_mmap, params.use_mlock
    options.vocab_only = params.vocab_only
    shares = ffi.new("float[]", params.tensor_split or (0.0,))
    options.tensor_split, options.n_tensor_split = shares, len(params.tensor_split)
    texts: list[Any] = []

    def text(value: str) -> Any:
        texts.append(ffi.new("char[]", value.encode()))
        return texts[-1]

    placed = ffi.new("la_tensor_override[]", len(params.tensor_overrides))
    for entry, one in zip(placed, params.tensor_overrides, strict=True):
        entry.pattern, entry.buffer = text(one.pattern), text(one.buffer)
    options.tensor_overrides, options.n_tensor_overrides = placed, len(placed)
    replaced = ffi.new("la_kv_override[]", len(params.metadata_overrides))
    for entry, change in zip(replaced, params.metadata_overrides, strict=True):
        entry.key, entry.kind = text(change.key), KINDS.index(change.kind)
        _set_value(entry, change, text)
    options.kv_overrides, options.n_kv_overrides = replaced, len(replaced)
    return options, (shares, placed, replaced, texts)


def _set_value(entry: Any, change: MetadataOverride, text: Callable[[str], Any]) -> None:
    entry.text = ffi.NULL
    match change.value:
        case str():
            entry.text = text(change.value)
        case float():
            entry.real = change.value
        case _:
            entry.whole = int(change.value)


def new_context(model: Any, params: ModelParams, abort_flag: Any) -> Any:
    """A context with these parameters; None when this model has no memory and cannot generate."""
    options = ffi.new("la_context_wishes *")
    options.n_ctx = params.n_ctx
    options.n_batch = params.n_batch
    options.n_ubatch = params.n_ubatch
    options.n_seq_usable = params.n_seq_max
    options.n_threads = n_threads(params)
    options.n_threads_batch = params.n_threads_batch or n_threads(params)
    options.type_k = _GGML_TYPE[params.type_k]
    options.type_v = _GGML_TYPE[params.type_v]
    options.flash_attn = params.flash_attn
    options.offload_kqv = gpu_layers(params) != 0
    options.abort_flag = abort_flag
    _set_rope(options.rope, params)
    out = ffi.new("la_context **")
    status = lib.la_context_new(model, options, out)
    if status == lib.LA_NO_MEMORY:
        return None
    if status:
        _faults.raise_status(status)
    return out[0]


def _set_rope(rope: Any, params: ModelParams) -> None:
    rope.scaling = ROPE_SCALINGS.index(params.rope_scaling) + _UNSPECIFIED
    rope.freq_base = params.rope_freq_base or 0.0
    rope.freq_scale = params.rope_freq_scale or 0.0
    rope.yarn_orig_ctx = params.yarn_orig_ctx or 0
    for name in ("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"):
        value = getattr(params, name)
        setattr(rope, name, _UNSPECIFIED if value is None else value)


def new_embedder(
    model: Any, params: ModelParams, pooling: str, n_tokens: int, abort_flag: Any
) -> Any:
    """A context for embeddings of texts of at most ``n_tokens``."""
    options = ffi.new("la_embedder_wishes *")
    options.n_tokens = n_tokens
    # Generation runs at the same time, so it takes half of the threads.
    options.n_threads = max(1, n_threads(params) // 2)
    options.pooling = _POOLING_IDS[pooling]
    _set_rope(options.rope, params)
    options.flash_attn = params.flash_attn
    options.offload_kqv = gpu_layers(params) != 0
    options.abort_flag = abort_flag
    out = ffi.new("la_embedder **")
    status = lib.la_embedder_new(model, options, out)
    if status:
        _faults.raise_status(status)
    return out[0]


def n_threads(params: ModelParams) -> int:
    """The threads that decode."""
    return params.n_threads or physical_cores()


def gpu_layers(params: ModelParams) -> int:
    """The requested number of layers on GPUs: 0 where there is none, -1 for all of them."""
    return params.n_gpu_layers if has_gpu() else 0


def has_gpu() -> bool:
    """Whether layers can be put on a GPU, one that shares the machine's memory too."""
    return bool(lib.la_offloads())


def gpus() -> tuple[tuple[str, int, int], ...]:
    """Name, free and total bytes of each GPU."""
    n = lib.la_gpus(ffi.NULL, 0)
    out = ffi.new("la_device[]", max(1, n))
    n = min(n, lib.la_gpus(out, n))
    return tuple(
        (ffi.string(one.name).decode("utf-8", "replace"), int(one.free), int(one.total))
        for one in out[0 : max(0, n)]
    )
