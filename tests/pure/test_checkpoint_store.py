"""Checkpoints: where they are taken; no order, damage or lack of room gives a wrong result."""

from __future__ import annotations

import queue
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import messages as m
from actors.engine.commands import Close
from actors.engine.engine import build_engine
from actors.kv.checkpoint_plan import (
    FIRST_RUNG_BLOCKS,
    TIP,
    Stops,
    blocks_between,
    is_rung,
    query,
    tip,
)
from actors.kv.checkpoint_store import CheckpointStore
from actors.kv.open_store import open_store
from actors.kv.restore_cost import Piece, Rates
from cache import refs, tokens
from cache.allocation import PAGE_BYTES
from cache.answers import RAM, MissReason, Reservation, RowRequest
from cache.arena import create_arena, mark_free
from cache.index import CacheIndex
from cache.policy import SAVE_ALL
from cache.rows import SaveReason, parse_header
from native._stub_cells import CELL_BYTES
from native.backend import Batch, MemoryKind
from native.errors import DecodeAborted
from native.params import ModelParams
from native.stub import END, StubBackend
from supervision import Address
from tests.support.policies import RESTORES_ALWAYS

pytestmark = pytest.mark.pure

ROOT = b"n" * 32
HOLDER = "model#1"


# ── where ────────────────────────────────────────────────────────────────────────────────────────


@given(
    n_prompt=st.integers(1, 700),
    stored=st.integers(0, 12),
    grows=st.booleans(),
    has_tip=st.booleans(),
    restarts=st.frozensets(st.integers(0, 11), max_size=3),
)
def test_stops_are_the_last_boundary_the_rungs_restarts_and_the_tip(
    n_prompt: int, stored: int, grows: bool, has_tip: bool, restarts: frozenset[int]
) -> None:
    stops = Stops(n_prompt, 64, grows, stored, has_tip, restarts)
    walked, at = [], 0
    while (found := stops.after(at)) is not None:
        walked.append(found)
        at = found
    last = n_prompt - 1
    boundaries = {
        blocks * 64
        for blocks in range(stored + 1, last // 64 + 1)
        if blocks == last // 64 or is_rung(blocks, grows) or blocks in restarts
    }
    expected = boundaries | ({last} if last >= 1 and not has_tip else set())
    assert walked == sorted(expected)
    assert all(stops.is_stop(position) for position in walked)


def test_rungs_reach_half_of_any_shared_beginning_and_cost_twice_the_last_at_most() -> None:
    for length in range(FIRST_RUNG_BLOCKS, 600):
        rungs = [blocks for blocks in range(1, length + 1) if is_rung(blocks, grows=True)]
        assert 2 * rungs[-1] > length
        assert sum(rungs) < 2 * rungs[-1]
        dense = [blocks for blocks in range(1, length + 1) if is_rung(blocks, grows=False)]
        assert length - dense[-1] < FIRST_RUNG_BLOCKS
        assert set(rungs) <= set(dense)


def test_large_states_are_kept_less_often_while_a_reply_grows() -> None:
    assert [blocks_between(mib << 20) for mib in (0, 1, 8, 15, 16, 100)] == [1, 1, 1, 1, 2, 12]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=300))
def test_a_query_is_the_blocks_of_a_prompt_and_its_tip(ids: list[int]) -> None:
    asked = query(ids, 64)
    at = (len(ids) - 1) // 64 * 64
    assert asked[:at] == ids[:at]
    assert asked[at:] == tip(ids, 64) == [TIP, *ids[at:-1]]
    assert len(tip(ids, 64)) <= 64


# ── a whole engine with its cache, in one thread ─────────────────────────────────────────────────


