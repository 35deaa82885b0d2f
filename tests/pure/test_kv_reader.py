"""Restoring into the stub backend: what is good is used, what is bad is reported, nothing lies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from actors import messages as m
from actors.engine.request_builder import open_request
from actors.engine.room_policy import admit
from actors.kv.prompt_logits import append_logits
from actors.kv.reader import RowReader
from actors.kv.request_cache import RequestCache
from actors.kv.restore_cost import Piece, Rates
from actors.kv.row_plan import RowPlan
from cache import keys, refs, tokens
from cache.answers import BlockRef
from cache.arena import SlabWriter, create_arena
from cache.policy import SAVE_ALL, RestorePolicy
from cache.rows import RowHeader, RowIdentity, row_bytes
from native.backend import Batch
from native.params import ModelParams
from native.stub import StubBackend
from supervision import Address

pytestmark = pytest.mark.pure

ROOT = b"n" * 32
IDS = [(7 * i) % 250 for i in range(200)]
BLOCK = keys.BLOCK_TOKENS


@pytest.fixture
def backend() -> StubBackend:
    return StubBackend.load("stub", ModelParams(n_ctx=512))


@pytest.fixture
def arena(tmp_path: Path) -> Path:
    path = tmp_path / "arena"
    with path.open("w+b") as file:
        create_arena(file.fileno(), 1 << 20)
    return path


def request_for(backend: StubBackend, ids: list[int]) -> RequestCache:
    complete = m.Complete("ref", "stub", m.TokenPrompt(tokens.pack(ids)))
    request = open_request(m.Run("id", Address("127.0.0.1", 1), complete), backend, now=0.0)
    admission = admit(len(ids), 8, 512)
    request.line.placed(0, (), admission.n_most)
    request.start(admission, backend, 0.0)
    return request.cache


def save(backend: StubBackend, arena: Path) -> list[BlockRef]:
    """Decode ``IDS`` on a sequence and store its three full blocks."""
    batch = Batch()
    batch.extend_prefill(IDS, 0, 5, logits_last=False)
    backend.decode(batch)
    found, parent, offset = [], ROOT, 4096
    for start in range(0, 3 * BLOCK, BLOCK):
        packed = tokens.pack(IDS[start : start + BLOCK])
        payload = backend.block_bytes(BLOCK)
        size = row_bytes(BLOCK, payload)
        key = keys.child_key(parent, packed)
        with SlabWriter(str(arena), offset, size) as slab:
            slab.begin(RowHeader(RowIdentity(key, parent, ROOT, start, packed), payload))
            backend.save_block(5, start, start + BLOCK, slab.payload)
            slab.publish()
        found.append(BlockRef(key, "ram", offset, size, start, BLOCK, BLOCK))
        parent, offset = key, offset + -(-size // 4096) * 4096
    backend.seq_remove(5, 0, -1)
    return found


def resolve(blocks: list[BlockRef], n_tokens: int) -> m.PrefixResolved:
    return m.PrefixResolved("ref", n_tokens, refs.pack_blocks(blocks), 1, "not_stored")


class Reader:
    """A reader whose results are applied as the engine does it."""

    def __init__(
        self, backend: StubBackend, arena: Path, root: bytes = ROOT, rates: Rates | None = None
    ) -> None:
        self.plan = RowPlan(
            backend.info, backend.block_bytes, root=root, label="m", policy=SAVE_ALL
        )
        self.reader = RowReader(
            backend, plan=self.plan, arena_path=str(arena), tier_dirs={}, rates=rates
        )

    def restore(self, request: RequestCache, found: m.PrefixResolved) -> list[m.RowRejected]:
        restored = self.reader.restore(request, found)
        request.was_restored(restored)
        return list(restored.refused)


def reader(backend: StubBackend, arena: Path) -> Reader:
    return Reader(backend, arena)


def damage(arena: Path, block: BlockRef, at: int) -> None:
    """Overwrite bytes of a payload; rows in the arena carry no digest of it."""
    head = row_bytes(BLOCK, 0)
    with arena.open("r+b") as file:
        file.seek((block.location or 0) + head + at)
        file.write(b"\xff" * 8)


def test_all_rows_are_restored_and_the_last_token_is_left(
    backend: StubBackend, arena: Path
) -> None:
    blocks = save(backend, arena)
    request = request_for(backend, IDS[: 3 * BLOCK])
    assert reader(backend, arena).restore(request, resolve(blocks, 3 * BLOCK)) == []
    assert request.line.n_kv == request.line.n_reused == 3 * BLOCK - 1
    assert backend.seq_range(0) == (0, 3 * BLOCK - 2)
    assert request.source == "ram"
    assert request.n_stored_blocks == 3


def test_a_row_that_does_not_restore_is_reported_and_those_before_it_are_used(
    backend: StubBackend, arena: Path
) -> None:
    blocks = save(backend, arena)
    damage(arena, blocks[1], 0)
    request = request_for(backend, IDS)
    rejected = reader(backend, arena).restore(request, resolve(blocks, 3 * BLOCK))
    assert [one.key for one in rejected] == [blocks[1].key]
    assert request.line.n_kv == BLOCK
    assert backend.seq_range(0) == (0, BLOCK - 1)
    assert str(request.miss) == "row_rejected"


def test_a_row_of_other_tokens_is_never_restored(backend: StubBackend, arena: Path) -> None:
    blocks = save(backend, arena)
    other = [*IDS[:70], 249, *IDS[71:]]
    request = request_for(backend, other)
    rejected = reader(backend, arena).restore(request, resolve(blocks, 3 * BLOCK))
    assert [one.key for one in rejected] == [
        keys.child_key(blocks[0].key, tokens.pack(other[64:128]))
    ]
    assert request.line.n_kv == BLOCK


def test_a_row_of_another_namespace_is_never_restored(backend: StubBackend, arena: Path) -> None:
    blocks = save(backend, arena)
    request = request_for(backend, IDS)
    other = Reader(backend, arena, root=b"o" * 32)
    assert len(other.restore(request, resolve(blocks, 3 * BLOCK))) == 1
    assert request.line.n_kv == 0
    assert backend.seq_range(0) is None


def test_a_cut_of_the_last_row_leaves_exactly_what_was_asked(
    backend: StubBackend, arena: Path
) -> None:
    blocks = save(backend, arena)
    cut = replace(blocks[2], n_used=10)
    request = request_for(backend, [*IDS[: 2 * BLOCK + 10], 1, 2, 3])
    assert reader(backend, arena).restore(request, resolve([*blocks[:2], cut], 138)) == []
    assert request.line.n_kv == 138
    assert backend.seq_range(0) == (0, 137)
    assert request.n_stored_blocks == 2


def test_no_room_for_the_last_row_costs_only_that_row(arena: Path) -> None:
    backend = StubBackend.load("stub", ModelParams(n_ctx=256))
    blocks = save(backend, arena)
    batch = Batch()
    batch.extend_prefill([9] * 100, 0, 3, logits_last=False)
    backend.decode(batch)  # cells of another sequence: 156 are left, three rows need 192
    request = request_for(backend, IDS)
    assert reader(backend, arena).restore(request, resolve(blocks, 3 * BLOCK)) == []
    assert request.line.n_kv == 2 * BLOCK
    assert backend.seq_range(0) == (0, 2 * BLOCK - 1)


def test_the_tokens_of_a_parent_are_read_from_its_rows(backend: StubBackend, arena: Path) -> None:
    blocks = save(backend, arena)
    found = m.PrefixResolved("ref", 3 * BLOCK, refs.pack_blocks(blocks, with_keys=True), 1, None)
    assert reader(backend, arena).reader.read_parent(found) == tokens.TokenIds(IDS[: 3 * BLOCK])
    nowhere = refs.pack_blocks([replace(blocks[0], location=8)], with_keys=True)
    damaged = m.PrefixResolved("ref", 3 * BLOCK, nowhere, 1, None)
    assert reader(backend, arena).reader.read_parent(damaged) is None


def save_with_logits(
    backend: StubBackend, arena: Path, n_tokens: int, n_prompt: int | None = None
) -> list[BlockRef]:
    """The row in which a prompt ends carries the logits of the prompt's last position."""
    n_prompt = n_prompt or n_tokens
    found = save(backend, arena)[: n_tokens // BLOCK]
    batch = Batch()
    row = batch.extend_prefill(IDS[:n_prompt], 0, 5, logits_last=True)
    assert row is not None
    backend.decode(batch)
    logits = backend.logits(row)
    if n_tokens > n_prompt:
        batch.clear()
        batch.extend_prefill(IDS[n_prompt:n_tokens], n_prompt, 5, logits_last=False)
        backend.decode(batch)
    start = len(found) * BLOCK
    packed = tokens.pack(IDS[start:n_tokens])
    kv_bytes = backend.block_bytes(n_tokens - start)
    payload = kv_bytes + 4 * backend.info.n_vocab + 4
    size, offset = row_bytes(n_tokens - start, payload), 1 << 19
    key = keys.child_key(found[-1].key, packed)
    with SlabWriter(str(arena), offset, size) as slab:
        slab.begin(RowHeader(RowIdentity(key, found[-1].key, ROOT, start, packed), payload))
        backend.save_block(5, start, n_tokens, slab.payload)
        slab.payload[kv_bytes:] = append_logits(n_prompt - start, logits)
        slab.publish()
    backend.seq_remove(5, 0, -1)
    n_own = n_tokens - start
    return [*found, BlockRef(key, "ram", offset, size, start, n_own, n_own)]


@pytest.mark.parametrize("n_stored", [150, 170])
def test_a_row_with_the_logits_of_the_prompts_end_leaves_nothing_to_decode(
    backend: StubBackend, arena: Path, n_stored: int
) -> None:
    """Also a row that continues with the reply, of which only the prompt's part is restored."""
    *blocks, last = save_with_logits(backend, arena, n_stored, 150)
    blocks.append(replace(last, n_used=150 - last.start))
    request = request_for(backend, IDS[:150])
    assert reader(backend, arena).restore(request, resolve(blocks, 150)) == []
    assert request.line.n_kv == request.line.n_reused == 150
    assert request.line.n_pending == 0
    assert request.first_logits is not None
    cold = StubBackend.load("stub", ModelParams(n_ctx=512))
    batch = Batch()
    row = batch.extend_prefill(IDS[:150], 0, 0, logits_last=True)
    assert row is not None
    cold.decode(batch)
    assert request.first_logits == cold.logits(row)


def test_logits_of_a_row_that_goes_beyond_the_prompt_are_not_used(
    backend: StubBackend, arena: Path
) -> None:
    blocks = save_with_logits(backend, arena, 150)
    request = request_for(backend, IDS[:140])
    cut = [*blocks[:2], replace(blocks[2], n_used=12)]
    assert reader(backend, arena).restore(request, resolve(cut, 140)) == []
    assert (request.line.n_kv, request.first_logits) == (139, None)
    longer = request_for(backend, [*IDS[:150], 3])
    backend.seq_remove(0, 0, -1)
    assert reader(backend, arena).restore(longer, resolve(blocks, 150)) == []
    assert (longer.line.n_kv, longer.first_logits) == (150, None)


def test_rows_continue_from_what_is_shared_already(backend: StubBackend, arena: Path) -> None:
    blocks = save(backend, arena)
    batch = Batch()
    batch.extend_prefill(IDS[:100], 0, 3, logits_last=False)
    backend.decode(batch)
    request = request_for(backend, IDS)
    backend.seq_copy(3, 0, 0, 100)
    request.line.shared(100)
    assert reader(backend, arena).restore(request, resolve(blocks, 3 * BLOCK)) == []
    assert (request.line.n_live, request.line.n_kv) == (64, 192)
    assert backend.seq_range(0) == (0, 191)
    assert backend.seq_range(3) == (0, 99)  # the other one keeps all of its own
    shorter = request_for(backend, IDS)
    backend.seq_remove(0, 0, -1)
    backend.seq_copy(3, 0, 0, 100)
    shorter.line.shared(100)
    assert reader(backend, arena).restore(shorter, resolve(blocks[:1], 64)) == []
    assert (shorter.line.n_kv, shorter.n_stored_blocks) == (100, 1)  # live goes further


def test_rows_that_are_slower_to_restore_than_to_compute_are_left_alone(
    backend: StubBackend, arena: Path
) -> None:
    blocks = save(backend, arena)
    rates = Rates(RestorePolicy(min_samples=1, min_saved_s=0.001))
    rates.record_step(100, 0.001)
    rates.record_restore([Piece("disk", 1000, 64)], 1.0)
    slow = [*blocks[:2], replace(blocks[2], tier="disk", location=None)]
    careful = Reader(backend, arena, rates=rates)
    request = request_for(backend, IDS)
    assert careful.restore(request, resolve(slow, 3 * BLOCK)) == []
    assert request.line.n_kv == 2 * BLOCK
    assert request.source == "ram"
    assert str(request.miss) == "restore_would_be_slower:128"
    assert request.n_stored_blocks == 3  # it is stored, and not written again
    backend.seq_remove(0, 0, -1)
    request = request_for(backend, IDS)
    only = [replace(block, tier="disk", location=None) for block in blocks]
    assert careful.restore(request, resolve(only, 3 * BLOCK)) == []
    assert (request.line.n_kv, request.line.n_reused, request.source) == (0, 0, "none")
    assert str(request.miss) == "restore_would_be_slower:0"
    assert request.n_stored_blocks == 3
