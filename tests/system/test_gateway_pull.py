"""``/llama/v1/models/pull``: a model of a hub, fetched by the gateway, then loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import runtime.embedded
from tests.support import hub as hubs
from tests.support.gateways import Gateway, frames_of, gateway_node
from tests.support.runtime_nodes import LeakCheck

pytestmark = pytest.mark.system

NAME = "org/story-GGUF"
PATH = "/llama/v1/models/pull"


@pytest.fixture(scope="module")
def hub() -> Iterator[hubs.Hub]:
    with hubs.serving() as served:
        served.repos[NAME] = hubs.Repo(
            {"story-Q4_K_M.gguf": runtime.embedded.path().read_bytes(), "README.md": b"a story"}
        )
        yield served


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pull")


@pytest.fixture(scope="module")
def gateway(hub: hubs.Hub, folder: Path) -> Iterator[Gateway]:
    with pytest.MonkeyPatch.context() as patch, LeakCheck() as leaks:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setenv("LLAMA_ACTORS_STORE", str(folder / "store"))
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        with gateway_node(folder) as found:
            leaks.watch(found.node)
            yield found
            leaks.watch(found.node)


def test_a_model_is_fetched_once_loaded_and_asked(
    gateway: Gateway, hub: hubs.Hub, folder: Path
) -> None:
    answer = gateway.post(PATH, {"model": NAME, "stream": True})
    *shares, (last, found) = frames_of(answer.body)
    assert last == "result", answer.body
    assert {name for name, _ in shares} <= {"progress"}
    assert all(0 <= one["share"] <= 1 for _, one in shares)
    assert found["fetched"]
    assert Path(found["path"]).is_relative_to(folder / "store")
    sent = hub.sent
    again = gateway.post(PATH, {"model": f"{NAME}:Q4_K_M"}).json
    assert (again["path"], again["fetched"], hub.sent) == (found["path"], False, sent)
    loaded = gateway.post("/llama/v1/models/load", {"model": found["id"], "path": found["path"]})
    assert loaded.status == 200, loaded.body
    asked = {"model": found["id"], "prompt": "Once upon a time", "max_tokens": 4}
    assert gateway.post("/v1/completions", asked).json["model"] == found["id"]


@pytest.mark.parametrize(
    ("model", "status", "words"),
    [
        ("story", 400, "names no model of a hub"),
        (f"{NAME}:Q2_K", 503, "Q4_K_M"),
        ("org/none", 503, "org/none"),
    ],
)
def test_what_cannot_be_fetched_is_said(
    gateway: Gateway, model: str, status: int, words: str
) -> None:
    answer = gateway.post(PATH, {"model": model})
    assert (answer.status, words in answer.json["error"]["message"]) == (status, True), answer.body
