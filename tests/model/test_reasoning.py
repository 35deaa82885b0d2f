"""Thinking as values, found by the analysis of a template, on the embedded model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from runtime import Node, SpanEvent, TokenEvent
from tests.support.runtime_nodes import started
from tests.support.tool_template import THINKING_TEMPLATE

pytestmark = pytest.mark.model

MODEL = "demo"
ASKED = [{"role": "user", "content": "Tell me a story about a fox."}]
OPTIONS: dict[str, Any] = {
    "chat_template": THINKING_TEMPLATE,
    "max_tokens": 60,
    "thinking": True,
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with started(tmp_path_factory.mktemp("thinking")) as node:
        yield node


def test_a_budget_ends_a_thought_that_the_prompt_began(node: Node) -> None:
    done = node.chat(MODEL, ASKED, thinking_budget_tokens=12, **OPTIONS)
    assert done.thinking.strip()
    assert done.text.strip()
    written = node.detokenize(MODEL, done.tokens)
    assert written.index("</think>") > 0
    assert done.thinking.strip() == written[: written.index("</think>")].strip()
    assert written.endswith(done.text.strip())
    (thought,) = done.spans
    assert thought.is_closed
    assert thought.text.strip() == done.thinking.strip()
    assert node.verify_thinking(MODEL, thought.body, thought.signature)


def test_an_unfinished_thought_is_all_there_is(node: Node) -> None:
    done = node.chat(MODEL, ASKED, **{**OPTIONS, "max_tokens": 10})
    assert done.thinking
    assert not done.text
    assert [one.is_closed for one in done.spans] == [False]


def test_without_thinking_the_reply_is_text(node: Node) -> None:
    done = node.chat(MODEL, ASKED, enable_thinking=False, **OPTIONS)
    assert done.text
    assert not done.thinking
    assert not done.spans


def test_events_have_their_kinds_and_every_token_once(node: Node) -> None:
    kinds: list[str] = []
    tokens: list[int] = []
    for event in node.stream_chat(MODEL, ASKED, thinking_budget_tokens=12, **OPTIONS):
        if isinstance(event, TokenEvent):
            assert event.index == len(tokens)
            tokens += event.tokens
            kinds += [event.kind] * bool(event.text)
        elif isinstance(event, SpanEvent):
            kinds.append("span")
    assert (
        "".join(kinds).replace("thinking", "t").replace("text", "x").strip("t").startswith("span")
    )
    assert kinds.index("span") == kinds.count("thinking")
    assert kinds[-1] == "text"


def test_a_thought_comes_back_as_it_was(node: Node) -> None:
    done = node.chat(MODEL, ASKED, thinking_budget_tokens=12, **OPTIONS)
    message = done.to_message()
    assert message["reasoning_content"] == done.thinking
    history = [*ASKED, message, {"role": "user", "content": "And now?"}]
    after = node.chat(MODEL, history, thinking_budget_tokens=12, **OPTIONS)
    assert after.usage.cached_tokens >= done.usage.prompt_tokens


def test_a_continued_thought_is_a_thought_from_its_first_token(node: Node) -> None:
    begun = {"role": "assistant", "content": "", "reasoning_content": "Once there was a fox"}
    done = node.chat(
        MODEL, [*ASKED, begun], continue_final_message=True, thinking_budget_tokens=8, **OPTIONS
    )
    assert done.thinking.strip()
    assert "</think>" not in done.text
    assert "</think>" in node.detokenize(MODEL, done.tokens)
    assert not done.thinking.startswith("Once there was")
    assert done.text.strip()


def test_a_continued_content_is_text(node: Node) -> None:
    begun = {"role": "assistant", "content": "Once there was a fox"}
    done = node.chat(MODEL, [*ASKED, begun], continue_final_message=True, **OPTIONS)
    assert done.text
    assert not done.thinking
    assert not done.text.startswith("Once there was")
