"""Loading a model in its process, and the report of what was loaded.

Runs on the engine thread; the report is made of values and may be asked for by the mailbox.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.messages.model_table import ModelTable
from native import load_backend
from native.backend import MemoryUse, ModelInfo
from native.context_notes import context_notes
from native.errors import NativeError
from native.estimate import MemoryEstimate, estimate
from native.overrides import model_headers
from native.params import ModelParams
from native.system_memory import available_memory

if TYPE_CHECKING:
    from actors.model.args import ModelArgs
    from native.backend import Backend


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What was loaded: facts, what was asked for, the memory expected and the memory taken."""

    info: ModelInfo
    params: ModelParams
    expected: MemoryEstimate | None
    taken: MemoryUse | None
    notes: tuple[str, ...] = ()
    """Sentences for the log, about what was asked for."""

    def report(self) -> dict[str, object]:
        """For a status: numbers and texts only, sizes in bytes."""
        info = self.info
        return {
            "description": info.description,
            "architecture": info.architecture,
            "n_vocab": info.n_vocab,
            "n_ctx": info.n_ctx,
            "n_ctx_train": info.n_ctx_train,
            "n_batch": info.n_batch,
            "n_seq_max": info.n_seq_max,
            "n_layer": info.n_layer,
            "n_embd": info.n_embd,
            "n_embd_out": info.n_embd_out,
            "n_head": info.n_head,
            "n_head_kv": info.n_head_kv,
            "n_params": info.n_params,
            "model_bytes": info.model_bytes,
            "kv_bytes_per_token": info.kv_bytes_per_token,
            "fingerprint": info.fingerprint.hex(),
            "can_generate": info.can_generate,
            "can_infill": info.infill is not None,
            "can_rank": info.rank is not None,
            "memory_kind": info.memory,
            "memory_because": info.memory_because,
            "chat_template": info.chat_template,
            "named_chat_templates": [name for name, _ in info.named_templates],
            "params": _plain(self.params),
            "notes": list(self.notes),
            "memory_expected": None if self.expected is None else _expected(self.expected),
            "memory_taken": None if self.taken is None else dataclasses.asdict(self.taken),
        }


def load(args: ModelArgs, progress: Callable[[float], None]) -> tuple[Backend, LoadedModel]:
    """Load the model that ``args`` names, with the adapters it had when it ran last."""
    params = _with_last_adapters(args)
    backend = load_backend(
        args.backend,
        args.path,
        params,
        progress=progress,
        fingerprints=args.fingerprints,
        memory_available=available_memory(),
    )
    if args.chat_template is not None:
        backend.info = dataclasses.replace(
            backend.info, chat_template=args.chat_template, named_templates=()
        )
    taken = backend.memory_use() if backend.info.can_generate else None
    expected = None
    if args.backend == "llama":
        settled = params.with_n_ctx(backend.info.n_ctx)
        expected = _estimate(args.path, settled, has_gpu=bool(backend.gpus()))
    info = backend.info
    notes = context_notes(params, info.n_ctx, info.n_ctx_train) if info.can_generate else ()
    return backend, LoadedModel(info, params, expected, taken, notes)


def _with_last_adapters(args: ModelArgs) -> ModelParams:
    """A model that comes back after a crash applies what was applied when it died."""
    if args.wanted_path is None:
        return args.params
    for wanted in ModelTable(args.wanted_path).all():
        if (wanted.model, wanted.path) == (args.model, args.path):
            return dataclasses.replace(args.params, lora=wanted.params.lora)
    return args.params


def _estimate(path: str, params: ModelParams, *, has_gpu: bool) -> MemoryEstimate | None:
    try:
        headers = model_headers(path, params.metadata_overrides)
        return estimate(headers, params, has_gpu=has_gpu)
    except NativeError:  # the file was removed since; the model runs
        return None


def _expected(found: MemoryEstimate) -> dict[str, object]:
    plain: dict[str, object] = {
        f"{place}_{name}": getattr(part, name)
        for place, part in (("host", found.host), ("device", found.device))
        for name in ("weights", "kv", "compute")
    }
    return plain | {"is_upper_bound": found.is_upper_bound}


def _plain(params: ModelParams) -> dict[str, object]:
    plain = dataclasses.asdict(params)
    for name in ("lora", "control_vectors"):
        plain[name] = [list(one) for one in getattr(params, name)]
    for name in ("tensor_split", "override_tensors", "override_kv"):
        plain[name] = list(getattr(params, name))
    if params.control_vector_layers is not None:
        plain["control_vector_layers"] = list(params.control_vector_layers)
    return plain
