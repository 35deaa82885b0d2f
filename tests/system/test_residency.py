"""Models come and go by themselves: a folder, first uses, room for others, sleep, states."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from actors.messages import KnownModel, ModelState
from runtime import CompletionEvent, LoadEvent, Node, TokenEvent, errors
from runtime.embedded import path as embedded_model_path
from runtime.settings.config import from_mapping
from tests.support.gateways import Gateway
from tests.support.gguf_files import tiny_llama
from tests.support.nodes import free_port
from tests.support.runtime_nodes import Streaming, cli, entry_of, started
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

PROMPT = "Once upon a time there was a boy who lived near the sea, and every morning he"
FIRST, SECOND = "first", "second"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A node whose folder has two models, and that holds one at a time."""
    tmp_path = tmp_path_factory.mktemp("residency")
    folder = tmp_path / "models"
    folder.mkdir()
    for name in (FIRST, SECOND):
        shutil.copy(embedded_model_path(), folder / f"{name}.gguf")
    config = from_mapping(
        {
            "models_dir": folder,
            "models_max": 1,
            "models_defaults": {"n_threads": 1, "n_ctx": 1024},
            "models": {SECOND: {"n_ctx": 2048}},
            "gateway": {"listen": f"127.0.0.1:{(port := free_port())}"},
        }
    )
    with started(tmp_path, config=config) as node:
        eventually(lambda: set(states(node)) >= {FIRST, SECOND}, what="the folder is read")
        yield Gateway(node, port)


@pytest.fixture
def node(gateway: Gateway) -> Node:
    """With no model of the folder loaded."""
    put_to_sleep(gateway.node, FIRST, SECOND)
    return gateway.node


def known(node: Node) -> dict[str, KnownModel]:
    return {one.model: one for one in node.known_models()}


def states(node: Node) -> dict[str, ModelState]:
    return {name: one.state for name, one in known(node).items()}


def is_out(node: Node, model: str) -> bool:
    return states(node).get(model) in (None, ModelState.AVAILABLE, ModelState.ASLEEP)


def put_to_sleep(node: Node, *models: str) -> None:
    for model in models:
        if not is_out(node, model):
            node.set_keep_alive(model, 0.0)
        eventually(lambda one=model: is_out(node, one), what=f"{model} is not loaded")  # type: ignore[misc]


def folder_of(node: Node) -> Path:
    return Path(known(node)[FIRST].path).parent


# ── the folder ──────────────────────────────────────────────────────────────────────────────────


def test_files_come_and_go_and_half_a_file_is_no_model(node: Node, tmp_path: Path) -> None:
    whole = embedded_model_path().read_bytes()
    path = folder_of(node) / "late one.gguf"
    path.write_bytes(whole[:-1000])
    (folder_of(node) / "done.gguf").write_bytes(whole)
    eventually(lambda: "done" in known(node), what="a whole file is offered")
    eventually(lambda: len(known(node)) >= 3, what="the folder was read")
    assert "late-one" not in known(node)
    path.write_bytes(whole)
    eventually(lambda: "late-one" in known(node), what="it is offered when it is whole")
    assert known(node)["late-one"].state is ModelState.AVAILABLE
    for name in ("late one", "done"):
        (folder_of(node) / f"{name}.gguf").unlink()
    eventually(lambda: set(known(node)) == {FIRST, SECOND}, what="they are gone")
    with pytest.raises(errors.ModelUnknown):
        node.complete("late-one", "x", max_tokens=1)


# ── first uses ──────────────────────────────────────────────────────────────────────────────────


def test_concurrent_first_uses_load_once_and_show_how_far_that_is(node: Node) -> None:
    before = node.client.model_info  # the model is not there: it has no incarnation to compare

    def ask(_: int) -> tuple[list[float], str]:
        events = list(node.stream(SECOND, PROMPT, max_tokens=6, load_events=True))
        end = events[-1]
        assert isinstance(end, CompletionEvent)
        firsts = [one for one in events if isinstance(one, LoadEvent | TokenEvent)]
        shares = [one.share for one in firsts if isinstance(one, LoadEvent)]
        assert all(isinstance(one, LoadEvent) for one in firsts[: len(shares)])
        return shares, end.completion.text

    with pytest.raises(errors.ModelUnknown):
        before(SECOND)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert len({text for _, text in answers}) == 1
    assert all(shares == sorted(shares) for shares, _ in answers)
    assert any(shares for shares, _ in answers)
    info = node.model_info(SECOND)
    assert (info.restarts, info.details["n_ctx"]) == (0, 2048)  # by its preset
    assert node.model_info(SECOND).incarnation == entry_of(node, SECOND).incarnation
    assert known(node)[SECOND].memory_bytes


