"""What a context length means for a model: words for people, where it is not as they may think."""

from __future__ import annotations

from native.model_params import ModelParams

_ROUNDING = 256  # llama.cpp rounds n_ctx up to a multiple of it


def context_notes(asked: ModelParams, n_ctx: int, n_ctx_train: int) -> tuple[str, ...]:
    """Notes on the ``n_ctx`` that was asked for; ``n_ctx`` is what it became. Mostly none."""
    if asked.n_ctx >= n_ctx + _ROUNDING:
        return (f"n_ctx {asked.n_ctx} is lowered to {n_ctx}: the model has no positions beyond it",)
    if asked.n_ctx > n_ctx_train > 0 and not _is_stretched(asked):
        note = (
            f"n_ctx {asked.n_ctx} is more than the {n_ctx_train} tokens that the model was trained "
            "with: what a sequence holds beyond them is understood badly or not at all, unless "
            "rope_scaling stretches its positions"
        )
        return (note,)
    return ()


def _is_stretched(params: ModelParams) -> bool:
    """Whether the caller has said how positions are stretched."""
    return (
        params.rope_scaling not in ("model", "none")
        or params.rope_freq_base is not None
        or params.rope_freq_scale is not None
        or params.yarn_orig_ctx is not None
    )
