"""What only libllama can show: its payload format, KV types, model kinds, and loading."""

from __future__ import annotations

import gc
import itertools
import struct
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from native import (
    Batch,
    ContextCreateFailed,
    DecodeAborted,
    InvalidParam,
    ModelLoadFailed,
    ModelNotFound,
    ModelParams,
    NotAGguf,
    SamplingParams,
    StateRefused,
    TruncatedGguf,
)
from native.llama import LlamaBackend, cpu_features, model_build_id
from native.vendor import Lock
from tests.support.gguf_files import WINDOW, shaped_llama, tiny_llama

pytestmark = pytest.mark.model

PARAMS = ModelParams(n_ctx=512, n_batch=128, n_ubatch=64, n_seq_max=4, n_threads=1)
TOKENS = [32 + (i * 37) % 90 for i in range(70)]
Load = Callable[..., LlamaBackend]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    tiny_llama(folder / "llama.gguf")
    tiny_llama(folder / "other.gguf", n_layer=3, seed=5)
    tiny_llama(folder / "narrow.gguf", n_embd=64, n_ff=128)
    tiny_llama(folder / "gemma3.gguf", arch="gemma3", n_layer=6)
    tiny_llama(folder / "mamba.gguf", arch="mamba")
    return folder


@pytest.fixture
def load(models: Path) -> Iterator[Load]:
    opened: list[LlamaBackend] = []

    def open_one(name: str = "llama", **changes: object) -> LlamaBackend:
        backend = LlamaBackend.load(models / f"{name}.gguf", replace(PARAMS, **changes))
        opened.append(backend)
        return backend

    yield open_one
    for backend in opened:
        backend.close()


def prefill(b: LlamaBackend, tokens: list[int], seq: int = 0, start: int = 0) -> int:
    batch = Batch()
    row = batch.extend_prefill(tokens, start, seq, True)
    b.decode(batch)
    return row


def save(b: LlamaBackend, seq: int, start: int, end: int) -> bytearray:
    payload = bytearray(b.block_bytes(end - start))
    b.save_block(seq, start, end, payload)
    return payload


# --- KV types and layouts --------------------------------------------------------------------


@pytest.mark.parametrize(
    "kv",
    [
        {"flash_attn": False},
        {"flash_attn": False, "type_k": "f32", "type_v": "f32"},
        {"type_k": "q8_0", "type_v": "q8_0"},
        {"type_k": "q4_0", "type_v": "q5_1"},
        {"type_k": "bf16", "type_v": "q5_0"},
    ],
    ids=str,
)
def test_blocks_restore_exactly_in_every_kv_layout(load: Load, kv: dict[str, object]) -> None:
    b = load(**kv)
    assert b.info.can_cut
    prefill(b, TOKENS[:69])
    payload = save(b, 0, 0, 69)
    expected = b.logits(prefill(b, TOKENS[69:], 0, 69))
    b.seq_remove(0, 0)
    b.restore_block(1, 0, 69, payload)
    restored = b.logits(prefill(b, TOKENS[69:], 1, 69))
    assert max(abs(x - y) for x, y in zip(expected, restored, strict=True)) < 1e-5


def test_payloads_of_another_layout_or_model_are_refused(load: Load) -> None:
    b = load()
    prefill(b, TOKENS)
    own = save(b, 0, 0, 32)
    others = [
        load(flash_attn=False),
        load(type_k="q8_0", type_v="q8_0"),
        load("other"),
        load("narrow"),
    ]
    identities = {(o.info.fingerprint, o.info.kv_identity) for o in (b, *others)}
    assert len(identities) == len(others) + 1, "keys would not tell these apart"
    for other in others:
        prefill(other, TOKENS)
        with pytest.raises(StateRefused):
            b.restore_block(1, 0, 32, save(other, 0, 0, 32))
        with pytest.raises(StateRefused):
            other.restore_block(1, 0, 32, own)