class Cache:
    """What cache_meta does, without a process: answers at once."""

    def __init__(self, path: Path, budget: int) -> None:
        self.path = path
        with path.open("w+b") as file:
            create_arena(file.fileno(), budget)
        self.index = CacheIndex(budgets={RAM: budget}, page_bytes=PAGE_BYTES)
        self.now = 0.0
        self.slabs: dict[bytes, tuple[int, int]] = {}
        self.rejected = 0

    def answer(self, message: object) -> object | None:
        self.now += 1.0
        match message:
            case m.LookupPrefix():
                assert isinstance(message.tokens, bytes)
                found = self.index.lookup(self.now, HOLDER, ROOT, message.tokens)
                packed = refs.pack_blocks(found.blocks)
                return m.PrefixResolved(
                    message.ref, found.n_tokens, packed, found.lease, found.miss
                )
            case m.ReserveRows():
                return self._reserve(message)
            case m.RowsWritten():
                for key in message.published:
                    self._free(self.index.publish(self.now, HOLDER, key).evicted)
                for key in message.abandoned:
                    self._free(self.index.abandon(HOLDER, key))
            case m.ReleaseLease(lease):
                self._free(self.index.release(lease))
            case m.RowRejected(key, tier):
                self.rejected += 1
                self._free(self.index.drop_location(key, tier))
        return None

    def _reserve(self, ask: m.ReserveRows) -> m.RowsReserved:
        wanted = [
            RowRequest(row.identity(ROOT), row.row_bytes, SaveReason(ask.reason))
            for row in ask.rows
        ]
        answers, evicted = self.index.reserve(self.now, HOLDER, wanted)
        self._free(evicted)
        granted = [one for one in answers if isinstance(one, Reservation)]
        for one in granted:
            assert one.offset is not None
            self.slabs[one.key] = (one.offset, one.row_bytes)
        refused = [one for one in answers if not isinstance(one, Reservation)]
        return m.RowsReserved(
            ask.ref,
            1,
            tuple((one.key, one.offset or 0) for one in granted),
            tuple((one.key, one.reason) for one in refused),
        )

    def _free(self, evicted: object) -> None:
        for gone in evicted:  # type: ignore[attr-defined]
            self.slabs.pop(gone.key, None)
            mark_free(str(self.path), gone.location)

    def damage(self, rng: random.Random) -> None:
        """Overwrite a cell of one stored state: no digest guards it in memory."""
        large = [slab for slab in self.slabs.values() if slab[1] > PAGE_BYTES]
        if not large:
            return
        offset, size = rng.choice(large)
        with self.path.open("r+b") as file:
            file.seek(offset)
            header = parse_header(file.read(size))
            file.seek(offset + header.payload_offset + 16 + CELL_BYTES * rng.randrange(20))
            file.write(b"\xff" * 8)


class Bench:
    """Asks one engine, one prompt after the other; the reply and how it was served."""

    def __init__(self, cache: Cache) -> None:
        backend = StubBackend.load("uncuttable", ModelParams(n_ctx=2048, n_batch=96))
        self.cache, self.backend = cache, backend
        self.commands: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.store = store = open_store(
            backend,
            root=ROOT,
            holder=HOLDER,
            label="stub",
            arena_path=str(cache.path),
            tier_dirs={},
            granted_by=lambda: 1,
            policy=replace(SAVE_ALL, restore=RESTORES_ALWAYS),
        )
        self.engine = build_engine(backend, store, self.commands, self._send, max_queue=9)

    def _send(self, target: object, message: object) -> None:
        if target == "cache_meta":
            answer = self.cache.answer(message)
            if answer is not None:
                self.commands.put(answer)
            return
        match message:
            case m.TokensDelivered(tokens=packed):
                self.said += tokens.unpack(packed)
            case m.Completed():
                self.done = message
            case m.RequestEnded():
                self.next_request()

    def play(self, script: object) -> None:
        self.script = script
        self.said: list[int] = []
        self.done: m.Completed | None = None
        self.commands.put(next(script))  # type: ignore[call-overload]
        self.engine.run()

    def next_request(self) -> None:
        said, done, self.said, self.done = self.said, self.done, [], None
        try:
            self.commands.put(self.script.send((said, done)))  # type: ignore[attr-defined]
        except StopIteration:
            self.commands.put(Close(m.FailReason.MODEL_UNLOADED, "the end"))


def run(ids: list[int], n: int, stop: tuple[str, ...] = ()) -> m.Run:
    complete = m.Complete("ref", "stub", m.TokenPrompt(tokens.pack(ids)), max_tokens=n, stop=stop)
    return m.Run("id", Address("127.0.0.1", 1), complete)


