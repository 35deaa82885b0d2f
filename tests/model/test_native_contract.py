"""What every backend promises, run against the stub and against libllama.

``LLAMA_TEST_MODEL=path.gguf`` adds a real model. Tests about llama.cpp's own payload format and
its KV types are in test_native_llama.py.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from native import (
    Backend,
    BackendClosed,
    Batch,
    DecodeAborted,
    InvalidParam,
    InvalidToken,
    ModelParams,
    NoKvSpace,
    PromptTooLong,
    SamplingParams,
    StateRefused,
    load_backend,
)
from tests.support.gguf_files import tiny_llama

pytestmark = pytest.mark.model

PARAMS = ModelParams(n_ctx=512, n_batch=128, n_ubatch=64, n_seq_max=4, n_threads=1)
REAL = os.environ.get("LLAMA_TEST_MODEL")
in_blocks = pytest.mark.usefixtures("kept_in_blocks")
"""For a real model too, if it promises that; others have ``test_native_checkpoints``."""
N = 70  # tokens of the usual prompt: one block of 64 and a tail


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@dataclass
class Kit:
    """A backend, and the way to get another one of the same kind."""

    backend: Backend
    load: Callable[[ModelParams], Backend]

    def tokens(self, n: int, seed: int = 1) -> list[int]:
        """Valid ids that are neither special nor rare, the same for equal arguments."""
        rng = random.Random(seed)
        return [rng.randrange(32, 127) for _ in range(n)]


@pytest.fixture(params=["stub", "llama", *(["real"] if REAL else [])])
def kit(request: pytest.FixtureRequest, tiny: Path) -> Iterator[Kit]:
    loaded: list[Backend] = []

    def load(params: ModelParams) -> Backend:
        kind, path = {"stub": ("stub", "stub"), "llama": ("llama", tiny), "real": ("llama", REAL)}[
            request.param
        ]
        backend = load_backend(kind, path, params)
        loaded.append(backend)
        return backend

    yield Kit(load(PARAMS), load)
    for backend in loaded:
        backend.close()


@pytest.fixture
def kept_in_blocks(kit: Kit) -> None:
    if not kit.backend.info.can_cut:
        pytest.skip(f"{REAL} is kept as checkpoints of whole sequences")


def prefill(b: Backend, tokens: list[int], seq: int = 0, start: int = 0) -> int:
    """Decode ``tokens`` in chunks of n_batch; return the row of the last one's logits."""
    batch, row = Batch(), -1
    for i in range(0, len(tokens), b.info.n_batch):
        batch.clear()
        chunk = tokens[i : i + b.info.n_batch]
        found = batch.extend_prefill(chunk, start + i, seq, True)
        assert found is not None
        row = found
        b.decode(batch)
    return row


def greedy(b: Backend, row: int, n: int, seq: int = 0) -> list[int]:
    """Continue ``seq`` by ``n`` likeliest tokens from the logits of ``row``."""
    sampler, batch, out = b.new_sampler(SamplingParams()), Batch(), []
    for index in range(n):
        token = b.sample(row, sampler, index)
        out.append(token)
        held = b.seq_range(seq)
        assert held is not None
        batch.clear()
        row = batch.add(token, held[1] + 1, seq, True)
        b.decode(batch)
    return out


def save(b: Backend, seq: int, start: int, end: int) -> bytearray:
    payload = bytearray(b.block_bytes(end - start))
    assert b.save_block(seq, start, end, payload) == len(payload)
    return payload


def cold(b: Backend, tokens: list[int], n: int, seq: int = 3) -> list[int]:
    """Continue ``tokens`` from nothing, in a sequence that is emptied before and after."""
    b.seq_remove(seq, 0)
    out = greedy(b, prefill(b, tokens, seq), n, seq)
    b.seq_remove(seq, 0)
    return out


# --- text ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "Hello there", "größe 🎉\n\ttab", "<s> is just text </s>", "a" * 500]
)
def test_text_survives_tokenising(kit: Kit, text: str) -> None:
    tokens = kit.backend.tokenize(text, add_special=False)
    assert kit.backend.detokenize(tokens).decode().lstrip(" ") == text.lstrip(" ")
    assert all(0 <= token < kit.backend.info.n_vocab for token in tokens)


