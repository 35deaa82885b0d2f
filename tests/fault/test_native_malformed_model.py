"""A GGUF that makes llama.cpp abort ends only the process that tried to load it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from native.gguf_header import check_gguf
from tests.support.gguf_files import patch_number, tiny_llama

pytestmark = pytest.mark.fault

LOAD = """
import sys
from native import ModelParams, NativeError, load_backend
try:
    load_backend("llama", sys.argv[1], ModelParams(n_ctx=256, n_threads=1))
except NativeError as error:
    print(type(error).__name__, error)
    sys.exit(3)
"""


def load_in_child(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LOAD, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def malformed(tmp_path: Path, key: str, value: int) -> Path:
    path = tiny_llama(tmp_path / "bad.gguf")
    patch_number(path, key, value)
    check_gguf(path)  # the header itself is fine: only llama.cpp can find this
    return path


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.block_count", 0),  # asserted while loading
        ("llama.block_count", 1 << 30),
        ("llama.attention.layer_norm_rms_epsilon", 0xBF800000),  # -1.0: asserted while computing
    ],
)
def test_an_abort_in_llama_cpp_ends_only_the_child(tmp_path: Path, key: str, value: int) -> None:
    child = load_in_child(malformed(tmp_path, key, value))
    assert child.returncode == -signal.SIGABRT
    assert "GGML_ASSERT" in child.stderr, "the reason is on the child's stderr"
    assert "gdb" not in child.stderr


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.attention.head_count", 0),
        ("llama.attention.head_count_kv", 7),
        ("llama.embedding_length", 64),
        ("llama.block_count", 5),
        ("llama.rope.dimension_count", 100_000),
    ],
)
def test_what_llama_cpp_notices_itself_is_a_load_error(
    tmp_path: Path, key: str, value: int
) -> None:
    child = load_in_child(malformed(tmp_path, key, value))
    assert child.returncode == 3
    assert child.stdout.startswith("ModelLoadFailed")
    assert "error loading model" in child.stdout, "llama.cpp's own reason is passed on"
    assert child.stderr == "", "a load error is an exception, not noise"
