"""Creating what a backend owns: the model, then its context."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from native import _faults
from native._llama import ffi, lib
from native.errors import ModelLoadFailed
from native.machine import physical_cores
from native.params import ModelParams

_GGML_TYPE = {
    "f32": 0, "f16": 1, "q4_0": 2, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30,
}  # fmt: skip


class _Progress:
    """Carries the caller's callback through C, and its exception back out."""

    def __init__(self, tell: Callable[[float], None]) -> None:
        self.tell = tell
        self.error: BaseException | None = None


@ffi.def_extern(error=0)  # type: ignore[untyped-decorator]  # 0 would cancel the load
def la_on_progress(done: float, user: Any) -> int:
    hook: _Progress = ffi.from_handle(user)
    try:
        hook.tell(done)
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
    status = lib.la_model_load(
        os.fsencode(path),
        params.n_gpu_layers,
        params.use_mmap,
        params.use_mlock,
        lib.la_on_progress if hook is not None else ffi.NULL,
        handle,
        out,
    )
    if hook is not None and hook.error is not None:
        if not status:
            lib.la_model_free(out[0])
        raise hook.error
    if status:
        raise ModelLoadFailed(path, _faults.log_tail() or _faults.last_text())
    return out[0]


def new_context(model: Any, params: ModelParams, abort_flag: Any) -> Any:
    wishes = ffi.new("la_context_wishes *")
    wishes.n_ctx = params.n_ctx
    wishes.n_batch = params.n_batch
    wishes.n_ubatch = params.n_ubatch
    wishes.n_seq_usable = params.n_seq_max
    wishes.n_threads = params.n_threads or physical_cores()
    wishes.type_k = _GGML_TYPE[params.type_k]
    wishes.type_v = _GGML_TYPE[params.type_v]
    wishes.flash_attn = params.flash_attn
    wishes.offload_kqv = params.n_gpu_layers != 0
    wishes.abort_flag = abort_flag
    out = ffi.new("la_context **")
    status = lib.la_context_new(model, wishes, out)
    if status:
        _faults.raise_status(status)
    return out[0]
