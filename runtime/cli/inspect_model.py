"""``inspect MODEL.gguf``: the header of a model, and the memory it needs.

Reads the header only; no native code is loaded. Exit codes: 0 it fits, 1 it does not, or the file
is damaged.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from native.context_notes import context_notes
from native.errors import InvalidParam, ModelFileError, NotEnoughMemory
from native.estimate import MemoryEstimate, Room, estimate, plan, settle_n_ctx
from native.file_kind import require_model
from native.gguf_header import GgufSummary
from native.overrides import model_headers
from native.params import ModelParams
from native.system_memory import available_memory
from runtime import errors
from runtime.settings.sizes import format_size


def inspect_model(
    path: Path,
    params: ModelParams,
    *,
    as_json: bool,
    origin: Mapping[str, str] | None = None,
) -> int:
    """Print the report, after where the model is from; returns the exit code."""
    try:
        headers = model_headers(path, params.metadata_overrides)
        require_model(headers, vocab_only=True)
    except (ModelFileError, InvalidParam) as error:
        raise errors.LlamaActorsError(str(error)) from error
    room = Room(available_memory())
    refusal = None
    settled = settle_n_ctx(headers, params, room)
    try:
        found = plan(headers, settled, room)
    except NotEnoughMemory as error:
        refusal = str(error)
        found = estimate(headers, settled)
    plain = _plain(headers, found, room, refusal)
    trained = plain["n_ctx_train"]
    plain["notes"] = list(
        context_notes(params, settled.n_ctx, trained if isinstance(trained, int) else 0)
    )
    if as_json:
        about = {} if origin is None else {"origin": dict(origin)}
        sys.stdout.write(json.dumps(about | plain, indent=2) + "\n")
    else:
        lines = [*(origin or {}).items(), *_lines(plain)]
        sys.stdout.write("".join(f"{key:<11} {words}\n" for key, words in lines))
    return 1 if refusal else 0


def _plain(
    headers: list[GgufSummary], found: MemoryEstimate, room: Room, refusal: str | None
) -> dict[str, Any]:
    first = headers[0]
    arch = first.architecture
    return {
        "file": first.path,
        "name": first.metadata.get("general.name"),
        "architecture": arch,
        "files": len(headers),
        "file_bytes": sum(one.file_bytes for one in headers),
        "tensors": sum(one.n_tensors for one in headers),
        "n_layer": first.metadata.get(f"{arch}.block_count"),
        "n_embd": first.metadata.get(f"{arch}.embedding_length"),
        "n_ctx_train": first.metadata.get(f"{arch}.context_length"),
        "n_ctx": found.n_ctx,
        "weights": found.host.weights,
        "kv": found.host.kv,
        "kv_is_upper_bound": found.is_upper_bound,
        "compute": found.host.compute,
        "needed": found.total,
        "available": room.host,
        "refused": refusal,
    }


def _lines(plain: dict[str, Any]) -> list[tuple[str, str]]:
    size = format_size
    kv = f"{size(plain['kv'])} for n_ctx {plain['n_ctx']}"
    files = "1 file" if plain["files"] == 1 else f"{plain['files']} files"
    available = "unknown" if plain["available"] is None else size(plain["available"])
    shape = (
        f"{plain['n_layer']} layers of {plain['n_embd']}, {plain['tensors']} tensors, "
        f"trained with {plain['n_ctx_train']} tokens"
    )
    lines = [
        ("file", f"{plain['file']}, {size(plain['file_bytes'])} in {files}"),
        ("model", f"{plain['name'] or 'no name'} ({plain['architecture']})"),
        ("shape", shape),
        ("weights", size(plain["weights"])),
        ("KV", kv + (", at most" if plain["kv_is_upper_bound"] else "")),
        ("compute", f"{size(plain['compute'])}, estimated"),
        ("needed", f"{size(plain['needed'])}; available {available}"),
    ]
    lines += [("note", note) for note in plain["notes"]]
    if plain["refused"]:
        lines.append(("REFUSED", plain["refused"]))
    return lines