def truth(ids: list[int], n: int) -> list[int]:
    """The likeliest continuation, computed from nothing."""
    b = StubBackend.load("plain", ModelParams(n_ctx=2048, n_batch=2048))
    batch, out = Batch(), []
    row = batch.extend_prefill(ids, 0, 0, logits_last=True)
    assert row is not None
    for _ in range(n):
        b.decode(batch)
        logits = b.logits(row)
        token = max(range(len(logits)), key=logits.__getitem__)
        if token == END:
            break
        out.append(token)
        batch.clear()
        row = batch.add(token, len(ids) + len(out) - 1, 0, True)
    return out


@pytest.fixture
def arena(tmp_path: Path) -> Path:
    return tmp_path / "arena"


def test_each_way_to_be_warm_reaches_its_checkpoint(arena: Path) -> None:
    """An exact repeat, a next turn, an edit, a shared beginning; with the same reply as cold."""
    bench = Bench(Cache(arena, 8 << 20))
    rng = random.Random(3)
    ids = [rng.randrange(32, 127) for _ in range(700)]
    first = ids[:301]

    def script():  # type: ignore[no-untyped-def]
        cases = []
        said, done = yield run(first, 60)
        cases.append((first, 60, 0, said, done))
        turn = [*first, *said, *ids[400:430]]  # the reply has a state at its end only
        for prompt, reused in (
            (first, 300),
            (turn, 360),
            (turn, len(turn) - 1),
            ([*first, *said, *ids[600:603]], 360),  # it ends in the block in which the reply does
            ([*turn[:322], *ids[500:600]], 256),
            ([*first[:290], *ids[500:600]], 256),
            ([*first[:250], *ids[500:600]], 0),
            (ids[:1], 0),
            (ids[:1], 0),
            (ids[:3], 0),
            (ids[:3], 2),
            (ids[:65], 0),
            (ids[:65], 64),
            (ids[:64], 2),  # a shorter prompt's tip in the same block
            (ids[:64], 63),
            ([*ids[:64], 40, 41], 64),
            (ids[:130], 0),  # its blocks are links, and no tip lies in its last one
            (ids[:130], 129),
        ):
            said, done = yield run(prompt, 60)
            cases.append((prompt, 60, reused, said, done))
        for prompt, n, reused, said, done in cases:
            assert said == truth(prompt, n)
            assert done.usage.cached_tokens == reused, (len(prompt), reused)
            is_exact = reused and reused == len(prompt) - 1
            assert done.cache.hit.value == (
                "exact" if is_exact else "partial" if reused else "cold"
            )

    bench.play(script())
    bench.cache.index.check_integrity()
    assert bench.cache.rejected == 0
    assert bench.cache.index.snapshot().leases == 0


@pytest.mark.parametrize("seed", range(6))
def test_no_order_of_requests_no_damage_and_no_lack_of_room_gives_a_wrong_answer(
    arena: Path, seed: int
) -> None:
    """Conversations that grow, branch, stop early, repeat; also where the arena is too small."""
    rng = random.Random(seed)
    bench = Bench(Cache(arena, (60 if seed % 2 else 2000) * PAGE_BYTES))
    known: list[list[int]] = [[]]
    hits = 0

    def script():  # type: ignore[no-untyped-def]
        nonlocal hits
        for _ in range(40):
            ids = list(rng.choice(known))
            if rng.random() < 0.4:
                ids = ids[: rng.randrange(len(ids) + 1)]
            ids += [rng.randrange(32, 40) for _ in range(rng.choice((0, 1, 5, 64, 90, 200)))]
            ids = (ids or [33])[:900]
            n = rng.choice((1, 2, 20, 70))
            stop = ("a", "e!") if rng.random() < 0.3 else ()
            said, done = yield run(ids, n, stop)
            expected = truth(ids, n)
            assert said == expected[: len(said)]
            assert stop or said == expected
            hits += done.usage.cached_tokens > 0
            known.append([*ids, *said])
            bench.cache.index.check_integrity()
            if seed >= 4 and rng.random() < 0.6:
                bench.cache.damage(rng)

    bench.play(script())
    assert hits > 5
    assert (bench.cache.rejected > 0) == (seed >= 4)
    snapshot = bench.cache.index.snapshot()
    assert (snapshot.leases, snapshot.reservations) == (0, 0)
    assert (snapshot.evictions > 0) == bool(seed % 2)


