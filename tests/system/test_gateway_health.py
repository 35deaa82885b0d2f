"""Whether the gateway can be asked: what probes and llama-server's clients wait for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateways import Gateway, gateway_node
from tests.support.runtime_nodes import LeakCheck, one_thread
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
OK = {"status": "ok"}


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Gateway]:
    """A node without a model, and a gateway that wants keys."""
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[keys.a]\nsha256 = "{"0" * 64}"\n', encoding="utf-8")
    keys.chmod(0o600)
    with LeakCheck() as leaks, gateway_node(tmp_path, {}, keys_file=str(keys)) as found:
        leaks.watch(found.node)
        yield found


def test_models_that_are_wanted_are_waited_for(empty: Gateway, slow_gguf: Path) -> None:
    for path in ("/health", "/v1/health", "/readyz"):
        assert (empty.get(path).status, empty.get(path).json) == (200, OK), "no model is wanted"
    seen: list[tuple[int, object]] = []
    is_loaded = threading.Event()

    def load() -> None:
        empty.node.load("slow", one_thread(slow_gguf))
        is_loaded.set()

    loader = threading.Thread(target=load)
    loader.start()
    while not is_loaded.is_set():
        seen.append(empty.json("GET", "/health"))
    loader.join()
    assert (503, LOADING) in seen
    assert {status for status, _ in seen} <= {200, 503}
    eventually(lambda: empty.json("GET", "/health") == (200, OK), what="it is loaded")


def test_a_second_model_that_is_loaded_takes_nothing_away(empty: Gateway, slow_gguf: Path) -> None:
    empty.node.load("first", one_thread(slow_gguf))
    eventually(lambda: empty.get("/health").status == 200, what="it is loaded")
    loader = threading.Thread(target=empty.node.load, args=("second", one_thread(slow_gguf)))
    loader.start()
    while loader.is_alive():
        assert empty.get("/v1/health").status == 200
    loader.join()
    assert empty.node.model_info("second").details
