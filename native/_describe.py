"""Facts about a loaded model, and about this build of llama.cpp."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from native._llama import ffi, lib
from native._load import gpu_layers, has_gpu
from native.backend import InfillTokens, ModelInfo, RankFormat
from native.gguf_header import GgufSummary, TensorFacts
from native.params import ModelParams

NAMED_TEMPLATES = ("tool_use", "rag")
"""Names that published models give to their chat templates for tools and for documents."""
STATE_FORMAT = 1
"""Raise it when the shim writes payloads differently: stored rows of other versions then miss."""


def build_id() -> str:
    """Name the build: the llama.cpp source it was made from, our kernels and our payload format."""
    source: bytes = ffi.string(lib.la_source_id())
    kernels: bytes = ffi.string(lib.la_kernels_id())
    return f"{source.decode()}+kernels.{kernels.decode()}+state{STATE_FORMAT}"


def cpu_features() -> str:
    """Return the instruction sets this build uses here, as llama.cpp reports them."""
    text: bytes = ffi.string(lib.la_system_info())
    return " ".join(text.decode("utf-8", errors="replace").split())


def cpu_variant() -> str:
    """Return which of a portable build's CPU libraries runs here; ``linked`` in other builds."""
    name: bytes = ffi.string(lib.la_cpu_variant())
    return name.decode("utf-8", errors="replace")


def devices() -> str:
    names: bytes = ffi.string(lib.la_device_names())
    return names.decode("utf-8", errors="replace")


def model_info(
    model: Any,
    context: Any,
    params: ModelParams,
    fingerprint: bytes,
    headers: Sequence[GgufSummary],
    control_vector: str,
) -> ModelInfo:
    """The facts of a model, as the rest of the project sees it; ``context`` None: there is none.

    ``headers`` are those of the model's files, with what replaces their metadata;
    ``control_vector`` is the identity of the one applied.
    """
    facts, sizes = ffi.new("la_model_facts *"), ffi.new("la_context_facts *")
    lib.la_model_describe(model, facts)
    unsaved = "it has no memory of a text: only its vocabulary was loaded, or it only embeds"
    if context is not None:
        lib.la_context_describe(context, sizes)
        unsaved = ffi.string(lib.la_context_unsaved(context)).decode("utf-8", errors="replace")
    return ModelInfo(
        description=_text(lib.la_model_description, model) or "",
        architecture=_meta(model, "general.architecture") or "",
        n_vocab=facts.n_vocab,
        n_ctx=sizes.n_ctx,
        n_ctx_train=facts.n_ctx_train,
        n_batch=sizes.n_batch,
        n_seq_max=params.n_seq_max,
        n_layer=facts.n_layer,
        n_params=facts.n_params,
        model_bytes=facts.n_bytes,
        fingerprint=fingerprint,
        kv_identity=_kv_identity(facts, sizes, params, control_vector),
        can_cut=bool(sizes.can_cut),
        can_step_back=not facts.recurrent,
        add_bos=bool(facts.add_bos),
        bos_token=None if facts.bos_token < 0 else facts.bos_token,
        eog_tokens=_eog(model, facts.n_vocab),
        chat_template=_text(lib.la_model_chat_template, model),
        kv_bytes_per_token=sizes.bytes_per_token,
        state_grows=bool(sizes.state_grows),
        memory="blocks" if sizes.can_cut else "checkpoint" if sizes.can_checkpoint else "none",
        memory_because=unsaved,
        can_generate=context is not None,
        n_embd=facts.n_embd,
        n_embd_out=facts.n_embd_out,
        n_head=facts.n_head,
        n_head_kv=facts.n_head_kv,
        named_templates=tuple(
            (name, source)
            for name in NAMED_TEMPLATES
            if (source := _meta(model, f"tokenizer.chat_template.{name}"))
        ),
        max_token_bytes=lib.la_token_bytes_max(model),
        eos_token=_whole(headers[0], "tokenizer.ggml.eos_token_id"),
        infill=_infill(facts),
        rank=_rank(model, facts, headers) if not params.vocab_only else None,
    )