def header_bytes(b: LlamaBackend, n: int) -> list[int]:
    """Offsets of every byte of a block of n tokens that is not KV data."""
    fixed = 16 + 12 * n + 8
    offsets = list(range(fixed))
    row = b.info.kv_bytes_per_token // (2 * b.info.n_layer)  # keys and values, all layers alike
    at = fixed
    for _ in range(2 * b.info.n_layer):
        offsets += range(at, at + 12)
        at += 12 + n * row
    assert at == b.block_bytes(n)
    return offsets


def test_every_altered_header_byte_is_refused(load: Load) -> None:
    b = load()
    prefill(b, TOKENS)
    good = save(b, 0, 0, 4)
    for offset, change in itertools.product(header_bytes(b, 4), (0x01, 0x80, 0xFF)):
        bad = bytearray(good)
        bad[offset] ^= change
        with pytest.raises(StateRefused):
            b.restore_block(1, 0, 4, bad)
    assert b.seq_range(1) is None
    b.restore_block(1, 0, 4, good)


def test_positions_may_come_in_any_order_but_each_once(load: Load) -> None:
    b = load()
    prefill(b, TOKENS)
    good = save(b, 0, 0, 3)
    places = [struct.unpack_from("<i", good, 16 + 12 * i)[0] for i in range(3)]
    assert places == [0, 1, 2]
    repeated = bytearray(good)
    struct.pack_into("<i", repeated, 16, 1)
    with pytest.raises(StateRefused):
        b.restore_block(1, 0, 3, repeated)
    for position in (-1, 3, 0x7FFFFFFF, -0x80000000):
        wrong = bytearray(good)
        struct.pack_into("<i", wrong, 16, position)
        with pytest.raises(StateRefused):
            b.restore_block(1, 0, 3, wrong)


# --- model kinds -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gemma3", "mamba"])
def test_models_whose_memory_cannot_be_cut_report_it(load: Load, name: str) -> None:
    b = load(name)
    assert not b.info.can_cut
    prefill(b, TOKENS)
    with pytest.raises(StateRefused):
        b.save_block(0, 0, 10, bytearray(1 << 20))
    with pytest.raises(StateRefused):
        b.restore_block(1, 0, 10, bytes(b.block_bytes(10)))
    with pytest.raises(StateRefused):
        b.seq_copy(0, 1, 0, 10)


@pytest.mark.parametrize("name", ["gemma3", "mamba"])
def test_a_whole_copy_continues_as_its_source_in_every_model(load: Load, name: str) -> None:
    b = load(name)
    prefill(b, TOKENS[:69])
    b.seq_copy(0, 1)
    source = b.logits(prefill(b, TOKENS[69:], 0, 69))
    copy = b.logits(prefill(b, TOKENS[69:], 1, 69))
    assert max(abs(x - y) for x, y in zip(source, copy, strict=True)) < 1e-5


def test_a_recurrent_state_refuses_to_be_shortened(load: Load) -> None:
    b = load("mamba")
    prefill(b, TOKENS)
    assert not b.seq_remove(0, 50)
    assert b.seq_remove(0, 0)
    assert b.seq_range(0) is None


def test_a_shortened_sliding_window_continues_as_cold(load: Load) -> None:
    b = load("gemma3")
    assert WINDOW < 50
    expected = b.logits(prefill(b, TOKENS[:51], 1))
    prefill(b, [*TOKENS[:50], *reversed(TOKENS[:14])])
    assert b.seq_remove(0, 50)
    again = b.logits(prefill(b, TOKENS[50:51], 0, 50))
    # One batch of 64 against one of 51: kernels round differently, then KV is stored in 16 bits.
    assert max(abs(x - y) for x, y in zip(expected, again, strict=True)) < 0.01
    other = b.logits(prefill(b, [*TOKENS[1:50], 65, *TOKENS[50:51]], 2))
    assert max(abs(x - y) for x, y in zip(expected, other, strict=True)) > 0.1


# --- sampling --------------------------------------------------------------------------------


def test_draws_follow_the_probabilities(load: Load) -> None:
    b = load()
    row = prefill(b, TOKENS)
    sampler = b.new_sampler(SamplingParams(temperature=1.0, top_k=2, seed=11))
    drawn = [b.sample(row, sampler, i) for i in range(2000)]
    logits = b.logits(row)
    first, second = sorted(range(len(logits)), key=lambda t: -logits[t])[:2]
    ratio = 2.718281828459045 ** (logits[first] - logits[second])
    assert set(drawn) == {first, second}
    assert abs(drawn.count(first) / 2000 - ratio / (1 + ratio)) < 0.04


