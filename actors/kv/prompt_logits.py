"""Logits of the last position of whole prompts, so that a repeat samples without a decode.

They are the float32 numbers the model computed, never rounded: a repeat then draws the same token
at any temperature and seed. Kept in memory here, and stored at the end of the tip's row where that
is cheap beside its KV (``cache.policy.LogitsPolicy``).
"""

from __future__ import annotations

from array import array

from cache.lru import LruMap

LOGIT_BYTES = 4
KEPT_BYTES = 4
"""Behind the logits: after how many tokens of the row they come, u32."""


def logits_memory(limit_bytes: int) -> LruMap[bytes, array[float]]:
    """Logits of the prompts used last, by the key of the prompt's last row."""
    return LruMap(limit_bytes, lambda logits: LOGIT_BYTES * len(logits))


def append_logits(n_tokens: int, logits: array[float]) -> bytes:
    """What follows the KV of a row: logits after ``n_tokens`` of its tokens, and that number."""
    return logits.tobytes() + n_tokens.to_bytes(KEPT_BYTES, "little")


def read(payload: memoryview, kv_bytes: int, n_vocab: int) -> tuple[int, array[float]] | None:
    """The logits behind the KV of a row, and after how many tokens; None: it carries none."""
    if payload.nbytes != kv_bytes + LOGIT_BYTES * n_vocab + KEPT_BYTES:
        return None
    logits = array("f")
    logits.frombytes(payload[kv_bytes:-KEPT_BYTES])
    return int.from_bytes(payload[-KEPT_BYTES:], "little"), logits
