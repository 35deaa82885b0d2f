"""KV blobs that a row file with a valid checksum may hold: refused, or harmless to other requests.

Each flavour runs in a child process, because llama.cpp aborts where it does not check. A forger
of checksums can also store other KV that is well-formed: no check can detect that, so such a row
spoils its own request. It must not end the process nor change the replies of others.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.gguf_files import tiny_llama

pytestmark = pytest.mark.model

ROUNDS = 400


def fuzz(path: Path, flash: bool, kv: str, arch: str) -> dict[str, int]:
    child = subprocess.run(
        [
            *(sys.executable, "-m", "tests.support.hostile_blobs"),
            *(str(path), str(int(flash)), kv, arch, str(ROUNDS)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    found: dict[str, int] = json.loads(child.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("arch", "flash", "kv"),
    [
        ("llama", True, "f16"),
        ("llama", True, "q8_0"),
        ("llama", False, "f16"),
        ("gemma3", False, "f16"),
        ("jamba", True, "f16"),
    ],
)
def test_a_forged_blob_is_refused_or_harms_only_its_own_request(
    tmp_path: Path, arch: str, flash: bool, kv: str
) -> None:
    found = fuzz(tiny_llama(tmp_path / "tiny.gguf", arch=arch), flash, kv, arch)
    assert found["refused"] + found["taken"] == ROUNDS
    assert found["refused"] >= ROUNDS // 3, found  # structure is checked
    assert found["taken"] >= ROUNDS // 10, found  # or nothing was tried
    assert found["others_changed"] == 0, found
    assert found["good_refused"] == 0, found
