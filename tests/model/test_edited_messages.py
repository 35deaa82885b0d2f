"""A conversation whose last message is edited: what is warm, and which part is reported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import Completion, Node
from runtime.client.cache.upkeep import is_flushed
from tests.support.gguf_files import ARCHITECTURES, tiny_llama
from tests.support.runtime_nodes import one_thread, started
from tests.support.waiting import eventually

pytestmark = pytest.mark.model

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
)
UNCUT = [arch for arch in ARCHITECTURES if arch != "llama"]
RULES = {
    "role": "system",
    "content": "Birds are described in few words, one of them after other. " * 9,
}
FIRST = {"role": "user", "content": "Tell me of the heron and of all it does in a day. " * 12}
OTHER = {"role": "user", "content": "And what of the owl, who sleeps by day? " * 12}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("edited")
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


def chat(node: Node, model: str, talk: list[dict[str, Any]], **options: Any) -> Completion:
    done = node.chat(model, talk, chat_template=TEMPLATE, max_tokens=12, **options)
    eventually(lambda: is_flushed(node.client), what="the end is stored")
    return done


def begins(node: Node, model: str, talk: list[dict[str, Any]], name: str) -> int:
    """Tokens before a part of a conversation."""
    prompt = node.apply_chat_template(model, talk, chat_template=TEMPLATE)
    found = next(part for part in prompt.parts if part.name == name)
    assert prompt.text[found.start :].startswith("[")
    assert found.start_token is not None
    return found.start_token


@pytest.mark.parametrize("arch", UNCUT)
def test_an_edited_last_message_is_read_from_its_beginning(
    warm: Node, cold: Node, gguf: dict[str, Path], arch: str
) -> None:
    """Of a model that cannot be cut, from the last block before it: between two rungs."""
    warm.client.load(arch, one_thread(gguf[arch]))
    cold.client.load(arch, one_thread(gguf[arch]))
    try:
        start = begins(warm, arch, [RULES, FIRST], "messages[1]")
        assert start // 64 in (5, 6, 7)  # a growing state has rungs at 4 and 8
        assert chat(warm, arch, [RULES, FIRST]).cache.hit.value == "cold"
        edited = chat(warm, arch, [RULES, OTHER])
        assert edited.usage.cached_tokens == start // 64 * 64
        assert edited.tokens == chat(cold, arch, [RULES, OTHER]).tokens
        found = edited.cache.diverged
        assert found is not None
        assert found.part.startswith("messages[1]")
        assert found.lost_tokens is not None
        assert found.lost_tokens > 0
        # Regenerated: the same prompt again.
        again = chat(warm, arch, [RULES, OTHER])
        assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
        assert again.cache.diverged is None
        assert again.tokens == edited.tokens
    finally:
        warm.unload(arch)
        cold.unload(arch)


@pytest.mark.parametrize("arch", ["jamba", "gemma3"])
def test_an_edited_later_message_is_read_from_its_beginning(
    warm: Node, cold: Node, gguf: dict[str, Path], arch: str
) -> None:
    """A conversation that was sent whole: nothing of its turns was computed before."""
    model = f"{arch}-later"
    warm.client.load(model, one_thread(gguf[arch], n_ctx=2048))
    cold.client.load(model, one_thread(gguf[arch], n_ctx=2048))
    reply = {"role": "assistant", "content": "It wades in the water, and it waits for fish. " * 3}
    rules = {"role": "system", "content": "Long answers are best, with many words in them. " * 11}
    try:
        talk = [rules, FIRST, reply, OTHER]
        start = begins(warm, model, talk, "messages[3]")
        first = begins(warm, model, talk, "messages[1]")
        chat(warm, model, talk)
        edited = [rules, FIRST, reply, {"role": "user", "content": "Enough of that. " * 9}]
        done = chat(warm, model, edited)
        assert done.usage.cached_tokens == start // 64 * 64
        assert done.tokens == chat(cold, model, edited).tokens
        done = chat(warm, model, [rules, OTHER])  # another conversation with these rules
        assert done.usage.cached_tokens == first // 64 * 64
        assert done.tokens == chat(cold, model, [rules, OTHER]).tokens
    finally:
        warm.unload(model)
        cold.unload(model)


def test_a_model_that_can_be_cut_is_warm_up_to_the_first_other_token(node: Node) -> None:
    """The embedded one: no row has to end where a message does, for each is cut where needed."""
    talk = [
        {"role": "system", "content": "You are a kind storyteller who tells short stories."},
        {"role": "user", "content": "Tell me a story about a fox."},
    ]
    edited = [talk[0], {"role": "user", "content": "Tell me a story about an owl."}]
    first, second = (node.apply_chat_template("demo", one) for one in (talk, edited))
    node.chat("demo", talk, max_tokens=8)
    done = node.chat("demo", edited, max_tokens=8)
    n_same = next(
        at for at, (a, b) in enumerate(zip(first.tokens, second.tokens, strict=False)) if a != b
    )
    assert done.usage.cached_tokens == n_same
    found = done.cache.diverged
    assert found is not None
    assert found.part == "messages[1].content"
    assert found.prompt_token == n_same
    assert found.at_char is not None
    assert edited[1]["content"][: found.at_char] == talk[1]["content"][: found.at_char]
    assert second.text[: found.prompt_char].endswith(edited[1]["content"][: found.at_char])
    assert found.lost_tokens == min(len(first.tokens), len(second.tokens)) - n_same


def test_what_was_changed_is_named(node: Node, tiny_gguf: Path) -> None:
    node.client.load("tiny", one_thread(tiny_gguf))
    tools = [
        {"type": "function", "function": {"name": f"tool_{at}", "description": "Does a thing."}}
        for at in range(4)
    ]
    talk = [RULES, FIRST]

    def part(talk: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str | None:
        prompt = node.chat("tiny", talk, chat_template=TEMPLATE, tools=tools, max_tokens=2)
        return prompt.cache.diverged and prompt.cache.diverged.part

    assert part(talk, tools) is None  # the first of all
    changed = {"type": "function", "function": {"name": "tool_2", "description": "Does another."}}
    assert part(talk, [*tools[:2], changed, tools[3]]) == "tools[2]"
    assert part([{"role": "system", "content": "x" + RULES["content"]}, FIRST], tools) == (
        "messages[0].content"
    )
    done = node.chat("tiny", talk, chat_template=TEMPLATE, tools=tools, max_tokens=8)
    assert done.cache.diverged is None  # all of it is warm
    more = [*talk, {"role": "assistant", "content": "No."}, OTHER]
    done = node.chat("tiny", more, chat_template=TEMPLATE, tools=tools, max_tokens=2)
    found = done.cache.diverged  # this is not what the model answered
    assert found is not None
    assert found.part.startswith("messages[2]")
    assert found.lost_tokens is None