def default_pooling(header: GgufSummary) -> str:
    """The pooling that the model file names, or what replaces that; the mean where neither does."""
    kinds = {2: "cls", 3: "last", 4: "rank"}  # numbers of llama_pooling_type
    named = header.metadata.get(f"{header.architecture}.pooling_type")
    return kinds.get(named, "mean") if isinstance(named, int) else "mean"


def _infill(facts: Any) -> InfillTokens | None:
    ids = [facts.fim_pre, facts.fim_suf, facts.fim_mid, facts.fim_rep, facts.fim_sep]
    prefix, suffix, middle, repository, file = (None if one < 0 else int(one) for one in ids)
    if prefix is None or suffix is None or middle is None:
        return None
    return InfillTokens(prefix, suffix, middle, repository, file)


def _rank(model: Any, facts: Any, headers: Sequence[GgufSummary]) -> RankFormat | None:
    """How a query and a text are put to the model; None if it has no head that scores them."""
    head: TensorFacts | None = None
    for name in ("cls.weight", "cls.output.weight"):  # the last one makes the scores
        head = next((one.tensors[name] for one in headers if name in one.tensors), head)
    width = 0 if head is None else head.dims[1] if len(head.dims) > 1 else 1
    if width < facts.n_cls_out:  # llama.cpp reads one for each label
        return None
    bos = (facts.bos_token,) if facts.add_bos and facts.bos_token >= 0 else ()
    sep = (facts.sep_token,) if facts.add_sep and facts.sep_token >= 0 else ()
    end = facts.eos_token if facts.eos_token >= 0 else facts.sep_token
    eos = (end,) if facts.add_eos and end >= 0 else ()
    template = _meta(model, "tokenizer.chat_template.rerank")
    return RankFormat(bos, (*eos, *sep), eos, template)


def _kv_identity(
    facts: Any, sizes: Any, params: ModelParams, control_vector: str
) -> tuple[tuple[str, str], ...]:
    """Everything besides the model file that changes KV bytes.

    Not n_ctx, n_batch, thread and sequence counts: stored rows stay valid when these change.
    """
    entries = {
        "build": build_id(),
        "type_k": params.type_k,
        "type_v": params.type_v,
        "flash_attn": str(params.flash_attn),
        "v_layout": "transposed" if sizes.v_transposed else "rows",
        "unified": "True",
        "rope": " ".join(f"{name}={value}" for name, value in params.rope_overrides) or "model",
        "n_swa": str(facts.n_swa),
        # Read by llama.cpp at context creation; it changes what quantised caches hold.
        "attn_rot_disable": os.environ.get("LLAMA_ATTN_ROT_DISABLE", ""),
        "device": _placement(params),
        "cpu": cpu_features(),
    }
    # Only where there are any: what was stored without them is found as before.
    if control_vector:
        entries["control_vector"] = control_vector
    if params.override_kv:
        entries["override_kv"] = "\n".join(sorted(params.override_kv))
    return tuple(sorted(entries.items()))


def _placement(params: ModelParams) -> str:
    """Devices, and which parts of the model are on GPUs and how: kernels round differently."""
    where = f"{devices()}:{gpu_layers(params)}"
    if not has_gpu():
        return where
    if params.split_mode != "layer":
        where += f":{params.split_mode}:{params.main_gpu}"
    moved = " ".join(map(str, params.tensor_overrides))
    return f"{where}:{moved}" if moved else where


def _eog(model: Any, n_vocab: int) -> frozenset[int]:
    flags = ffi.new("uint8_t[]", n_vocab)
    lib.la_model_eog(model, flags)
    return frozenset(i for i, flag in enumerate(ffi.buffer(flags)) if flag != b"\0")


def _whole(header: GgufSummary, key: str) -> int | None:
    value = header.metadata.get(key)
    return value if type(value) is int else None


def _meta(model: Any, key: str) -> str | None:
    return _text(lambda m, out, n: lib.la_model_meta(m, key.encode(), out, n), model)


def _text(read: Any, model: Any) -> str | None:
    length = read(model, ffi.NULL, 0)
    if length < 0:
        return None
    out = ffi.new("char[]", length + 1)
    read(model, out, length + 1)
    text: bytes = ffi.string(out)
    return text.decode("utf-8", errors="replace")