def test_a_text_begins_with_the_begin_token_only_when_asked(kit: Kit) -> None:
    info = kit.backend.info
    plain = kit.backend.tokenize("x", add_special=False)
    special = kit.backend.tokenize("x")
    assert special == ([info.bos_token, *plain] if info.add_bos else plain)


def test_detokenising_is_joining_pieces(kit: Kit) -> None:
    b = kit.backend
    tokens = b.tokenize("Grüße, 世界 🎉")
    for special in (False, True):
        pieces = [b.piece(token, special=special) for token in tokens]
        assert b.detokenize(tokens, special=special) == b"".join(pieces)


def test_control_tokens_are_silent_unless_asked_for(kit: Kit) -> None:
    end = min(kit.backend.info.eog_tokens)
    assert kit.backend.piece(end) == b""
    assert kit.backend.piece(end, special=True) != b""


def test_control_tokens_in_a_text_are_read_only_when_asked(kit: Kit) -> None:
    b = kit.backend
    end = min(b.info.eog_tokens)
    text = b.piece(end, special=True).decode()
    assert end not in b.tokenize(text, add_special=False)
    assert end in b.tokenize(text, add_special=False, parse_special=True)


def test_text_that_is_no_unicode_is_refused(kit: Kit) -> None:
    with pytest.raises(InvalidParam):
        kit.backend.tokenize("half \ud800 a character")


def test_pieces_of_unknown_tokens_are_refused(kit: Kit) -> None:
    for token in (-1, kit.backend.info.n_vocab):
        with pytest.raises(InvalidToken) as caught:
            kit.backend.piece(token)
        assert (caught.value.token, caught.value.n_vocab) == (token, kit.backend.info.n_vocab)


# --- decoding --------------------------------------------------------------------------------


def test_the_same_tokens_give_the_same_continuation(kit: Kit) -> None:
    tokens = kit.tokens(N)
    first = cold(kit.backend, tokens, 24)
    assert cold(kit.backend, tokens, 24) == first
    other = kit.load(PARAMS)
    assert cold(other, tokens, 24) == first


def test_a_changed_early_token_changes_the_logits(kit: Kit) -> None:
    b, tokens = kit.backend, kit.tokens(N)
    before = b.logits(prefill(b, tokens, 0))
    changed = [tokens[0] + 1, *tokens[1:]]
    assert b.logits(prefill(b, changed, 1)) != before


def test_sequences_in_one_batch_do_not_see_each_other(kit: Kit) -> None:
    b = kit.backend
    left, right = kit.tokens(20, seed=1), kit.tokens(20, seed=2)
    alone = [cold(b, left, 1)[0], cold(b, right, 1)[0]]
    batch, rows = Batch(), []
    for position in range(20):
        for seq, tokens in enumerate((left, right)):
            rows.append(batch.add(tokens[position], position, seq, position == 19))
    b.decode(batch)
    sampler = b.new_sampler(SamplingParams())
    assert [b.sample(row, sampler, 0) for row in rows[-2:]] == alone


def test_only_rows_that_asked_have_logits(kit: Kit) -> None:
    b, batch = kit.backend, Batch()
    silent = batch.add(65, 0, 0, False)
    wanted = batch.add(66, 1, 0, True)
    b.decode(batch)
    assert len(b.logits(wanted)) == b.info.n_vocab
    for row in (silent, -1, 2, 1 << 40):
        with pytest.raises(InvalidParam):
            b.logits(row)
    with pytest.raises(InvalidParam):
        b.sample(silent, b.new_sampler(SamplingParams()), 0)


def test_logits_of_an_earlier_decode_are_gone_after_a_failed_one(kit: Kit) -> None:
    b = kit.backend
    row = prefill(b, kit.tokens(4))
    b.request_abort()
    with pytest.raises(DecodeAborted):
        prefill(b, kit.tokens(4), seq=1)
    with pytest.raises(InvalidParam):
        b.logits(row)


