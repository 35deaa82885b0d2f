"""The memory that a header promises is the memory that llama.cpp takes."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest

from native import Backend, Batch, ModelParams, NotEnoughMemory, load_backend
from native.estimate import estimate
from native.gguf_header import check_gguf
from tests.support.gguf_files import ARCHITECTURES, Shape, tiny_llama, write_model

pytestmark = pytest.mark.model

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"type_k": "q8_0", "type_v": "q8_0"},
    {"flash_attn": False, "n_ctx": 2048},
    {"n_ubatch": 64, "n_batch": 64, "n_seq_max": 1},
)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_weights_and_kv_are_exact_and_the_rest_is_near(arch: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", Shape(arch=arch, n_layer=4))
    for setting in SETTINGS:
        params = ModelParams(n_threads=1, **setting)
        backend = load_backend("llama", path, params)
        try:
            taken = backend.memory_use()
        finally:
            backend.close()
        found = estimate([check_gguf(path)], params)
        assert found.host.kv == taken.host_context
        assert found.host.weights == pytest.approx(taken.host_model, rel=0.02)
        # gemma3 has two masks when some layers see all, and four layers that do not here.
        assert 0.8 < found.host.compute / taken.host_compute < 2.0, setting


def test_what_cannot_fit_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    path, told = tiny_llama(tmp_path / "tiny.gguf"), []
    params = ModelParams(n_threads=1, n_ctx=8192)
    with pytest.raises(NotEnoughMemory):
        load_backend("llama", path, params, progress=told.append, memory_available=1 << 20)
    assert told == []
    backend = load_backend("llama", path, ModelParams(n_ctx=0), memory_available=8 << 20)
    try:
        assert 256 <= backend.info.n_ctx < 8192
    finally:
        backend.close()


def test_rope_overrides_change_what_is_computed_and_the_identity(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "tiny.gguf")
    identities, vectors = set(), set()
    for given in ({}, {"rope_freq_base": 500_000.0}, {"rope_freq_scale": 0.5}, {
        "rope_scaling": "yarn", "rope_freq_scale": 0.25, "yarn_orig_ctx": 2048,
    }):  # fmt: skip
        backend = load_backend("llama", path, ModelParams(n_ctx=256, n_threads=1, **given))  # type: ignore[arg-type]
        try:
            vectors.add(tuple(backend.embedder().embed(list(range(40, 90)), "last")))
            vectors.add(tuple(last_logits(backend)))
            identities.add(backend.info.kv_identity)
        finally:
            backend.close()
    assert (len(identities), len(vectors)) == (4, 8)


def last_logits(backend: Backend) -> array[float]:
    batch = Batch()
    row = batch.extend_prefill(list(range(40, 90)), 0, 0, True)
    backend.decode(batch)
    assert row is not None
    return backend.logits(row)
