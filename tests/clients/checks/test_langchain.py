"""LangChain's chat models for OpenAI (both APIs), Anthropic and Ollama, and its embeddings."""

from __future__ import annotations

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from served import KEY, MODEL, OPENAI_TOOL, OVERLONG, QUESTION, URL


def openai(**more):
    settings = {"base_url": f"{URL}/v1", "api_key": KEY, "max_tokens": 96, "temperature": 0}
    return ChatOpenAI(model=MODEL, max_retries=0, **(settings | more))


def responses():
    return openai(use_responses_api=True)


def anthropic():
    return ChatAnthropic(
        model=MODEL, base_url=URL, api_key=KEY, max_tokens=96, temperature=0, max_retries=0
    )


def ollama():
    return ChatOllama(model=MODEL, base_url=URL, num_predict=96, temperature=0)


WAYS = {"openai": openai, "responses": responses, "anthropic": anthropic, "ollama": ollama}
with_tools = pytest.mark.parametrize("way", ["openai", "responses", "anthropic"])


@pytest.fixture(params=WAYS)
def chat(request):
    return WAYS[request.param]()


def text(message) -> str:
    return "".join(part["text"] for part in message.content_blocks if part["type"] == "text")


def test_text_and_usage(chat):
    answer = chat.invoke(QUESTION)
    assert text(answer)
    usage = answer.usage_metadata
    assert usage["input_tokens"] > 0
    assert usage["output_tokens"] > 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_a_stream_has_the_same_text(chat):
    whole = text(chat.invoke(QUESTION))
    pieces = list(chat.stream(QUESTION))
    assert "".join(text(piece) for piece in pieces) == whole
    assert len(pieces) > 2


@with_tools
def test_a_required_tool_is_called_and_its_result_read(way):
    model = WAYS[way]()
    bound = model.bind_tools([OPENAI_TOOL], tool_choice="any")
    answer = bound.invoke(QUESTION)
    (call,) = answer.tool_calls
    assert call["name"] == "weather"
    assert call["args"]["city"] in ("London", "Paris")
    result = ToolMessage("Sunny", tool_call_id=call["id"])
    history = [HumanMessage(QUESTION), answer, result]
    told = model.bind_tools([OPENAI_TOOL]).invoke(history)
    assert told.usage_metadata["input_tokens"] > answer.usage_metadata["input_tokens"]


@with_tools
def test_a_prompt_beyond_the_context_has_its_own_error(way):
    with pytest.raises(ContextOverflowError):
        WAYS[way]().invoke(OVERLONG)


@with_tools
def test_a_second_request_reads_the_cache(way):
    model = WAYS[way]()
    model.invoke(QUESTION)
    again = model.invoke(QUESTION)
    assert again.usage_metadata["input_token_details"]["cache_read"] > 0


@pytest.mark.parametrize("kind", ["openai", "ollama"])
def test_embeddings_have_one_vector_a_text(kind):
    if kind == "openai":
        # Else it would send tokens of OpenAI's vocabulary, which it fetches from the network.
        model = OpenAIEmbeddings(
            model=MODEL, base_url=f"{URL}/v1", api_key=KEY, check_embedding_ctx_length=False
        )
    else:
        model = OllamaEmbeddings(model=MODEL, base_url=URL)
    one, two = model.embed_documents(["one", "two"])
    assert len(one) == len(two) > 1