def bad_batches(n_vocab: int, n_ctx: int) -> dict[str, tuple[list[tuple[int, int, int]], type]]:
    """Rows (token, position, seq) that no backend may hand on, for an empty memory."""
    return {
        "negative token": ([(-1, 0, 0)], InvalidToken),
        "token past the vocabulary": ([(n_vocab, 0, 0)], InvalidToken),
        "second token bad": ([(65, 0, 0), (1 << 30, 1, 0)], InvalidToken),
        "negative sequence": ([(65, 0, -1)], InvalidParam),
        "the scratch sequence": ([(65, 0, PARAMS.n_seq_max)], InvalidParam),
        "sequence 256": ([(65, 0, 256)], InvalidParam),
        "a gap": ([(65, 1, 0)], InvalidParam),
        "a repeat": ([(65, 0, 0), (65, 0, 0)], InvalidParam),
        "a negative position": ([(65, -1, 0)], InvalidParam),
        "nothing": ([], InvalidParam),
        "too many rows": ([(65, i, 0) for i in range(PARAMS.n_batch + 1)], InvalidParam),
    }


@pytest.mark.parametrize("case", bad_batches(1, 1))
def test_bad_rows_are_refused_and_nothing_is_decoded(kit: Kit, case: str) -> None:
    b = kit.backend
    rows, error = bad_batches(b.info.n_vocab, b.info.n_ctx)[case]
    batch = Batch()
    for token, position, seq in rows:
        batch.add(token, position, seq, True)
    with pytest.raises(error):
        b.decode(batch)
    assert [b.seq_range(seq) for seq in range(PARAMS.n_seq_max)] == [None] * PARAMS.n_seq_max
    assert len(cold(b, kit.tokens(8), 2)) == 2


def test_numbers_beyond_32_bits_are_refused_when_the_row_is_added(kit: Kit) -> None:
    batch = Batch()
    for row in ((1 << 40, 0, 0), (65, 1 << 40, 0), (65, 0, 1 << 40)):
        with pytest.raises(InvalidParam):
            batch.add(*row, True)
    with pytest.raises(InvalidParam):
        batch.extend_prefill([65], (1 << 31) - 1, 0, True)
    assert len(batch) == 0


def test_a_prompt_over_the_context_is_refused(kit: Kit) -> None:
    b = kit.backend
    tokens = kit.tokens(b.info.n_ctx)
    prefill(b, tokens)
    with pytest.raises(PromptTooLong) as caught:
        prefill(b, [65], start=len(tokens))
    assert (caught.value.n_tokens, caught.value.n_ctx) == (b.info.n_ctx + 1, b.info.n_ctx)


def test_a_full_pool_is_no_kv_space_and_room_returns_with_removal(kit: Kit) -> None:
    b = kit.backend
    prefill(b, kit.tokens(b.info.n_ctx - 10), seq=0)
    with pytest.raises(NoKvSpace):
        prefill(b, kit.tokens(20), seq=1)
    assert b.seq_range(1) is None
    assert b.seq_range(0) == (0, b.info.n_ctx - 11)
    assert b.seq_remove(0, 100)
    prefill(b, kit.tokens(20), seq=1)
    assert b.seq_range(1) == (0, 19)


# --- sampling --------------------------------------------------------------------------------


def test_sampling_depends_on_seed_and_index_only(kit: Kit) -> None:
    b = kit.backend
    row = prefill(b, kit.tokens(N))
    params = SamplingParams(temperature=5.0, seed=7)
    forward = [b.sample(row, b.new_sampler(params), i) for i in range(50)]
    one = b.new_sampler(params)
    backward = [b.sample(row, one, i) for i in reversed(range(50))]
    assert backward[::-1] == forward
    assert len(set(forward)) > 10
    assert [b.sample(row, b.new_sampler(replace(params, seed=8)), i) for i in range(50)] != forward


def test_temperature_zero_is_the_highest_logit(kit: Kit) -> None:
    b = kit.backend
    row = prefill(b, kit.tokens(N))
    logits = b.logits(row)
    assert b.sample(row, b.new_sampler(SamplingParams()), 0) == logits.index(max(logits))


@pytest.mark.parametrize(
    "cut",
    [{"top_k": 3}, {"top_p": 0.05}, {"min_p": 0.9}, {"top_k": 40, "top_p": 0.5, "min_p": 0.1}],
)
def test_cutting_keeps_only_the_likeliest(kit: Kit, cut: dict[str, float]) -> None:
    b = kit.backend
    row = prefill(b, kit.tokens(N))
    logits = b.logits(row)
    sampler = b.new_sampler(SamplingParams(temperature=1.0, seed=1, **cut))
    drawn = {b.sample(row, sampler, i) for i in range(200)}
    n = len(drawn)
    assert drawn == set(sorted(range(len(logits)), key=lambda t: -logits[t])[:n])
    assert n <= 40


