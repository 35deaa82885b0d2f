"""A new context in the same process: empty, as good as the first, and without loading again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from native import (
    Backend,
    BackendClosed,
    Batch,
    ContextCreateFailed,
    DecodeAborted,
    ModelParams,
    NotSupported,
    SamplingParams,
    load_backend,
)
from tests.support.gguf_files import Shape, tiny_llama, write_model

pytestmark = pytest.mark.model

PARAMS = ModelParams(n_ctx=512, n_batch=128, n_ubatch=64, n_seq_max=2, n_threads=1)
PROMPT = list(range(40, 110))


@pytest.fixture(params=["stub", "llama", "mamba"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    kind, path = request.param, Path("stub")
    if kind == "llama":
        path = tiny_llama(tmp_path / "tiny.gguf")
    elif kind == "mamba":
        kind, path = "llama", write_model(tmp_path / "mamba.gguf", Shape(arch="mamba"))
    backend = load_backend(kind, path, PARAMS)
    yield backend
    backend.close()


def says(backend: Backend, seq: int = 0) -> list[int]:
    batch, sampler, out = Batch(), backend.new_sampler(SamplingParams()), []
    row = batch.extend_prefill(PROMPT, 0, seq, True)
    for index in range(6):
        backend.decode(batch)
        assert row is not None
        out.append(backend.sample(row, sampler, index))
        batch.clear()
        row = batch.add(out[-1], len(PROMPT) + index, seq, True)
    return out


def test_a_new_context_is_empty_and_generates_the_same(backend: Backend) -> None:
    info, before = backend.info, says(backend)
    backend.rebuild()
    assert backend.info == info
    assert [backend.seq_range(seq) for seq in (0, 1)] == [None, None]
    assert says(backend, 1) == before
    assert backend.seq_range(0) is None


def test_all_cells_are_free_again(backend: Backend) -> None:
    for _ in range(3):
        batch, at = Batch(), 0
        while at < 512:
            batch.clear()
            batch.extend_prefill([65] * 128, at, 0, False)
            backend.decode(batch)
            at += 128
        backend.rebuild()


def test_logits_of_the_old_context_are_gone(backend: Backend) -> None:
    says(backend)
    backend.rebuild()
    with pytest.raises(Exception, match="row"):
        backend.logits(0)


def test_samplers_outlive_the_context(backend: Backend) -> None:
    sampler = backend.new_sampler(SamplingParams(repetition_penalty=1.5), PROMPT)
    backend.rebuild()
    batch = Batch()
    row = batch.extend_prefill(PROMPT, 0, 0, True)
    backend.decode(batch)
    assert row is not None
    assert 0 <= backend.sample(row, sampler, 0) < backend.info.n_vocab


def test_a_requested_abort_is_forgotten(backend: Backend) -> None:
    backend.request_abort()
    batch = Batch()
    batch.extend_prefill(PROMPT, 0, 0, False)
    with pytest.raises(DecodeAborted):
        backend.decode(batch)
    backend.rebuild()
    assert says(backend)


def test_saved_blocks_fit_the_new_context(backend: Backend) -> None:
    if not backend.info.can_cut:
        pytest.skip("this memory is saved as a whole")
    wanted = says(backend)
    payload = bytearray(backend.block_bytes(64))
    backend.save_block(0, 0, 64, payload)
    backend.rebuild()
    backend.restore_block(0, 0, 64, payload)
    batch, sampler = Batch(), backend.new_sampler(SamplingParams())
    row = batch.extend_prefill(PROMPT[64:], 64, 0, True)
    backend.decode(batch)
    assert row is not None
    assert backend.sample(row, sampler, 0) == wanted[0]


def test_weights_are_not_loaded_again_and_nothing_leaks(backend: Backend) -> None:
    def resident() -> int:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1])

    threads = threading.active_count()
    for _ in range(5):
        backend.rebuild()
    before = resident()
    for _ in range(40):
        backend.rebuild()
    assert resident() - before < 1024  # pages: 4 MiB, a tenth of forty contexts
    assert threading.active_count() == threads


def test_a_closed_backend_is_not_rebuilt(backend: Backend) -> None:
    backend.close()
    with pytest.raises(BackendClosed):
        backend.rebuild()


def test_when_there_can_be_no_new_context_only_close_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from native import llama

    backend = load_backend("llama", tiny_llama(tmp_path / "tiny.gguf"), PARAMS)

    def fails(*_: object) -> object:
        raise ContextCreateFailed("failed by the test")

    monkeypatch.setattr(llama, "new_context", fails)
    with pytest.raises(ContextCreateFailed):
        backend.rebuild()
    with pytest.raises(NotSupported):
        backend.seq_range(0)
    with pytest.raises(NotSupported):
        says(backend)
    backend.close()
