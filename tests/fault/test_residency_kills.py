"""Models that come and go by themselves, with kills in every phase: requests are answered."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator

import pytest

from actors.messages import ModelState
from runtime import Node, errors
from runtime.embedded import path as embedded_model_path
from runtime.settings.config import from_mapping
from tests.support.runtime_nodes import Streaming, kill, pid_of, started, status_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.fault

PROMPT = "Once upon a time there was a boy who lived near the sea, and every morning he"
FIRST, SECOND = "first", "second"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node whose folder has two models, and that holds one at a time."""
    tmp_path = tmp_path_factory.mktemp("kills")
    folder = tmp_path / "models"
    folder.mkdir()
    for name in (FIRST, SECOND):
        shutil.copy(embedded_model_path(), folder / f"{name}.gguf")
    config = from_mapping(
        {"models_dir": folder, "models_max": 1, "models_defaults": {"n_threads": 1, "n_ctx": 1024}}
    )
    with started(tmp_path, config=config) as found:
        eventually(lambda: set(states(found)) == {FIRST, SECOND}, what="the folder is read")
        yield found


def states(node: Node) -> dict[str, ModelState]:
    with contextlib.suppress(errors.NodeError):
        return {one.model: one.state for one in node.known_models()}
    return {}  # the actor that knows them is restarting


class Asking:
    """A request on a thread."""

    def __init__(self, node: Node, model: str) -> None:
        self.text = ""
        self.caught: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(node, model))
        self._thread.start()

    def _run(self, node: Node, model: str) -> None:
        try:
            self.text = node.complete(model, PROMPT, max_tokens=4, timeout_s=90).text
        except errors.LlamaActorsError as error:
            self.caught.append(error)

    def answer(self) -> str:
        self._thread.join(100)
        assert not self.caught
        return self.text


def sleeping(node: Node, model: str) -> None:
    """Let it sleep, and wait for that."""

    def is_out() -> bool:
        state = states(node).get(model)
        if state is ModelState.UP:
            with contextlib.suppress(errors.LlamaActorsError):
                node.set_keep_alive(model, 0.0)
        return state in (ModelState.ASLEEP, ModelState.AVAILABLE)

    eventually(is_out, every_s=0.1, what=f"{model} is not loaded")


def loader_of(node: Node, model: str) -> int | None:
    """The process that loads the model."""
    found = node.tree().find(f"model:{model}")
    return None if found is None or found.state != "starting" else found.pid


def _loads(node: Node, asking: Asking) -> int | str:
    """The process that loads the model; or the answer, where it has come before that was seen."""
    found = eventually(
        lambda: loader_of(node, FIRST) or asking.text, every_s=0.0, what="it loads, or has"
    )
    assert found is not None
    return found


@pytest.mark.parametrize("victim", ["model", "residency", "registry", "inflight", "models"])
def test_a_kill_while_a_model_wakes(node: Node, victim: str) -> None:
    expected = node.complete(FIRST, PROMPT, max_tokens=4).text
    sleeping(node, FIRST)
    asking = Asking(node, FIRST)
    if victim == "model":
        while not isinstance(pid := _loads(node, asking), int):  # too fast: on a busy machine
            assert asking.answer() == expected
            sleeping(node, FIRST)
            asking = Asking(node, FIRST)
        kill(pid)
    else:
        eventually(
            lambda: states(node).get(FIRST) is ModelState.LOADING or asking.text,
            every_s=0.0,
            what="it is loaded",
        )
        kill(pid_of(node, victim))
    assert asking.answer() == expected


@pytest.mark.parametrize("victim", ["residency", "inflight", "registry", "model:first"])
def test_a_kill_while_a_model_drains(node: Node, victim: str) -> None:
    sleeping(node, SECOND)
    stream = Streaming(node, FIRST, max_tokens=400, prompt=PROMPT)
    other = Asking(node, SECOND)
    eventually(
        lambda: states(node).get(FIRST) is ModelState.DRAINING, every_s=0.0, what="it is to leave"
    )
    again = Asking(node, FIRST)
    kill(pid_of(node, victim))
    assert len(stream.whole(90).tokens) > 20
    assert other.answer() == again.answer()


def test_what_sleeps_is_known_after_the_actor_was_killed(node: Node) -> None:
    node.load("own", str(embedded_model_path()), n_threads=1, n_ctx=768, keep_alive=0.05)
    eventually(lambda: states(node).get("own") is ModelState.ASLEEP, what="it sleeps")
    kill(pid_of(node, "residency"))
    status_of(node, "residency")
    assert node.complete("own", PROMPT, max_tokens=2).text
    assert node.model_info("own").details["n_ctx"] == 768
    node.unload("own")


def test_a_whole_tree_that_is_killed_keeps_what_sleeps(node: Node) -> None:
    node.complete(FIRST, PROMPT, max_tokens=2)
    sleeping(node, FIRST)
    kill(pid_of(node, "root"))
    eventually(lambda: states(node).get(FIRST) is ModelState.ASLEEP, what="the tree is back")
    assert node.complete(FIRST, PROMPT, max_tokens=2).text
