"""States of whole sequences: saved and compared, and damaged copies restored.

As a program it reads the path of a model file from its standard input, restores thousands of
damaged states into that model and prints ``healthy`` and the number of refused ones. It is a
process of its own because llama.cpp aborts for some damaged states unless they are caught before.
"""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Iterator

from native import Batch, ModelParams, StateRefused
from native.llama import LlamaBackend

PARAMS = ModelParams(n_ctx=512, n_batch=128, n_ubatch=64, n_seq_max=4, n_threads=1)
TOKENS = [32 + (i * 37) % 90 for i in range(180)]


def prefill(b: LlamaBackend, tokens: list[int], seq: int = 0, start: int = 0) -> int:
    batch, row = Batch(), -1
    for at in range(0, len(tokens), b.info.n_batch):
        batch.clear()
        found = batch.extend_prefill(tokens[at : at + b.info.n_batch], start + at, seq, True)
        assert found is not None
        row = found
        b.decode(batch)
    return row


def save(b: LlamaBackend, seq: int = 0) -> bytearray:
    state = bytearray(b.checkpoint_bytes(seq))
    assert b.save_checkpoint(seq, state) == len(state)
    return state


def difference(one: LlamaBackend, two: LlamaBackend, at: int, seqs: tuple[int, int]) -> float:
    """The largest difference of the logits after the same further token."""
    first = one.logits(prefill(one, TOKENS[at : at + 1], seqs[0], at))
    second = two.logits(prefill(two, TOKENS[at : at + 1], seqs[1], at))
    return max(abs(x - y) for x, y in zip(first, second, strict=True))


def attack() -> None:
    """Restore thousands of damaged states; print "healthy" and how many were refused."""
    b = LlamaBackend.load(sys.stdin.read(), PARAMS)
    prefill(b, TOKENS[:70])
    good = bytes(save(b))
    rng = random.Random(7)
    refused = 0
    for bad in damaged(good, rng):
        try:
            b.restore_checkpoint(1, 70, bad)
        except StateRefused:
            refused += 1
            assert b.seq_range(1) is None
        else:
            prefill(b, TOKENS[70:71], 1, 70)  # other numbers of the right kind: the digest's part
            assert b.seq_remove(1, 0)
    b.restore_checkpoint(1, 70, good)
    assert difference(b, b, 70, (0, 1)) == 0.0
    for seq in range(4):
        assert b.seq_remove(seq, 0)
    prefill(b, (TOKENS * 3)[: b.info.n_ctx], 3)  # no cell was leaked
    print("healthy", refused)


def damaged(good: bytes, rng: random.Random) -> Iterator[bytes]:
    """Cut, changed at its head, changed anywhere, two recurrent cells, positions out of range."""
    for length in (*range(64), *rng.sample(range(len(good)), 60)):
        yield good[:length]
    for at in range(120):
        for change in (0x01, 0x80, 0xFF):
            yield good[:at] + bytes((good[at] ^ change,)) + good[at + 1 :]
    for _ in range(200):
        at = rng.randrange(len(good))
        yield good[:at] + bytes((good[at] ^ rng.randrange(1, 256),)) + good[at + 1 :]
    last = struct.pack("<i", 69)
    at = -1
    while (at := good.find(last, at + 1)) >= 0:
        for position in (-1, 0, 68, 70, 0x7FFFFFFF, -0x80000000):
            yield good[:at] + struct.pack("<i", position) + good[at + 4 :]
        for count in (0, 2, 3, 0xFFFFFFFF):  # before the position of a recurrent cell: how many
            yield good[: at - 4] + struct.pack("<I", count) + good[at:]


if __name__ == "__main__":
    attack()
