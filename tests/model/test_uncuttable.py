"""Models whose memory cannot be cut, on the real node: a hit answers as cold does."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runtime import Completion, Node
from runtime.client.cache.upkeep import is_flushed
from tests.support.gguf_files import ARCHITECTURES, tiny_llama
from tests.support.runtime_nodes import (
    PROMPT,
    LeakCheck,
    kill,
    one_thread,
    pid_of,
    started,
    status_of,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.model

UNCUT = [arch for arch in ARCHITECTURES if arch != "llama"]
LAYOUTS: dict[str, dict[str, Any]] = {
    "f16": {},
    "q8_0": {"type_k": "q8_0", "type_v": "q8_0"},
    "f16, no flash attention": {"flash_attn": False},
    "q8_0 keys, no flash attention": {"flash_attn": False, "type_k": "q8_0"},
}
TOKENS = [32 + (i * 37 + i * i) % 90 for i in range(700)]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("uncut")
    return {
        # Of six layers of gemma3 the last one looks at everything.
        arch: tiny_llama(folder / f"{arch}.gguf", arch=arch, n_layer=6 if arch == "gemma3" else 4)
        for arch in ARCHITECTURES
    }


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that caches nothing: what it answers is the truth."""
    with started(tmp_path_factory.mktemp("cold"), cache_ram=0, cache_disk=0) as node:
        yield node


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with started(tmp_path_factory.mktemp("warm")) as node:
        yield node


def load(node: Node, gguf: dict[str, Path], arch: str, layout: str = "f16") -> str:
    name = f"{arch}-{list(LAYOUTS).index(layout)}"
    if name not in {model.id for model in node.models()}:
        node.client.load(name, one_thread(gguf[arch], **LAYOUTS[layout]))
    return name


def ask(node: Node, model: str, prompt: list[int], n: int = 12) -> Completion:
    """With `always`: only it promises that a next turn equals the conversation read at once."""
    return node.complete(model, prompt, max_tokens=n, exact="always")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("arch", UNCUT)
def test_a_hit_answers_as_cold_does(
    warm: Node, cold: Node, gguf: dict[str, Path], arch: str, layout: str
) -> None:
    """An exact repeat, a next turn, an edited turn, and a prompt that shares only a beginning."""
    model = load(warm, gguf, arch, layout)
    load(cold, gguf, arch, layout)
    try:
        first = TOKENS[:301]
        one = ask(warm, model, first, 80)
        assert one.usage.cached_tokens == 0
        assert one.tokens == ask(cold, model, first, 80).tokens
        again = ask(warm, model, first, 80)
        assert (again.cache.hit.value, again.usage.cached_tokens) == ("exact", 300)
        assert again.tokens == one.tokens

        turn = [*first, *one.tokens, *TOKENS[:40]]
        second = ask(warm, model, turn)
        # 301 tokens and the 79 of 80 that were decoded: the state at the reply's end.
        assert (second.cache.hit.value, second.usage.cached_tokens) == ("partial", 380)
        assert second.tokens == ask(cold, model, turn).tokens

        edited = [*turn[:335], *TOKENS[100:150]]
        third = ask(warm, model, edited)
        assert third.usage.cached_tokens == 256
        assert third.tokens == ask(cold, model, edited).tokens

        shared = [*first[:270], *TOKENS[200:290]]
        fourth = ask(warm, model, shared)
        assert fourth.usage.cached_tokens == 256
        assert fourth.tokens == ask(cold, model, shared).tokens
    finally:
        warm.unload(model)
        cold.unload(model)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_that_can_be_cut_does_so_too_and_loses_nothing(
    warm: Node, cold: Node, gguf: dict[str, Path], layout: str
) -> None:
    """The same turns, for comparison: blocks reach to where the prompts part."""
    model = load(warm, gguf, "llama", layout)
    load(cold, gguf, "llama", layout)
    try:
        first = TOKENS[:301]
        one = ask(warm, model, first, 80)
        turn = [*first, *one.tokens, *TOKENS[:40]]
        for prompt, reused in ((turn, 380), ([*first[:270], *TOKENS[200:290]], 270)):
            hit = ask(warm, model, prompt)
            assert hit.usage.cached_tokens == reused
            assert hit.tokens == ask(cold, model, prompt).tokens
    finally:
        warm.unload(model)
        cold.unload(model)