def test_a_penalised_token_is_not_repeated_at_once(kit: Kit) -> None:
    b = kit.backend
    row = prefill(b, kit.tokens(N))
    before = b.logits(row)
    sampler = b.new_sampler(SamplingParams(repetition_penalty=50.0))
    first = b.sample(row, sampler, 0)
    sampler.accept(first)
    assert b.sample(row, sampler, 1) != first
    assert b.logits(row) == before, "the penalty must not stay in the logits"


def test_a_sampler_with_history_equals_one_that_accepted_it(kit: Kit) -> None:
    b = kit.backend
    row = prefill(b, kit.tokens(N))
    params = SamplingParams(repetition_penalty=50.0, repetition_window=3)
    history = [b.sample(row, b.new_sampler(params), 0), 65, 66, 67]
    walked = b.new_sampler(params)
    for token in history:
        walked.accept(token)
    told = b.new_sampler(params, history)
    assert b.sample(row, told, 0) == b.sample(row, walked, 0) == history[0], "outside the window"
    told.accept(history[0])
    assert b.sample(row, told, 0) != history[0]


def test_kept_logits_give_what_the_decode_gave(kit: Kit) -> None:
    b = kit.backend
    row = prefill(b, kit.tokens(N))
    kept = b.logits(row)
    before = kept.tobytes()
    for params in (
        SamplingParams(),
        SamplingParams(temperature=1.0, seed=3, repetition_penalty=2.0, logit_bias=((65, 3.0),)),
    ):
        expected = b.sample(row, b.new_sampler(params, kit.tokens(N)), 4)
        assert b.sample_from(kept, b.new_sampler(params, kit.tokens(N)), 4) == expected
        assert b.logprobs_from(kept, expected, 5) == b.logprobs(row, expected, 5)
    assert kept.tobytes() == before
    top = b.logprobs(row, 65, 3).top
    assert [token for token, _ in top] == sorted(range(len(kept)), key=lambda t: (-kept[t], t))[:3]
    assert 0 > top[0][1] >= top[1][1] >= top[2][1]
    with pytest.raises(InvalidParam, match="float32"):
        b.sample_from(kept[1:], b.new_sampler(SamplingParams()), 0)


def test_samplers_refuse_unknown_tokens_and_indices(kit: Kit) -> None:
    b = kit.backend
    row = prefill(b, kit.tokens(3))
    with pytest.raises(InvalidToken):
        b.new_sampler(SamplingParams(), [b.info.n_vocab])
    sampler = b.new_sampler(SamplingParams())
    with pytest.raises(InvalidToken):
        sampler.accept(-1)
    for index in (-1, 1 << 64):
        with pytest.raises(InvalidParam):
            b.sample(row, sampler, index)


# --- sequences -------------------------------------------------------------------------------


@in_blocks
def test_a_shared_prefix_continues_as_its_source_would(kit: Kit) -> None:
    b, tokens = kit.backend, kit.tokens(N)
    expected = cold(b, tokens, 16)
    prefill(b, [*tokens[:40], 99, 98, 97], seq=0)
    b.seq_copy(0, 1, 0, 40)
    assert b.seq_range(1) == (0, 39)
    assert greedy(b, prefill(b, tokens[40:], 1, 40), 16, 1) == expected
    assert b.seq_range(0) == (0, 42)


def test_shared_cells_count_once(kit: Kit) -> None:
    b = kit.backend
    prefill(b, kit.tokens(b.info.n_ctx - 50), seq=0)
    for seq in (1, 2):
        b.seq_copy(0, seq)
    prefill(b, kit.tokens(40), seq=3)
    assert b.seq_remove(0, 0)
    assert b.seq_range(1) == b.seq_range(2) == (0, b.info.n_ctx - 51)


def test_copies_that_do_not_fit_are_refused(kit: Kit) -> None:
    b = kit.backend
    prefill(b, kit.tokens(20), seq=0)
    prefill(b, kit.tokens(5), seq=1)
    for src, dst, start, end in (
        (0, 1, 0, 10),
        (0, 2, 5, 10),
        (0, 2, 0, 21),
        (0, 9, 0, 5),
        (9, 0, 0, 5),
    ):
        with pytest.raises(InvalidParam):
            b.seq_copy(src, dst, start, end)
    assert b.seq_range(1) == (0, 4)
    assert b.seq_range(2) is None


