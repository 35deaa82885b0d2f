"""The grammars of tool calls, on published templates: they compile, and permit what is written."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from actors.text.chat_prompt import ControlTokens, render_chat
from actors.text.chat_request import chat_from
from actors.text.chat_shape import fitted
from actors.text.chat_template import ChatTemplate
from actors.text.reply_format import ReplyFormat, ReplyFormats
from native.chat_format import ChatFormat
from native.errors import InvalidParam
from native.llama import LlamaBackend
from native.params import ModelParams, SamplingParams
from runtime.embedded import path as embedded_path
from tests.model.test_chat_formats import CASES, PLAIN_TOOLS, NotSent, reply_of
from tests.support.published import published_models
from tests.support.template_outcomes import OUTCOMES
from tests.support.tool_template import ASKED

pytestmark = pytest.mark.model

NO_TOKENS = ControlTokens({})
WITHOUT = {
    "ByteDance-Seed-OSS": "its prompt ends in another way than the analysis expects",
    "HuggingFaceTB-SmolLM3-3B": "prints no tools",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "prints no tools",
    "google-gemma-2-2b-it": "has none",
    "ibm-granite-granite-3.3-2B-Instruct": "prints no calls",
    "llama-cpp-rwkv-world": "has none",
    "microsoft-Phi-3.5-mini-instruct": "has none",
    "openbmb-MiniCPM5-1B": "its prompt ends in another way than the analysis expects",
}
"""Templates for which no call can be required."""


@pytest.fixture(scope="module")
def backend() -> Iterator[LlamaBackend]:
    backend = LlamaBackend.load(embedded_path(), ModelParams(n_ctx=256, n_threads=1))
    yield backend
    backend.close()


def template_of(name: str) -> str:
    return (published_models() / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def format_of(name: str, backend: LlamaBackend, choice: str) -> ReplyFormat | None:
    source = template_of(name)
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    asked = {"messages": ASKED, "tools": PLAIN_TOOLS, "tool_choice": choice}
    chat = fitted(template, chat_from(json.dumps(asked)))
    text = render_chat(template, chat, NO_TOKENS).text
    return ReplyFormats(backend).of(source, chat, text, NO_TOKENS)


@pytest.mark.parametrize("name", sorted(set(OUTCOMES) - set(WITHOUT)))
def test_a_call_can_be_required_and_its_grammar_is_used(name: str, backend: LlamaBackend) -> None:
    found = format_of(name, backend, "required")
    assert found is not None
    assert found.grammar is not None
    assert backend.new_sampler(SamplingParams(), (), found.grammar)
    auto = format_of(name, backend, "auto")
    assert auto is not None
    assert (
        auto.lazy is not None
        or not auto.reader.facts.grammar_is_lazy
        or not any(kind == "word" for kind, _ in auto.reader.facts.triggers)
    )


def test_the_grammars_permit_calls_as_templates_write_them(backend: LlamaBackend) -> None:
    permitted: list[str] = []
    for name in sorted(set(OUTCOMES) - set(WITHOUT)):
        source = template_of(name)
        template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
        found = format_of(name, backend, "required")
        assert found is not None
        try:
            _, data = reply_of(template, ChatFormat(source), *CASES["one"])
            sampler = backend.new_sampler(SamplingParams(), (), found.grammar)
            for token in backend.tokenize(data.decode(), add_special=False):
                sampler.accept(token)
            permitted.append(name)
        except (InvalidParam, NotSent):
            continue  # mostly: the conversation has a thought where the grammar has none
    assert len(permitted) >= 48, permitted
