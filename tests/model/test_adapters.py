"""LoRA adapters under the engine: one set of weights for a request, one namespace for a set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from actors import messages as m
from actors.engine.adapters import root_with
from actors.engine.commands import Asked
from native import Backend, ModelParams, load_backend
from native._stub_adapters import MAGIC
from native.adapters import LoadedAdapter
from runtime import Node
from supervision.messages import new_ref
from tests.support.engine_runs import HOST, EngineRun, Outcome, Script, ask
from tests.support.gguf_files import tiny_llama
from tests.support.lora_files import tiny_lora
from tests.support.runtime_nodes import PROMPT, kill, one_thread, pid_of

pytestmark = pytest.mark.model


@pytest.fixture
def node(emptied_node: Node) -> Node:
    return emptied_node


PARAMS = ModelParams(n_ctx=2048, n_batch=128, n_ubatch=64, n_seq_max=4, n_threads=1)
TEXT = [40 + i % 60 for i in range(200)]
Make = Callable[[], Backend]


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lora(tmp_path_factory.mktemp("lora") / "a.gguf")


@pytest.fixture(params=["stub", "llama"])
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Make:
    path = Path("stub")
    if request.param == "llama":
        path = tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    return lambda: load_backend(request.param, path, PARAMS)


@pytest.fixture
def adapter(make: Make, lora: Path, tmp_path: Path) -> str:
    backend = make()
    backend.close()
    if backend.info.architecture != "stub":
        return str(lora)
    (tmp_path / "stub").write_bytes(MAGIC + b"a")
    return str(tmp_path / "stub")


class Asking:
    """Collects the answers of the adapter service."""

    def __init__(self) -> None:
        self.answers: list[object] = []

    def __call__(self, run: EngineRun, message: object) -> None:
        if isinstance(message, m.AdaptersChanged | m.AdaptersListed | m.AdapterNotChanged):
            self.answers.append(message)


def load(path: str, scale: float = 1.0) -> Asked:
    return Asked(m.LoadAdapter("load", path, scale), HOST)


def test_what_comes_after_a_change_runs_with_the_other_weights(make: Make, adapter: str) -> None:
    def script() -> Script:
        yield [ask("plain", TEXT, 12)]
        yield [load(adapter), ask("changed", TEXT, 12), ask("repeat", TEXT, 12)]
        yield [Asked(m.SetAdapterScale("off", 1, 0.0), HOST), ask("off", TEXT, 12)]
        yield [Asked(m.SetAdapterScale("on", 1, 1.0), HOST), ask("on", TEXT, 12)]
        yield [Asked(m.UnloadAdapter("gone", 1), HOST), ask("gone", TEXT, 12)]

    asking = Asking()
    done = EngineRun(make(), on_event=asking).play(script())
    plain, changed = done["plain"].tokens, done["changed"].tokens
    assert plain != changed
    assert done["repeat"].tokens == done["on"].tokens == changed
    assert done["off"].tokens == done["gone"].tokens == plain
    for name in ("changed", "off", "on", "gone"):
        assert done[name].reused == 0, f"{name} continued from KV of other weights"
    assert [type(one) for one in asking.answers] == [m.AdaptersChanged] * 4


def test_a_running_request_keeps_its_weights_and_later_ones_wait(make: Make, adapter: str) -> None:
    """The change comes in the middle of a stream: no KV of other weights may be used."""

    def alone(changes: bool) -> list[int]:
        def script() -> Script:
            yield [*([load(adapter)] if changes else []), ask("one", TEXT, 40)]

        return EngineRun(make()).play(script())["one"].tokens

    sent: list[object] = []
    asking = Asking()

    def on_event(run: EngineRun, message: object) -> None:
        asking(run, message)
        if isinstance(message, m.TokensDelivered) and message.ref == "stream" and not sent:
            later = ask("later", TEXT, 40)
            sent.extend((load(adapter), Asked(m.ListAdapters("list"), HOST), later))
            run.outcomes["later"] = Outcome()
            run._open.add("later")
            for command in sent:
                run.commands.put(command)

    def script() -> Script:
        yield [ask("stream", TEXT, 40)]

    done = EngineRun(make(), on_event=on_event).play(script())
    assert done["stream"].tokens == alone(changes=False)
    assert done["later"].tokens == alone(changes=True)
    assert done["later"].reused == 0
    listed, changed = asking.answers
    assert isinstance(listed, m.AdaptersListed)
    assert (listed.adapters, listed.waiting) == ((), 1)
    assert isinstance(changed, m.AdaptersChanged)
    assert changed.adapters[0].path == adapter


def test_what_cannot_be_done_is_answered_and_changes_nothing(make: Make, adapter: str) -> None:
    def script() -> Script:
        yield [
            load(adapter + ".gone"), load(adapter, 1e9), Asked(m.UnloadAdapter("u", 7), HOST),
            Asked(m.ListAdapters("l"), HOST), ask("one", TEXT, 5),
        ]  # fmt: skip

    asking = Asking()
    done = EngineRun(make(), on_event=asking).play(script())
    assert done["one"].tokens
    listed, *refused = asking.answers
    assert isinstance(listed, m.AdaptersListed)
    assert [getattr(one, "kind", None) for one in refused] == [
        "ModelNotFound", "InvalidParam", "InvalidParam",
    ]  # fmt: skip
    for one in refused:
        assert isinstance(one, m.AdapterNotChanged)
        assert one.reason is m.FailReason.INVALID_REQUEST
        assert one.detail


def test_changes_that_wait_when_the_model_is_unloaded_are_answered(
    make: Make, adapter: str
) -> None:
    from actors.engine.commands import Close

    asking = Asking()

    def on_event(run: EngineRun, message: object) -> None:
        asking(run, message)
        if isinstance(message, m.TokensDelivered) and not message.index:
            run.commands.put(load(adapter))
            run.commands.put(Close(m.FailReason.MODEL_UNLOADED, "enough"))
            run.commands.put(load(adapter))

    def script() -> Script:
        yield [ask("stream", TEXT, 500)]

    done = EngineRun(make(), on_event=on_event).play(script())
    assert done["stream"].failed is not None
    reasons = [one.reason for one in asking.answers if isinstance(one, m.AdapterNotChanged)]
    assert reasons == [m.FailReason.MODEL_UNLOADED] * 2


def test_a_namespace_is_named_by_content_and_scale() -> None:
    root = b"r" * 32
    one = LoadedAdapter(1, "a", b"a" * 32, 1.0, 10)
    assert root_with(root, ()) == root
    assert root_with(root, (LoadedAdapter(1, "a", b"a" * 32, 0.0, 10),)) == root
    other_id = LoadedAdapter(5, "moved", b"a" * 32, 1.0, 10)
    louder = LoadedAdapter(1, "a", b"a" * 32, 1.5, 10)
    roots = [root_with(root, (one,)), root_with(root, (louder,)), root_with(b"s" * 32, (one,))]
    assert len({root, *roots}) == 4
    assert root_with(root, (other_id,)) == roots[0]


# --- on a node ----------------------------------------------------------------------------------


def change(node: Node, message: object) -> m.AdaptersChanged:
    answer = node.client.ask("model:tiny", message)
    assert isinstance(answer, m.AdaptersChanged), answer
    return answer


def test_rows_of_one_set_are_never_found_with_another_and_come_back(
    tiny_node: Node, lora: Path
) -> None:
    """Also after a kill of the model, which is restarted with the adapters it had."""
    plain = tiny_node.complete("tiny", PROMPT, max_tokens=20)
    loaded = change(tiny_node, m.LoadAdapter(new_ref(), str(lora)))
    cold = tiny_node.complete("tiny", PROMPT, max_tokens=20)
    assert cold.usage.cached_tokens == 0
    assert cold.tokens != plain.tokens
    change(tiny_node, m.UnloadAdapter(new_ref(), loaded.adapters[0].id))
    again = tiny_node.complete("tiny", PROMPT, max_tokens=20)
    assert (again.cache.source, again.cache.hit.value) == ("ram", "exact")
    assert again.tokens == plain.tokens
    change(tiny_node, m.LoadAdapter(new_ref(), str(lora)))
    warm = tiny_node.complete("tiny", PROMPT, max_tokens=20)
    assert (warm.cache.source, warm.cache.hit.value) == ("ram", "exact")
    assert warm.tokens == cold.tokens

    pid = pid_of(tiny_node, "model:tiny")
    tiny_node.client.status()  # the registry has noted the change before it answers this
    kill(pid)
    healed = tiny_node.complete("tiny", PROMPT, max_tokens=20)
    assert pid_of(tiny_node, "model:tiny") != pid
    assert healed.tokens == cold.tokens
    listed = tiny_node.client.ask("model:tiny", m.ListAdapters(new_ref()))
    assert isinstance(listed, m.AdaptersListed)
    assert [one.path for one in listed.adapters] == [str(lora)]


def test_adapters_of_a_load_are_part_of_its_status(node: Node, tiny_gguf: Path, lora: Path) -> None:
    with_lora = one_thread(tiny_gguf, lora=((str(lora), 0.5),))
    details = node.client.load("tiny", with_lora).details
    assert details["params"]["lora"] == [[str(lora), 0.5]]
    listed = node.client.ask("model:tiny", m.ListAdapters(new_ref()))
    assert isinstance(listed, m.AdaptersListed)
    assert [one.scale for one in listed.adapters] == [0.5]
    refused = node.client.ask("model:tiny", m.LoadAdapter(new_ref(), str(tiny_gguf)))
    assert isinstance(refused, m.AdapterNotChanged)
    assert refused.kind == "AdapterRefused"