def test_questions_wake_a_model_too(node: Node) -> None:
    assert node.tokenize(FIRST, "Once upon a time")
    assert states(node)[FIRST] is ModelState.UP
    assert node.model_info(FIRST).details["n_ctx"] == 1024  # as all of the folder


def test_a_load_that_fails_tells_everyone_why_and_is_not_repeated_at_once(node: Node) -> None:
    path = folder_of(node) / "broken.gguf"
    scratch = tiny_llama(path.with_suffix(".tmp"))
    scratch.write_bytes(
        scratch.read_bytes().replace(b"blk.1.attn_q.weight", b"blk.1.attn_x.weight")
    )
    scratch.rename(path)
    eventually(lambda: "broken" in known(node), what="its header is right")

    def ask(_: int) -> Exception:
        with pytest.raises(errors.ModelLoadFailed) as caught:
            node.complete("broken", "x", max_tokens=1)
        return caught.value

    with ThreadPoolExecutor(4) as pool:
        failures = list(pool.map(ask, range(4)))
    assert len({str(one) for one in failures}) == 1
    assert states(node)["broken"] is ModelState.FAILED
    assert known(node)["broken"].failure
    ask(0)  # answered from what is known: within the pause it is not tried again
    path.unlink()
    eventually(lambda: "broken" not in known(node), what="it is gone")


# ── room ────────────────────────────────────────────────────────────────────────────────────────


def test_two_models_that_do_not_fit_together_are_both_answered(node: Node) -> None:
    def ask(model: str) -> str:
        return node.complete(model, PROMPT, max_tokens=8, timeout_s=60).text

    expected = ask(FIRST)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, [FIRST, SECOND] * 3))
    assert set(answers) == {expected}
    loaded = [name for name, state in states(node).items() if state is ModelState.UP]
    assert len(loaded) == 1


def test_a_model_ends_its_requests_before_it_leaves_and_new_ones_wake_it(node: Node) -> None:
    stream = Streaming(node, FIRST, max_tokens=300, prompt=PROMPT)
    order: list[str] = []

    def ask(model: str) -> None:
        node.complete(model, PROMPT, max_tokens=4, timeout_s=60)
        order.append(model)

    other = threading.Thread(target=ask, args=(SECOND,))
    other.start()
    eventually(lambda: states(node)[FIRST] is ModelState.DRAINING, what="it is to leave")
    again = threading.Thread(target=ask, args=(FIRST,))
    again.start()
    assert len(stream.whole().tokens) > 20  # nothing of it is lost
    other.join(60)
    again.join(60)
    assert order == [SECOND, FIRST]


def test_a_pinned_model_stays_and_the_error_names_it(node: Node) -> None:
    node.load("kept", str(embedded_model_path()), n_threads=1, n_ctx=512, pin=True)
    try:
        with pytest.raises(errors.ModelLoadFailed, match=r"pinned models \(kept\)"):
            node.complete(FIRST, PROMPT, max_tokens=1)
        assert known(node)["kept"].is_pinned
    finally:
        node.unload("kept")
    eventually(
        lambda: states(node)[FIRST] is not ModelState.FAILED or _answers(node), what="it is loaded"
    )


def _answers(node: Node) -> bool:
    try:
        node.complete(FIRST, PROMPT, max_tokens=1)
    except errors.ModelLoadFailed:
        return False
    return True


# ── sleep ───────────────────────────────────────────────────────────────────────────────────────


def test_a_model_sleeps_after_its_keep_alive_and_wakes_warm(node: Node) -> None:
    cold = node.complete(FIRST, PROMPT, max_tokens=24)
    node.set_keep_alive(FIRST, 0.2)
    assert known(node)[FIRST].keep_alive_s == 0.2
    eventually(lambda: states(node)[FIRST] is ModelState.ASLEEP, what="it sleeps")
    assert all(one.id != FIRST for one in node.models())
    asleep = known(node)[FIRST]
    assert asleep.memory_bytes
    assert asleep.last_use is not None
    warm = node.complete(FIRST, PROMPT + cold.text, max_tokens=4)
    assert warm.cache.hit.value != "cold"
    assert warm.usage.cached_tokens >= len(cold.tokens)
    assert known(node)[FIRST].keep_alive_s is None  # what was set was for that time


