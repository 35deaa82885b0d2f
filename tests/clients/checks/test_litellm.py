"""LiteLLM through the four APIs: text, streams, usage, tool calls, typed errors."""

from __future__ import annotations

import json

import litellm
import pytest
from served import KEY, MODEL, OPENAI_TOOL, OVERLONG, QUESTION, URL

WAYS = {
    "openai": {"model": f"hosted_vllm/{MODEL}", "api_base": f"{URL}/v1"},
    "anthropic": {"model": f"anthropic/{MODEL}", "api_base": URL, "api_key": KEY},
    "ollama": {"model": f"ollama_chat/{MODEL}", "api_base": URL},
}
MESSAGES = [{"role": "user", "content": QUESTION}]
every_way = pytest.mark.parametrize("way", WAYS)


def ask(way, **options):
    settings = {"messages": MESSAGES, "max_tokens": 16, "temperature": 0, "num_retries": 0}
    return litellm.completion(**(settings | WAYS[way] | options))


@every_way
def test_text_and_usage(way):
    answer = ask(way)
    assert answer.choices[0].message.content
    usage = answer.usage
    assert usage.prompt_tokens > 0
    assert 0 < usage.completion_tokens <= 16
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@every_way
def test_a_stream_has_the_same_text(way):
    whole = ask(way).choices[0].message.content
    chunks = list(ask(way, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert len(chunks) > 2
    assert litellm.stream_chunk_builder(chunks).usage.completion_tokens > 0


@pytest.mark.parametrize("way", ["openai", "anthropic"])
def test_a_required_tool_is_called(way):
    answer = ask(way, tools=[OPENAI_TOOL], tool_choice="required", max_tokens=128)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("London", "Paris")
    assert answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("way", ["openai", "anthropic"])
def test_a_prompt_beyond_the_context_has_its_own_error(way):
    with pytest.raises(litellm.ContextWindowExceededError):
        ask(way, messages=[{"role": "user", "content": OVERLONG}])


@pytest.mark.parametrize("way", ["openai", "anthropic"])
def test_a_second_request_reads_the_cache(way):
    ask(way)
    assert ask(way).usage.prompt_tokens_details.cached_tokens > 0


def test_embeddings_have_one_vector_a_text():
    answer = litellm.embedding(
        model=f"hosted_vllm/{MODEL}", api_base=f"{URL}/v1", input=["one", "two"]
    )
    assert len(answer.data) == 2
    assert len(answer.data[0]["embedding"]) == len(answer.data[1]["embedding"]) > 1
