"""Notes for users on a context length that differs from what they may expect."""

from __future__ import annotations

from native.model_params import ModelParams

_ROUNDING = 256  # llama.cpp rounds n_ctx up to a multiple of it


def context_notes(requested: ModelParams, n_ctx: int, n_ctx_train: int) -> tuple[str, ...]:
    """Notes on a requested ``n_ctx``; ``n_ctx`` is the one in use. Mostly none."""
    if requested.n_ctx >= n_ctx + _ROUNDING:
        return (
            f"n_ctx {requested.n_ctx} is lowered to {n_ctx}: the model has no positions beyond it",
        )
    if requested.n_ctx > n_ctx_train > 0 and not _is_stretched(requested):
        note = (
            f"n_ctx {requested.n_ctx} is more than the {n_ctx_train} tokens that the model was "
            "trained with: what a sequence holds beyond them is understood badly or not at all, "
            "unless rope_scaling stretches its positions"
        )
        return (note,)
    return ()


def _is_stretched(params: ModelParams) -> bool:
    """Whether the caller has set how positions are stretched."""
    return (
        params.rope_scaling not in ("model", "none")
        or params.rope_freq_base is not None
        or params.rope_freq_scale is not None
        or params.yarn_orig_ctx is not None
    )
