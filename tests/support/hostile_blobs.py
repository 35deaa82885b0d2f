"""Forge KV blobs and restore them: ``python -m tests.support.hostile_blobs PATH FLASH KV ARCH N``.

Prints one line of JSON: how many were refused, how many accepted, and how often that changed the
tokens of another sequence, beside the forged one or after it.
"""

from __future__ import annotations

import json
import random
import struct
import sys

from native import (
    Backend,
    Batch,
    ModelParams,
    NativeError,
    SamplingParams,
    StateRefused,
    load_backend,
)

N = 64
NUMBERS = [0, 1, 2, 63, 64, 65, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFC0]
FILLS = [b"\x00", b"\xff", b"\x7c\x00", b"\x00\x7c", b"\x7f\xff", b"\x00\xfc", b"\x00\x7e"]


def read(b: Backend, tokens: list[int], seq: int, start: int = 0) -> int:
    batch = Batch()
    row = batch.extend_prefill(tokens, start, seq, True)
    b.decode(batch)
    return -1 if row is None else row


def greedy_tokens(b: Backend, tokens: list[int], seq: int, start: int = 0, n: int = 4) -> list[int]:
    """The next tokens, in a sequence that is emptied afterwards; nothing if the decode fails."""
    out: list[int] = []
    try:
        row, sampler = read(b, tokens, seq, start), b.new_sampler(SamplingParams())
        for index in range(n):
            out.append(b.sample(row, sampler, index))
            row = read(b, out[-1:], seq, start + len(tokens) + index)
    except NativeError as error:
        out = [-1, hash(type(error).__name__)]
    b.seq_remove(seq, 0)
    return out


def forge(good: bytes, head: int, rng: random.Random) -> bytes:
    """Another blob: bits, numbers and fills, in its structure or in its numbers; cut or grown."""
    blob = bytearray(good)
    match rng.randrange(8):
        case 0:  # bits of the structure before the numbers
            for _ in range(rng.randrange(1, 4)):
                blob[rng.randrange(head)] ^= 1 << rng.randrange(8)
        case 1:  # a number of the structure
            struct.pack_into("<I", blob, 4 * rng.randrange(head // 4), rng.choice(NUMBERS))
        case 2:  # bits anywhere
            for _ in range(rng.randrange(1, 200)):
                blob[rng.randrange(len(blob))] ^= 1 << rng.randrange(8)
        case 3:  # a run of infinities, NaN, the largest or the smallest number
            fill = rng.choice(FILLS)
            at, n = rng.randrange(head, len(blob)), rng.randrange(2, 4096)
            run = (fill * n)[: len(blob) - at]
            blob[at : at + len(run)] = run
        case 4:
            del blob[rng.randrange(len(blob)) :]
        case 5:
            blob += rng.randbytes(rng.randrange(1, 100))
        case 6:  # all numbers
            blob[head:] = rng.randbytes(len(blob) - head)
        case _:  # four bytes of the numbers
            struct.pack_into(
                "<I", blob, rng.randrange(head, len(blob) - 4) & ~3, rng.choice(NUMBERS)
            )
    return bytes(blob)


def main(path: str, flash: str, kv: str, arch: str, n: str) -> dict[str, int]:
    params = ModelParams(
        n_ctx=512, n_batch=128, n_ubatch=64, n_seq_max=4, n_threads=1,
        flash_attn=flash == "1", type_k=kv, type_v=kv,
    )  # fmt: skip
    b = load_backend("llama", path, params)
    rng = random.Random(f"{flash} {kv} {arch}")
    tokens = [rng.randrange(32, 127) for _ in range(N)]
    other = [rng.randrange(32, 127) for _ in range(N)]
    blocks = b.info.memory == "blocks"
    read(b, tokens, 0)
    if blocks:
        blob = bytearray(b.block_bytes(N))
        b.save_block(0, 0, N, blob)
        head = 8 + 8 + 12 * N + 8 + 12
    else:
        blob = bytearray(b.checkpoint_bytes(0))
        b.save_checkpoint(0, blob)
        head = 8 + 8 + 12 * N + 8 + 12 if arch == "gemma3" else 40
    b.seq_remove(0, 0)
    good = bytes(blob)

    def restore(payload: bytes) -> bool:
        try:
            if blocks:
                b.restore_block(0, 0, N, payload)
            else:
                b.restore_checkpoint(0, N, payload)
        except StateRefused:
            return False
        return True

    expected = greedy_tokens(b, other, 3)
    found = {"refused": 0, "taken": 0, "others_changed": 0, "good_refused": 0}
    for _ in range(int(n)):
        if restore(forge(good, head, rng)):
            found["taken"] += 1
            beside = greedy_tokens(b, other, 3)
            greedy_tokens(b, tokens[:1], 0, N)  # its own request: whatever comes
            found["others_changed"] += (beside != expected) + (
                greedy_tokens(b, other, 3) != expected
            )
        else:
            found["refused"] += 1
            assert b.seq_range(0) is None
        b.seq_remove(0, 0)
    found["good_refused"] = not restore(good)
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])) + "\n")
