"""llama-index's client for servers that are like OpenAI's: chat and plain completion."""

from __future__ import annotations

import json

import openai
import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from served import KEY, MODEL, OPENAI_TOOL, OVERLONG, QUESTION, URL


def client(*, is_chat_model: bool) -> OpenAILike:
    return OpenAILike(
        model=MODEL,
        api_base=f"{URL}/v1",
        api_key=KEY,
        is_chat_model=is_chat_model,
        is_function_calling_model=is_chat_model,
        max_tokens=96,
        temperature=0,
        max_retries=0,
        context_window=2048,
    )


MESSAGES = [ChatMessage(role="user", content=QUESTION)]


def test_chat_and_its_stream():
    chat = client(is_chat_model=True)
    answer = chat.chat(MESSAGES)
    assert answer.message.content
    assert answer.raw.usage.total_tokens > answer.raw.usage.prompt_tokens > 0
    pieces = list(chat.stream_chat(MESSAGES))
    assert pieces[-1].message.content == answer.message.content
    assert "".join(piece.delta or "" for piece in pieces) == answer.message.content


def test_completion_and_its_stream():
    plain = client(is_chat_model=False)
    answer = plain.complete(QUESTION)
    assert answer.text
    pieces = list(plain.stream_complete(QUESTION))
    assert "".join(piece.delta or "" for piece in pieces) == answer.text


def test_a_required_tool_is_called():
    chat = client(is_chat_model=True)
    answer = chat.chat(MESSAGES, tools=[OPENAI_TOOL], tool_choice="required")
    (call,) = answer.raw.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("London", "Paris")


def test_a_prompt_beyond_the_context_is_a_bad_request():
    with pytest.raises(openai.BadRequestError) as caught:
        client(is_chat_model=True).chat([ChatMessage(role="user", content=OVERLONG)])
    assert caught.value.code == "context_length_exceeded"
