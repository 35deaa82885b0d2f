"""The parts of prompts of published chat templates, in characters and in tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from actors.text.chat_prompt import ControlTokens, prompt_tokens, render_chat
from actors.text.chat_request import Chat, chat_from
from actors.text.chat_shape import completed, fitted
from actors.text.chat_shown import NotShown, check_shown
from actors.text.chat_template import ChatTemplate, TemplateFailed
from actors.text.part_places import Pieces, token_ends
from actors.text.parts import Parts, parts_of, with_tools
from actors.text.template_marks import Marks
from native import load_backend
from native.backend import Backend
from native.params import ModelParams
from tests.support.prompt_parts import check
from tests.support.template_outcomes import OUTCOMES
from tests.support.template_requests import CALLS, TOOL, said

pytestmark = pytest.mark.model

THOUGHT = "<think>\nBirds wade, I think.\n</think>\n\nA grey one, as was said."
TALK = [
    said("system", "Always answer in few words."),
    said("user", "Which bird is that?"),
    said("assistant", "It is a heron."),
    said("user", "Look up what it does!"),
    said("assistant", "One moment, please.", tool_calls=CALLS),
    said("tool", "A wading bird of ponds and rivers.", tool_call_id="call00001", name="look_up"),
    said("assistant", THOUGHT),
    said("user", "And what does it eat?"),
]
CASES: dict[str, dict[str, Any]] = {
    "plain": {"messages": TALK[:4]},
    "no system": {"messages": TALK[1:4]},
    "all": {"messages": TALK, "tools": [TOOL]},
    "ends with a result": {"messages": TALK[1:6], "tools": [TOOL]},
    "ends without a prompt for a reply": {"messages": TALK[:2], "add_generation_prompt": False},
}
UNWRITTEN = {
    "Apertus-8B-Instruct",
    "Apriel-1.6-15b-Thinker-fixed",
    "ByteDance-Seed-OSS",
    "Cohere2MoE",
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
    "GigaChat3-10B-A1.8B",
    "GigaChat3.1-10B-A1.8B",
    "Kimi-K3",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "Qwen3-Coder",
    "google-gemma-4-31B-it-interleaved",
    "google-gemma-4-31B-it",
    "meetkai-functionary-medium-v3.2",
    "openai-gpt-oss-120b",
    "unsloth-Apriel-1.5",
}
"""Templates that write tools otherwise than as JSON."""
RENDERED_AGAIN = {"Reka-Edge"}
# Templates that write what cannot be attributed, in the case "all".
UNKNOWN = {
    "Reka-Edge": ("messages[6]",),  # one text of everything, with the thought in another form
}


def shown(template: ChatTemplate, request: dict[str, Any]) -> tuple[Chat, str, Parts]:
    chat = fitted(template, chat_from(json.dumps(request)))
    text, marks = template.render_marked(chat.variables())
    return chat, text, parts_of(chat, text, marks.found)


@pytest.mark.parametrize("name", OUTCOMES)
def test_every_part_of_a_conversation_is_found(name: str, published: Path) -> None:
    source = (published / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    template = completed(ChatTemplate(source, bos_token="<bos>", eos_token="<eos>"))
    for case, request in CASES.items():
        chat, text, parts = shown(template, request)
        check(chat, text, parts)
        each = with_tools(chat, text, parts)
        check(chat, text, each)
        if case == "all":
            has_each = any(one.name == "tools[0]" for one in each.found)
            assert has_each == (name not in UNWRITTEN and "tools" not in parts.unknown), each
            assert parts.unknown == UNKNOWN.get(name, ()), parts
            places = [parts.found[at].name for at in parts.restarts]
            assert places == ["messages[1]", "messages[7]"], parts
        elif case != "ends with a result":
            assert not parts.unknown, parts


@pytest.mark.parametrize("name", OUTCOMES)
def test_an_edited_last_message_changes_no_part_before_it(name: str, published: Path) -> None:
    """Where a prompt with another last message parts from the first one, that message begins."""
    source = (published / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    template = completed(ChatTemplate(source, bos_token="<bos>", eos_token="<eos>"))
    request = CASES["plain"]
    other = {"messages": [*request["messages"][:-1], said("user", "Zebras, what are they?")]}
    _, text, parts = shown(template, request)
    changed = shown(template, other)[1]
    last = parts.found[parts.restarts[-1]]
    assert changed[: last.start] == text[: last.start]
    assert text.startswith("Look up", last.content[0] if last.content else last.start)


@pytest.mark.parametrize("name", OUTCOMES)
def test_what_is_in_its_own_part_is_shown(name: str, published: Path) -> None:
    """With parts, less is rendered twice, and the same is refused as without."""
    source = (published / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    template = completed(ChatTemplate(source, bos_token="<bos>", eos_token="<eos>"))
    middle = [*TALK[1:3], said("system", "Always answer in few words."), *TALK[3:6]]
    more: dict[str, dict[str, Any]] = {
        **CASES,
        "called without tools": {"messages": TALK[1:6]},
        "in the middle": {"messages": middle, "tools": [TOOL]},
        "developer": {"messages": [said("developer", "Always answer in few words."), TALK[1]]},
        "documents": {"messages": TALK[1:2], "documents": [{"title": "Birds", "text": "Wade."}]},
    }
    for case, request in more.items():
        try:
            chat, text, parts = shown(template, request)
        except TemplateFailed:
            continue
        refusals: list[str] = []
        n_rendered: list[int] = []
        for known in (None, parts):
            counted = Counted(template)
            refusals.append("")
            try:
                check_shown(counted, chat, text, thinks=True, parts=known)
            except NotShown as error:
                refusals[-1] = str(error)
            n_rendered.append(counted.n_rendered)
        assert refusals[0] == refusals[1], case
        assert n_rendered[1] <= n_rendered[0], case
        if case in ("all", "ends with a result") and not refusals[0]:
            assert (n_rendered[1] == 0) == (name not in RENDERED_AGAIN), (case, parts)


class Counted(ChatTemplate):
    """A template that counts how often it is rendered."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template_of = template
        self.variables = template.variables
        self.n_rendered = 0

    def render_marked(self, variables: Mapping[str, Any]) -> tuple[str, Marks]:
        self.n_rendered += 1
        return self._template_of.render_marked(variables)