@in_blocks
def test_a_truncated_sequence_continues_as_if_it_had_ended_there(kit: Kit) -> None:
    b, tokens = kit.backend, kit.tokens(N)
    expected = cold(b, tokens, 16)
    prefill(b, [*tokens[:50], *kit.tokens(30, seed=9)], seq=0)
    assert b.seq_remove(0, 50)
    assert b.seq_range(0) == (0, 49)
    assert greedy(b, prefill(b, tokens[50:], 0, 50), 16) == expected


# --- blocks ----------------------------------------------------------------------------------


@in_blocks
def test_restored_blocks_continue_token_for_token_as_cold(kit: Kit) -> None:
    b, tokens = kit.backend, kit.tokens(200)
    expected = cold(b, tokens, 24)
    prefill(b, tokens[:-1], seq=0)
    blocks = [(i, min(64, 199 - i), save(b, 0, i, min(i + 64, 199))) for i in range(0, 199, 64)]
    b.seq_remove(0, 0)
    for start, n, payload in blocks:
        b.restore_block(1, start, n, payload)
    assert b.seq_range(1) == (0, 198)
    assert greedy(b, prefill(b, tokens[-1:], 1, 199), 24, 1) == expected
    b.seq_remove(1, 0)
    b.restore_blocks(2, blocks)
    assert greedy(b, prefill(b, tokens[-1:], 2, 199), 24, 2) == expected


@in_blocks
def test_blocks_move_to_another_backend_of_the_same_model(kit: Kit) -> None:
    tokens = kit.tokens(N)
    expected = cold(kit.backend, tokens, 16)
    prefill(kit.backend, tokens)
    payload = save(kit.backend, 0, 0, 64)
    other = kit.load(replace(PARAMS, n_ctx=1024, n_seq_max=2, n_batch=64))
    assert other.info.fingerprint == kit.backend.info.fingerprint
    assert other.info.kv_identity == kit.backend.info.kv_identity
    other.restore_block(0, 0, 64, payload)
    assert greedy(other, prefill(other, tokens[64:], 0, 64), 16) == expected


@in_blocks
def test_equal_prefixes_give_equal_payloads(kit: Kit) -> None:
    b, tokens = kit.backend, kit.tokens(40)
    prefill(b, tokens, seq=0)
    first = save(b, 0, 0, 40)
    other = kit.load(replace(PARAMS, n_seq_max=2))
    prefill(other, tokens, seq=1)
    assert save(other, 1, 0, 40) == first


@in_blocks
def test_a_restored_block_can_be_truncated_and_continued(kit: Kit) -> None:
    b, tokens = kit.backend, kit.tokens(N)
    expected = cold(b, tokens, 16)
    prefill(b, [*tokens[:40], *kit.tokens(24, seed=5)], seq=0)
    b.restore_block(1, 0, 64, save(b, 0, 0, 64))
    assert b.seq_remove(1, 40)
    assert greedy(b, prefill(b, tokens[40:], 1, 40), 16, 1) == expected


@in_blocks
def test_a_block_joins_a_live_prefix(kit: Kit) -> None:
    b, tokens = kit.backend, kit.tokens(100)
    expected = cold(b, tokens, 16)
    prefill(b, tokens[:96], seq=0)
    payload = save(b, 0, 32, 96)
    b.seq_copy(0, 1, 0, 32)
    b.restore_block(1, 32, 64, payload)
    assert greedy(b, prefill(b, tokens[96:], 1, 96), 16, 1) == expected


@in_blocks
def test_blocks_survive_a_fragmented_pool(kit: Kit) -> None:
    """Cells of one block then lie in several places, later positions before earlier ones."""
    b, tokens = kit.backend, kit.tokens(120)
    expected = cold(b, tokens, 16)
    prefill(b, kit.tokens(100, seed=2), seq=0)
    prefill(b, kit.tokens(100, seed=3), seq=1)
    b.seq_remove(0, 0, 50)
    prefill(b, tokens[:80], seq=2)
    b.seq_remove(0, 0)
    prefill(b, tokens[80:119], seq=2, start=80)
    blocks = [(s, e - s, save(b, 2, s, e)) for s, e in ((0, 64), (64, 119))]
    b.seq_remove(1, 20, 40)
    b.restore_blocks(3, blocks)
    assert greedy(b, prefill(b, tokens[119:], 3, 119), 16, 3) == expected