# --- loading ---------------------------------------------------------------------------------


def test_a_missing_file_is_model_not_found(models: Path) -> None:
    for path in (models / "none.gguf", models, Path("/dev/null")):
        with pytest.raises(ModelNotFound) as caught:
            LlamaBackend.load(path, PARAMS)
        assert caught.value.path == str(path)


def test_another_kind_of_file_is_not_a_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for content in (b"", b"GGUF", b"PK\3\4" + bytes(100), b"GGUF\1\0\0\0" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(NotAGguf):
            LlamaBackend.load(path, PARAMS)


def test_a_half_copied_file_is_truncated(models: Path, tmp_path: Path) -> None:
    whole = (models / "llama.gguf").read_bytes()
    path = tmp_path / "half.gguf"
    for n in (len(whole) - 1, len(whole) // 2, 5000, 100, 30):
        path.write_bytes(whole[:n])
        with pytest.raises(TruncatedGguf) as caught:
            LlamaBackend.load(path, PARAMS)
        assert caught.value.actual == n < caught.value.expected


def test_the_error_of_a_file_that_llama_cpp_refuses_has_its_log(
    models: Path, tmp_path: Path
) -> None:
    path = tmp_path / "unknown.gguf"
    data = (models / "llama.gguf").read_bytes()
    path.write_bytes(data.replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0lxxma", 1))
    with pytest.raises(ModelLoadFailed, match="unknown model architecture"):
        LlamaBackend.load(path, PARAMS)


def test_parameters_no_context_accepts_are_a_context_error(load: Load) -> None:
    with pytest.raises(ContextCreateFailed, match="K cache type"):
        load("narrow", type_k="q8_0")  # 16 numbers per head are no whole block of 32


def test_a_progress_callback_that_raises_cancels_the_load(models: Path) -> None:
    class CancelledError(Exception):
        pass

    def stop(_: float) -> None:
        raise CancelledError

    with pytest.raises(CancelledError):
        LlamaBackend.load(models / "llama.gguf", PARAMS, progress=stop)


def test_an_abort_from_another_thread_ends_a_long_decode(tmp_path: Path) -> None:
    path = shaped_llama(tmp_path / "60m.gguf", "60M")
    b = LlamaBackend.load(path, replace(PARAMS, n_ctx=8192, n_batch=4096))
    batch = Batch()
    batch.extend_prefill([65] * 4096, 0, 0, True)
    timer = threading.Timer(0.2, b.request_abort)
    try:
        timer.start()
        with pytest.raises(DecodeAborted):
            b.decode(batch)
        held = b.seq_range(0)
        assert held is None or held[1] < 4095
        b.clear_abort()
        b.seq_remove(0, 0)
        assert prefill(b, TOKENS) == len(TOKENS) - 1
    finally:
        timer.cancel()
        timer.join()
        b.close()


def test_a_forgotten_backend_frees_itself_after_its_samplers(models: Path) -> None:
    for _ in range(5):
        b = LlamaBackend.load(models / "llama.gguf", PARAMS)
        gone = weakref.ref(b)
        sampler = b.new_sampler(SamplingParams())
        del b
        gc.collect()
        assert gone() is not None, "a sampler keeps its backend"
        sampler.accept(65)
        del sampler
        gc.collect()
        assert gone() is None


def test_a_sampler_of_another_kind_is_refused(load: Load) -> None:
    b = load()
    row = prefill(b, TOKENS)
    with pytest.raises(InvalidParam):
        b.sample(row, object(), 0)  # type: ignore[arg-type]


def test_the_build_names_the_pinned_source(load: Load) -> None:
    source, _, state_format = model_build_id().split("+")
    assert source == Lock.read().commit or source.startswith("own-")
    assert state_format == "state1"
    assert dict(load().info.kv_identity)["build"] == model_build_id()
    assert cpu_features()