VOCABULARIES = {
    "qwen2": "Qwen-Qwen3-0.6B",
    "llama-bpe": "meta-llama-Llama-3.1-8B-Instruct",
    "llama-spm": "mistralai-Mistral-Nemo-Instruct-2407",
    "phi-3": "microsoft-Phi-3.5-mini-instruct",
    "gemma-4": "google-gemma-4-31B-it",
    "deepseek-llm": "deepseek-ai-DeepSeek-V3.2",
    "command-r": "CohereForAI-c4ai-command-r-plus-tool_use",
}


PLAIN_ONLY = {32_000, 102_400, 256_000}
"""Sizes of vocabularies in which what these templates write between messages is no control token.
"""


@pytest.fixture(scope="module", params=VOCABULARIES)
def vocabulary(request: pytest.FixtureRequest, published: Path) -> tuple[Backend, ChatTemplate]:
    kind = request.param
    path = published / f"ggml-vocab-{kind}.gguf"
    backend = load_backend("llama", str(path), ModelParams(vocab_only=True))
    info = backend.info
    shown = [
        "" if token is None else backend.piece(token, special=True).decode()
        for token in (info.bos_token, info.eos_token)
    ]
    source = (published / "templates" / f"{VOCABULARIES[kind]}.jinja").read_text("utf-8")
    return backend, completed(ChatTemplate(source, bos_token=shown[0], eos_token=shown[1]))


@pytest.mark.parametrize("words", ["plain", "forged", "other letters"])
def test_parts_end_where_tokens_do(vocabulary: tuple[Backend, ChatTemplate], words: str) -> None:
    """The tokens before a part are those of the text before it, where a control token follows."""
    backend, template = vocabulary
    control, pieces = ControlTokens.of(backend), Pieces(backend)
    first = next(iter(control.ids), "<s>")
    said_first = {
        "plain": "Which bird is that?",
        "forged": f"Is {first} a bird? {first}{first}",
        "other letters": "Où est le héron, 鹭? 🐦‍⬛  \n\n",
    }[words]
    talk = [TALK[0], said("user", said_first), *TALK[2:4]]
    chat = fitted(template, chat_from(json.dumps(talk)))
    prompt = render_chat(template, chat, control)
    ids = prompt_tokens(backend, prompt, control)
    parts = parts_of(chat, prompt.text, prompt.marks)
    check(chat, prompt.text, parts)
    ends = token_ends(prompt.text, [one.end for one in parts.found], ids, pieces)
    assert ends[-1] == len(ids)
    assert all(end is not None for end in ends), ends
    assert ends == sorted(end or 0 for end in ends)
    forged = {at for at, _ in prompt.forged}
    n_compared = 0
    for part, end in zip(parts.found[:-1], ends[:-1], strict=True):
        rest = prompt.text[part.end :]
        if not any(rest.startswith(one) for one in control.ids) or part.end in forged:
            continue
        before = prompt.text[: part.end]
        known = tuple(one for one in prompt.forged if one[0] < part.end)
        if bool(known) != bool(forged):
            continue  # a text without forged tokens is tokenised as one string
        alone = prompt_tokens(backend, type(prompt)(before, known), control)
        assert ids[:end] == alone, part
        n_compared += 1
    if words == "plain" and backend.info.n_vocab not in PLAIN_ONLY:
        assert n_compared >= 3
