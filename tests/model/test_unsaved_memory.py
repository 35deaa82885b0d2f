"""A model whose memory cannot be saved answers all the same, and reports why nothing is cached."""

from __future__ import annotations

from pathlib import Path

import pytest

from native import ModelParams, load_backend
from tests.support.gguf_files import UNSAVED, tiny_llama
from tests.support.runtime_nodes import one_thread, started, status_of

pytestmark = pytest.mark.model


@pytest.fixture
def unsaved(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "unsaved.gguf", arch=next(iter(UNSAVED)))


def test_why_a_memory_cannot_be_saved_is_reported(unsaved: Path, tmp_path: Path) -> None:
    for path, memory, why in (
        (unsaved, "none", "the memory of this model is stored in a way"),
        (tiny_llama(tmp_path / "tiny.gguf"), "blocks", ""),
        (tiny_llama(tmp_path / "mamba.gguf", arch="mamba"), "checkpoint", ""),
    ):
        backend = load_backend("llama", path, ModelParams(n_ctx=512, n_threads=1))
        info = backend.info
        backend.close()
        assert info.memory == memory
        assert why in info.memory_because
        assert bool(why) == bool(info.memory_because)
    words = load_backend("llama", unsaved, ModelParams(vocab_only=True))
    assert "only its vocabulary was loaded" in words.info.memory_because
    words.close()


def test_the_status_has_the_reason_and_the_log_has_it_once(unsaved: Path, tmp_path: Path) -> None:
    with started(tmp_path / "home") as node:
        node.client.load("unsaved", one_thread(unsaved))
        for _ in range(2):
            done = node.complete("unsaved", "What is kept of this?", max_tokens=3)
            assert done.cache.miss_reason == "model_cannot_be_cut"
            assert done.usage.completion_tokens == 3
        status = status_of(node, "model:unsaved")
        assert (status["memory_kind"], status["cached"]) == ("none", False)
        assert "stored in a way" in status["memory_because"]
        log = (tmp_path / "home" / "node.log").read_text()
    assert log.count("nothing is cached: ") == 1
    assert status["memory_because"] in log
