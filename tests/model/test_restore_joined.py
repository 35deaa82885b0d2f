"""Small blocks in a large context are joined before llama.cpp reads them: nothing may show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from native import Batch, ModelParams, NoKvSpace, StateRefused
from native.llama import LlamaBackend
from tests.support.gguf_files import tiny_llama

pytestmark = pytest.mark.model

PARAMS = ModelParams(n_ctx=4096, n_batch=512, n_ubatch=256, n_seq_max=3, n_threads=1)
LENGTHS = (64, 64, 20, 64, 1, 43)
TOKENS = [32 + (i * 37) % 90 for i in range(sum(LENGTHS))]
Load = Callable[..., LlamaBackend]
Block = tuple[int, int, bytearray]
JOINED_BELOW = 16
"""Bytes of a block per cell of the context; see native/shim/state.cpp."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("gguf") / "llama.gguf")


@pytest.fixture
def load(model: Path) -> Iterator[Load]:
    opened: list[LlamaBackend] = []

    def open_one(**changes: object) -> LlamaBackend:
        opened.append(LlamaBackend.load(model, replace(PARAMS, **changes)))
        return opened[-1]

    yield open_one
    for backend in opened:
        backend.close()


def filled(b: LlamaBackend) -> list[Block]:
    """Decode the tokens in turn with another sequence, so that cells alternate; save blocks."""
    batch = Batch()
    for at in range(0, len(TOKENS), 16):
        for seq in (0, 1):
            batch.clear()
            batch.extend_prefill(TOKENS[at : at + 16], at, seq, False)
            b.decode(batch)
    blocks: list[Block] = []
    start = 0
    for n in LENGTHS:
        payload = bytearray(b.block_bytes(n))
        b.save_block(0, start, start + n, payload)
        blocks.append((start, n, payload))
        start += n
    return blocks


def saved(b: LlamaBackend, seq: int) -> list[bytes]:
    out = []
    start = 0
    for n in LENGTHS:
        payload = bytearray(b.block_bytes(n))
        b.save_block(seq, start, start + n, payload)
        out.append(bytes(payload))
        start += n
    return out


def next_logits(b: LlamaBackend, seq: int) -> list[float]:
    batch = Batch()
    row = batch.add(65, len(TOKENS), seq, True)
    b.decode(batch)
    return list(b.logits(row))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"type_k": "q8_0", "type_v": "q8_0"},
        {"flash_attn": False},  # transposed values: never joined
        {"n_ctx": 768},  # too small a context to join anything
    ],
    ids=["f16", "q8_0", "transposed", "small"],
)
@pytest.mark.parametrize("n_first", [0, 2], ids=["from the start", "behind two blocks"])
def test_blocks_come_back_as_they_were_saved(load: Load, changes: dict[str, object], n_first: int):
    b = load(**changes)
    blocks = filled(b)
    expected = next_logits(b, 0)
    b.seq_remove(0, 0)
    b.seq_remove(1, 0)
    for block in blocks[:n_first]:
        b.restore_blocks(2, [block])
    b.restore_blocks(2, blocks[n_first:])
    assert b.seq_range(2) == (0, len(TOKENS) - 1)
    assert saved(b, 2) == [bytes(payload) for _, _, payload in blocks]
    assert next_logits(b, 2) == pytest.approx(expected, abs=1e-5)


def test_the_blocks_of_this_file_are_small_enough_to_be_joined(load: Load):
    b = load()
    assert b.block_bytes(64) < JOINED_BELOW * b.info.n_ctx
    small = load(n_ctx=768)
    assert small.block_bytes(64) > JOINED_BELOW * small.info.n_ctx


def test_one_bad_block_among_many_restores_none(load: Load):
    b = load()
    blocks = filled(b)
    bad = bytearray(blocks[4][2])
    bad[16] ^= 0xFF  # its first position
    blocks[4] = (blocks[4][0], blocks[4][1], bad)
    with pytest.raises(StateRefused):
        b.restore_blocks(2, blocks)
    assert b.seq_range(2) is None


def test_joined_blocks_without_room_leave_everything_as_it_was(load: Load):
    b = load()
    blocks = filled(b)
    batch = Batch()
    at = len(TOKENS)
    room = b.info.n_ctx - 2 * at
    while room > 100:  # leave fewer cells than the blocks need
        n = min(512, room - 100)
        batch.clear()
        batch.extend_prefill([40] * n, at, 1, False)
        b.decode(batch)
        at, room = at + n, room - n
    before = saved(b, 0)
    with pytest.raises(NoKvSpace):
        b.restore_blocks(2, blocks)
    assert b.seq_range(2) is None
    assert saved(b, 0) == before
    b.restore_blocks(2, blocks[:1])  # no cell was lost