@pytest.mark.parametrize("arch", ["gemma3", "mamba", "jamba"])
def test_checkpoints_survive_a_kill_of_the_model_and_a_restart_of_the_node(
    gguf: dict[str, Path], tmp_path: Path, arch: str
) -> None:
    prompt, n = TOKENS[:301], 40
    with LeakCheck() as leaks:
        with started(tmp_path) as node:
            leaks.watch(node)
            model = load(node, gguf, arch)
            one = ask(node, model, prompt, n)
            kill(pid_of(node, f"model:{model}"))
            eventually(
                lambda: status_of(node, f"model:{model}").get("running") == 0,
                within_s=30,
                what="the model is up again",
            )
            again = ask(node, model, prompt, n)
            assert (again.cache.source, again.usage.cached_tokens) == ("ram", 300)
            assert again.tokens == one.tokens
            eventually(
                lambda: is_flushed(node.client),
                what="rows are on disk",
            )
        with started(tmp_path) as node:
            leaks.watch(node)
            model = load(node, gguf, arch)
            eventually(
                lambda: "disk" in status_of(node, "cache_meta")["scanned"],
                what="the disk was scanned",
            )
            again = ask(node, model, prompt, n)
            assert (again.cache.source, again.usage.cached_tokens) == ("disk", 300)
            assert again.tokens == one.tokens
            turn = [*prompt, *one.tokens, *TOKENS[:40]]
            after = ask(node, model, turn)
            # 341: the model was killed before the end of its reply was confirmed, so that the reply
            # was taken up again; then its last token is read too.
            assert after.cache.hit.value == "partial"
            assert after.usage.cached_tokens in {340, 341}


def test_many_streams_at_once_answer_as_one_alone_does(
    warm: Node, cold: Node, gguf: dict[str, Path]
) -> None:
    """Checkpoints are taken in steps that read and decode for several requests together."""
    model = load(warm, gguf, "jamba")
    load(cold, gguf, "jamba")
    prompts = [[*TOKENS[at : at + 90], *TOKENS[:180]] for at in range(0, 600, 100)]
    alone = [ask(cold, model, prompt, 16).tokens for prompt in prompts]
    for _ in range(2):
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(lambda p: ask(warm, model, p, 16), prompts))
        assert alone == [one.tokens for one in together]
    assert all(one.cache.hit.value == "exact" for one in together)


def test_a_reply_that_a_stop_string_ended_continues_as_cold_does(
    warm: Node, cold: Node, gguf: dict[str, Path]
) -> None:
    """What the stop string hid is in the state too, and a state cannot be cut."""
    model = load(warm, gguf, "mamba")
    load(cold, gguf, "mamba")
    prompt = TOKENS[50:170]
    whole = ask(cold, model, prompt, 60)
    stop = whole.text[10:13]
    one = warm.complete(model, prompt, max_tokens=60, stop=[stop], exact="always")
    assert one.tokens == whole.tokens[: len(one.tokens)]
    turn = [*prompt, *one.tokens, *TOKENS[:30]]
    second = ask(warm, model, turn)
    assert second.usage.cached_tokens > 0
    assert second.tokens == ask(cold, model, turn).tokens


def test_a_parent_key_names_the_exact_tokens_of_a_turn(
    warm: Node, cold: Node, gguf: dict[str, Path]
) -> None:
    model = load(warm, gguf, "lfm2")
    load(cold, gguf, "lfm2")
    one = warm.complete(model, PROMPT, max_tokens=50, exact="always")
    assert one.finish_key is not None
    text = PROMPT + one.text + " and then"
    two = warm.complete(model, text, max_tokens=12, parent_key=one.finish_key, exact="always")
    assert two.cache.note is None
    n_held = one.usage.prompt_tokens + len(one.tokens) - 1
    assert two.usage.cached_tokens == n_held
    assert two.tokens == cold.complete(model, text, max_tokens=12, exact="always").tokens
