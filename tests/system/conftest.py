"""Fixtures of the system tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.gguf_files import tiny_llama


@pytest.fixture(scope="session")
def slow_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, wide enough that a prompt of some thousand tokens takes seconds.

    Unlike the stub, which computes in Python, llama.cpp leaves its process able to listen.
    """
    path = tmp_path_factory.mktemp("slow") / "slow.gguf"
    return tiny_llama(path, n_layer=4, n_embd=512, n_head=8, n_kv=8, n_ff=1536)
