"""Two texts of one model that may differ only where two tokens were all but equally likely."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from native import load_backend
from native.backend import Backend, Batch
from native.params import ModelParams
from runtime.embedded import path as embedded_model_path

TIE = 0.005
"""Of a logit: cells that lie elsewhere are added up in another order, which moves the last bits."""
QUANTISED_TIE = 0.25
"""Of a model with quantised weights: activations are rounded, too. 0.16 was seen in plain batches,
with prompts of random tokens."""


def embedded_backend() -> Backend:
    """The embedded model on one thread, without actors."""
    return load_backend("llama", embedded_model_path(), ModelParams(n_threads=1, n_ctx=4096))


def same_but_for_ties(
    load: Callable[[], Backend],
    prompt: Sequence[int],
    mine: Sequence[int],
    other: Sequence[int],
    tie: float = TIE,
) -> bool:
    """Whether the texts are equal, or the first difference is a tie that one bit may decide."""
    pairs = enumerate(zip(mine, other, strict=False))
    at = next((at for at, (a, b) in pairs if a != b), None)
    if at is None:
        return len(mine) == len(other)
    backend, batch = load(), Batch()
    row = batch.extend_prefill([*prompt, *other[:at]], 0, 0, logits_last=True)
    if row is None:
        return False
    backend.decode(batch)
    logits = backend.logits(row)
    backend.close()
    return abs(logits[mine[at]] - logits[other[at]]) < tie
