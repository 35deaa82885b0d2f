"""Logits of the last position of whole prompts, so that a repeat samples without a decode.

They are the float32 numbers the model computed, never rounded: a repeat then draws the same token
at any temperature and seed. Kept in memory here, and stored at the end of the tip's row where that
is cheap beside its KV (``cache.policy.LogitsPolicy``).
"""

from __future__ import annotations

from array import array
from collections import OrderedDict

LOGIT_BYTES = 4
KEPT_BYTES = 4
"""Behind the logits: after how many tokens of the row they come, u32."""


class LogitsMemory:
    """The prompts used last, within ``limit_bytes``; by the key of the prompt's last row."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held: OrderedDict[bytes, array[float]] = OrderedDict()
        self._used = 0

    def __len__(self) -> int:
        return len(self._held)

    def clear(self) -> None:
        self._held.clear()
        self._used = 0

    def get(self, key: bytes) -> array[float] | None:
        found = self._held.get(key)
        if found is not None:
            self._held.move_to_end(key)
        return found

    def put(self, key: bytes, logits: array[float]) -> None:
        known = self._held.pop(key, None)
        if known is not None:
            self._used -= LOGIT_BYTES * len(known)
        self._held[key] = logits
        self._used += LOGIT_BYTES * len(logits)
        while self._used > self._limit:
            _, oldest = self._held.popitem(last=False)
            self._used -= LOGIT_BYTES * len(oldest)


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
