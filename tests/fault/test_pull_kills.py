"""``pull`` killed in the middle: the next one fetches the rest, and not a byte twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import runtime.embedded
from runtime.catalog.store import PARTIAL, Store
from tests.support import hub as hubs
from tests.support.nodes import ROOT
from tests.support.split_gguf import split_gguf
from tests.support.waiting import eventually

pytestmark = pytest.mark.fault

NAME = "org/story-GGUF"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("parts")
    split = split_gguf(runtime.embedded.path(), folder, "story-Q8_0", tensors_each=25)
    return {one.name: one.read_bytes() for one in split}


@pytest.fixture
def hub(parts: dict[str, bytes]) -> Iterator[hubs.Hub]:
    with hubs.serving() as served:
        served.repos[NAME] = hubs.Repo(dict(parts))
        yield served


def pulling(hub: hubs.Hub, home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "runtime", "pull", NAME],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        env={
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home / "hf"),
            "LLAMA_ACTORS_STORE": str(home / "store"),
            "NO_PROXY": "127.0.0.1,localhost",
        },
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "ctrl-c"])
def test_a_pull_goes_on_after_its_end(
    hub: hubs.Hub, parts: dict[str, bytes], tmp_path: Path, how: signal.Signals
) -> None:
    """The first part is whole, the second one half there."""
    first, second, _third = parts
    store = Store(tmp_path / "store")
    half = len(parts[second]) // 2
    hub.stalls_at = half
    hub.stalls_on = parts[second]
    process = pulling(hub, tmp_path)
    try:
        partial = store.folder_of(NAME) / PARTIAL
        eventually(
            lambda: [one.stat().st_size for one in partial.glob(f"{second}.*")] == [half],
            what="half of the second part is there",
        )
        process.send_signal(how)
        assert process.wait(30) == (-how if how is signal.SIGKILL else 130)
    finally:
        process.kill()
        process.wait(30)
    assert store.models() == []
    there = sorted(one.name for one in store.folder_of(NAME).glob("*.gguf"))
    assert there == [first]  # only what is whole has its name
    hub.stalls_at = None
    hub.go_on.set()
    again = pulling(hub, tmp_path)
    assert again.wait(60) == 0
    (model,) = store.models()
    assert {one.path: (model.folder / one.path).read_bytes() for one in model.files} == parts
    assert hub.ranges == [None, None, f"bytes={half}-", None]
    assert hub.sent == sum(map(len, parts.values()))
    assert not partial.exists()