def test_a_model_that_was_loaded_by_hand_sleeps_and_wakes_with_its_options(node: Node) -> None:
    node.load("own", str(embedded_model_path()), n_threads=1, n_ctx=768, keep_alive="100ms")
    eventually(lambda: states(node)["own"] is ModelState.ASLEEP, what="it sleeps")
    assert node.complete("own", PROMPT, max_tokens=2).text
    assert node.model_info("own").details["n_ctx"] == 768
    eventually(lambda: states(node)["own"] is ModelState.ASLEEP, what="it sleeps again")
    node.unload("own")
    assert "own" not in known(node)
    with pytest.raises(errors.ModelUnknown):
        node.complete("own", PROMPT, max_tokens=1)


# ── HTTP and commands ───────────────────────────────────────────────────────────────────────────


def listed(gateway: Gateway) -> dict[str, Any]:
    return {one["id"]: one["status"] for one in gateway.call("GET", "/v1/models").json["data"]}


def test_http_lists_what_is_not_loaded_and_loads_what_is_named(
    node: Node, gateway: Gateway
) -> None:
    found = listed(gateway)
    assert found[FIRST]["value"] in ("unloaded", "sleeping")
    assert found.keys() >= {FIRST, SECOND}
    body = {"model": FIRST, "prompt": PROMPT, "max_tokens": 4}
    answer = gateway.call("POST", "/v1/completions", body)
    assert (answer.status, answer.json["model"]) == (200, FIRST)
    assert states(node)[FIRST] is ModelState.UP
    names = {one["name"] for one in gateway.call("GET", "/api/ps").json["models"]}
    assert names == {f"{FIRST}:latest"}
    tags = {one["name"] for one in gateway.call("GET", "/api/tags").json["models"]}
    assert tags >= {f"{FIRST}:latest", f"{SECOND}:latest"}
    unknown = gateway.call("POST", "/v1/completions", body | {"model": "nothing"})
    assert unknown.status == 404
    assert FIRST in unknown.json["error"]["message"]
    assert SECOND in unknown.json["error"]["message"]
    own = gateway.call("GET", "/llama/v1/models").json
    assert {one["model"]: one["state"] for one in own["known"]}[FIRST] == "up"


def test_a_stream_shows_the_load_where_progress_is_asked_for(node: Node, gateway: Gateway) -> None:
    body = {"prompt": PROMPT, "n_predict": 2, "stream": True, "model": FIRST}
    frames = gateway.call("POST", "/completion", body | {"return_progress": True}).frames
    shares = [one["load_progress"]["share"] for one in frames if "load_progress" in one]
    assert shares
    assert shares == sorted(shares)
    put_to_sleep(node, FIRST)
    plain = gateway.call("POST", "/completion", body).frames
    assert not any("load_progress" in one for one in plain)


def test_ollamas_keep_alive_lets_a_model_sleep(node: Node, gateway: Gateway) -> None:
    body = {"model": FIRST, "prompt": PROMPT, "stream": False, "options": {"num_predict": 2}}
    assert gateway.call("POST", "/api/generate", body | {"keep_alive": "1h"}).status == 200
    eventually(lambda: known(node)[FIRST].expires_at is not None, what="it has an end")

    def is_shown() -> bool:
        (shown,) = gateway.call("GET", "/api/ps").json["models"]
        return not shown["expires_at"].startswith("2318")

    eventually(is_shown, what="a worker knows its end")  # what it knows may be a second old
    assert gateway.call("POST", "/api/generate", body | {"keep_alive": 0}).status == 200
    eventually(lambda: states(node)[FIRST] is ModelState.ASLEEP, what="it sleeps")
    assert gateway.call("POST", "/api/generate", body | {"keep_alive": -1}).status == 200
    assert known(node)[FIRST].expires_at is None


def test_the_command_shows_states(node: Node) -> None:
    node.complete(FIRST, PROMPT, max_tokens=1)
    shown = cli("models", port=node.port, runtime_dir=folder_of(node).parent / "run").stdout
    rows = {line.split()[0]: line.split()[1] for line in shown.splitlines()}
    assert rows[FIRST] == "up"
    assert rows[SECOND] in ("asleep", "available")