@in_blocks
def test_a_payload_may_lie_in_a_larger_buffer(kit: Kit) -> None:
    b = kit.backend
    prefill(b, kit.tokens(16))
    arena = bytearray(b.block_bytes(16) + 100)
    size = b.save_block(0, 0, 16, memoryview(arena)[50:])
    assert size == b.block_bytes(16)
    b.restore_block(1, 0, 16, memoryview(arena).toreadonly()[50 : 50 + size])
    assert b.seq_range(1) == (0, 15)
    assert save(b, 1, 0, 16) == arena[50 : 50 + size]


@in_blocks
def test_saving_what_is_not_there_is_refused(kit: Kit) -> None:
    b = kit.backend
    prefill(b, kit.tokens(20))
    room = bytearray(b.block_bytes(64))
    for seq, start, end in (
        (0, 0, 21),
        (0, -1, 5),
        (0, 5, 5),
        (0, 9, 5),
        (1, 0, 1),
        (7, 0, 1),
        (-1, 0, 1),
    ):
        with pytest.raises(InvalidParam):
            b.save_block(seq, start, end, room)
    with pytest.raises(InvalidParam):
        b.save_block(0, 0, 20, bytearray(b.block_bytes(20) - 1))
    with pytest.raises(InvalidParam):
        b.save_block(0, 0, 20, bytes(room))
    b.seq_remove(0, 5, 10)
    with pytest.raises(InvalidParam):
        b.save_block(0, 0, 20, room)


@in_blocks
def test_a_block_that_does_not_continue_the_sequence_is_refused(kit: Kit) -> None:
    b = kit.backend
    prefill(b, kit.tokens(64))
    payload = save(b, 0, 32, 64)
    for start, n in (
        (0, 32),
        (31, 32),
        (33, 32),
        (32, 31),
        (32, 33),
        (32, 0),
        (-1, 32),
        (1 << 40, 32),
    ):
        with pytest.raises(StateRefused):
            b.restore_block(1, start, n, payload)
    assert b.seq_range(1) is None
    prefill(b, kit.tokens(40), seq=1)
    with pytest.raises(StateRefused):
        b.restore_block(1, 32, 32, payload)
    assert b.seq_range(1) == (0, 39)


@in_blocks
def test_a_bad_block_in_a_chain_restores_none(kit: Kit) -> None:
    b = kit.backend
    prefill(b, kit.tokens(48))
    good, bad = save(b, 0, 0, 32), save(b, 0, 32, 48)
    with pytest.raises(StateRefused):
        b.restore_blocks(1, [(0, 32, good), (32, 16, bad[:-1])])
    assert b.seq_range(1) is None


@in_blocks
def test_hostile_payloads_are_refused_without_harm(kit: Kit) -> None:
    b, tokens = kit.backend, kit.tokens(N)
    expected = cold(b, tokens, 8)
    prefill(b, tokens)
    good = save(b, 0, 0, 64)
    b.seq_remove(0, 0)
    rng = random.Random(4)
    lengths = [0, 1, 15, 16, 17, *(rng.randrange(len(good)) for _ in range(60)), len(good) - 1]
    hostile = [bytes(good[:n]) for n in lengths]
    hostile += [
        bytes(good) + b"\0",
        rng.randbytes(len(good)),
        bytes(len(good)),
        b"\xff" * len(good),
    ]
    for payload in hostile:
        with pytest.raises(StateRefused):
            b.restore_block(0, 0, 64, payload)
    assert b.seq_range(0) is None
    prefill(b, kit.tokens(b.info.n_ctx), seq=1)  # no cell leaked
    b.seq_remove(1, 0)
    b.restore_block(0, 0, 64, good)
    assert greedy(b, prefill(b, tokens[64:], 0, 64), 8) == expected


def test_a_payload_of_another_kv_type_is_refused(kit: Kit) -> None:
    other = kit.load(replace(PARAMS, type_k="f32"))
    assert other.info.kv_identity != kit.backend.info.kv_identity
    prefill(other, kit.tokens(16))
    with pytest.raises(StateRefused):
        kit.backend.restore_block(0, 0, 16, save(other, 0, 0, 16))