def test_a_step_cut_short_is_computed_again_from_the_start(
    arena: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How far such a memory got is unknown, and it cannot be cut back."""
    bench = Bench(Cache(arena, 8 << 20))
    decode, calls = bench.backend.decode, 0

    def sometimes_aborted(batch: Batch) -> None:
        nonlocal calls
        calls += 1
        decode(batch)
        if calls in {2, 12, 40}:
            raise DecodeAborted

    monkeypatch.setattr(bench.backend, "decode", sometimes_aborted)
    ids = [random.Random(5).randrange(32, 127) for _ in range(301)]

    def script():  # type: ignore[no-untyped-def]
        for reused in (0, 300):
            said, done = yield run(ids, 50)
            assert said == truth(ids, 50)
            assert done.usage.cached_tokens == reused

    bench.play(script())
    assert calls > 100


def test_a_row_that_failed_can_be_stored_again_at_once(arena: Path) -> None:
    bench = Bench(Cache(arena, 8 << 20))
    ids = [random.Random(5).randrange(32, 127) for _ in range(301)]

    def script():  # type: ignore[no-untyped-def]
        yield run(ids, 20)
        for _ in range(2):
            for seed in range(60):  # every state, most of them more than once
                bench.cache.damage(random.Random(seed))
            for reused in (0, 300):
                said, done = yield run(ids, 20)
                assert said == truth(ids, 20)
                assert done.usage.cached_tokens == reused
            assert done.cache.hit.value == "exact"

    bench.play(script())
    assert bench.cache.rejected >= 4
    bench.cache.index.check_integrity()


def test_a_miss_has_the_place_where_the_prompt_diverges_from_what_is_stored(arena: Path) -> None:
    """Counted in tokens of the prompt, also in its last block, which is looked up as its tip."""
    bench = Bench(Cache(arena, 8 << 20))
    ids = [random.Random(5).randrange(32, 127) for _ in range(400)]

    def script():  # type: ignore[no-untyped-def]
        said, _ = yield run(ids[:301], 60)
        turn = [*ids[:301], *said, *ids[:30]]
        for prompt, reused, reason in (
            (ids[:301], 300, None),
            (turn, 360, "not_stored:360"),
            ([*turn[:322], 31, *ids[:99]], 256, "diverges:322"),
            ([*ids[:290], 31, *ids[:99]], 256, "diverges:290"),
            ([*ids[:299], 31, 32], 256, "diverges:299"),
            ([*ids[:301], 31], 300, "not_stored:300"),
        ):
            _, done = yield run(prompt, 1)
            assert (done.usage.cached_tokens, done.cache.miss_reason) == (reused, reason)

    bench.play(script())


class Slow(Rates):
    """Has learned that reading is slower than computing."""

    def worth_restoring(self, pieces: Sequence[Piece]) -> int:
        assert len(pieces) == 1, "a state stands for all tokens before it"
        return 0


def test_a_state_that_is_slower_to_restore_than_to_compute_is_left_alone(arena: Path) -> None:
    bench = Bench(Cache(arena, 8 << 20))
    ids = [random.Random(5).randrange(32, 127) for _ in range(301)]

    def script():  # type: ignore[no-untyped-def]
        yield run(ids, 5)
        assert isinstance(bench.store.rows, CheckpointStore)
        bench.store.rows.rates = Slow()
        said, done = yield run(ids, 5)
        assert said == truth(ids, 5)
        assert done.usage.cached_tokens == 0
        assert done.cache.miss_reason == "restore_would_be_slower:0"

    bench.play(script())


@pytest.mark.parametrize(
    ("memory", "has_arena", "why"),
    [
        ("checkpoint", True, None),
        ("checkpoint", False, MissReason.CACHE_OFF),
        ("none", True, MissReason.MODEL_CANNOT_BE_CUT),
    ],
)
def test_a_store_that_keeps_nothing_has_a_reason(
    arena: Path, memory: MemoryKind, has_arena: bool, why: MissReason | None
) -> None:
    backend = StubBackend.load("uncuttable", ModelParams())
    backend.info = replace(backend.info, memory=memory)
    store = open_store(
        backend,
        root=ROOT,
        holder=HOLDER,
        label="stub",
        arena_path=str(arena) if has_arena else None,
        tier_dirs={},
        granted_by=lambda: 1,
    )
    assert (store.unusable_because, store.is_usable) == (why, why is None)