@in_blocks
def test_a_restore_without_room_leaves_everything_as_it_was(kit: Kit) -> None:
    b = kit.backend
    prefill(b, kit.tokens(128))
    blocks = [(i, 64, save(b, 0, i, i + 64)) for i in (0, 64)]
    b.seq_remove(0, 0)
    prefill(b, kit.tokens(b.info.n_ctx - 100), seq=1)
    with pytest.raises(NoKvSpace):
        b.restore_blocks(0, blocks)
    assert b.seq_range(0) is None
    prefill(b, kit.tokens(100), seq=2)


def test_what_is_no_buffer_is_refused(kit: Kit) -> None:
    b = kit.backend
    prefill(b, kit.tokens(4))
    with pytest.raises(InvalidParam):
        b.save_block(0, 0, 4, "text")  # type: ignore[arg-type]
    with pytest.raises(InvalidParam):
        b.restore_block(1, 0, 4, None)  # type: ignore[arg-type]


# --- life ------------------------------------------------------------------------------------


def test_an_abort_stops_decoding_until_it_is_cleared(kit: Kit) -> None:
    b, tokens = kit.backend, kit.tokens(N)
    expected = cold(b, tokens, 4)
    b.request_abort()
    for _ in range(2):
        with pytest.raises(DecodeAborted):
            prefill(b, tokens)
    b.clear_abort()
    assert cold(b, tokens, 4, seq=0) == expected


@in_blocks
def test_a_closed_backend_refuses_every_call(kit: Kit) -> None:
    b = kit.backend
    row = prefill(b, kit.tokens(4))
    sampler, logits = b.new_sampler(SamplingParams()), b.logits(row)
    payload = save(b, 0, 0, 4)
    batch = Batch()
    batch.add(65, 4, 0, True)
    b.close()
    b.close()
    calls: list[Callable[[], object]] = [
        lambda: b.tokenize("x"),
        lambda: b.detokenize([65]),
        lambda: b.piece(65),
        lambda: b.decode(batch),
        lambda: b.new_sampler(SamplingParams()),
        lambda: b.sample(row, sampler, 0),
        lambda: b.sample_from(logits, sampler, 0),
        lambda: b.logprobs(row, 65, 1),
        lambda: b.logprobs_from(logits, 65, 1),
        lambda: sampler.accept(65),
        lambda: b.logits(row),
        lambda: b.seq_remove(0, 0),
        lambda: b.seq_copy(0, 1),
        lambda: b.seq_range(0),
        lambda: b.block_bytes(4),
        lambda: b.save_block(0, 0, 4, payload),
        lambda: b.restore_block(1, 0, 4, payload),
        lambda: b.restore_blocks(1, [(0, 4, payload)]),
        b.request_abort,
        b.clear_abort,
    ]
    for call in calls:
        with pytest.raises(BackendClosed):
            call()


def test_closing_while_another_thread_decodes_waits_for_it(kit: Kit) -> None:
    b = kit.backend
    began, outcome = threading.Event(), []

    def decode_until_closed() -> None:
        try:
            while True:
                began.set()
                cold(b, kit.tokens(64), 1)
        except BackendClosed:
            outcome.append("closed")

    thread = threading.Thread(target=decode_until_closed)
    thread.start()
    assert began.wait(60)
    b.close()
    thread.join(60)
    assert outcome == ["closed"]


def test_the_facts_about_a_model_are_consistent(kit: Kit) -> None:
    info = kit.backend.info
    assert info.n_ctx >= PARAMS.n_ctx
    assert info.n_batch == PARAMS.n_batch
    assert info.n_seq_max == PARAMS.n_seq_max
    assert len(info.fingerprint) == 32
    assert dict(info.kv_identity)["type_k"] == "f16"
    assert info.eog_tokens
    assert info.eog_tokens <= set(range(info.n_vocab))
    per_token = kit.backend.block_bytes(65) - kit.backend.block_bytes(64)
    assert info.kv_bytes_per_token <= per_token <= info.kv_bytes_per_token + 12


def test_progress_is_reported_while_loading(tiny: Path) -> None:
    for kind, path in (("stub", "stub"), ("llama", tiny)):
        told: list[float] = []
        load_backend(kind, path, PARAMS, progress=told.append).close()  # type: ignore[arg-type]
        assert told == sorted(told)
        assert told[-1] == 1.0


def test_an_unknown_kind_of_backend_is_refused() -> None:
    with pytest.raises(InvalidParam):
        load_backend("other", "x", PARAMS)  # type: ignore[arg-type]
