"""Published chat templates: every conversation is rendered whole, or refused with its reason."""

from __future__ import annotations

import json
import queue
from pathlib import Path
from typing import Any

import pytest

from actors import messages as m
from actors.messages.markers import Markers
from actors.model.text_service import TextService
from actors.text.chat_request import chat_from
from actors.text.chat_shape import completed, fitted
from actors.text.chat_shown import NotShown, check_shown
from actors.text.chat_template import ChatTemplate, TemplateFailed
from actors.text.reply_events import ReplyRules
from native import load_backend
from native.params import ModelParams
from supervision import Address
from tests.support.template_outcomes import OUTCOMES
from tests.support.template_requests import CALLS, TOOL, said

pytestmark = pytest.mark.model


SYSTEM, USER, REPLY = said("system", "Be brief."), said("user", "Why?"), said("assistant", "Hence.")
MORE = said("user", "How?")
RESULT = said("tool", "A wading bird.", tool_call_id="call00001", name="look_up")
BESIDE = "One moment."
# Case → the request, and the words that the prompt must have.
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "plain": (
        {"messages": [SYSTEM, USER, REPLY, MORE]},
        ("Be brief.", "Why?", "Hence.", "How?"),
    ),
    "tools": ({"messages": [SYSTEM, USER], "tools": [TOOL]}, ("Be brief.", "dictionary", "noun")),
    "null content": (
        {"messages": [USER, said("assistant", tool_calls=CALLS), RESULT], "tools": [TOOL]},
        ("Why?", "look_up", "heron", "wading"),
    ),
    "no content": (
        {"messages": [USER, {"role": "assistant", "tool_calls": CALLS}, RESULT], "tools": [TOOL]},
        ("Why?", "look_up", "heron", "wading"),
    ),
    "text beside calls": (
        {"messages": [USER, said("assistant", BESIDE, tool_calls=CALLS), RESULT], "tools": [TOOL]},
        ("Why?", "look_up", "heron", "wading"),
    ),
    "calls without tools": (
        {"messages": [USER, said("assistant", tool_calls=CALLS), RESULT]},
        ("Why?", "look_up", "heron", "wading"),
    ),
    "two users": ({"messages": [USER, MORE]}, ("Why?", "How?")),
    "no system": ({"messages": [USER]}, ("Why?",)),
    "system in the middle": (
        {"messages": [USER, REPLY, SYSTEM, MORE]},
        ("Why?", "Hence.", "Be brief.", "How?"),
    ),
    "system alone": ({"messages": [SYSTEM]}, ("Be brief.",)),
    "developer": ({"messages": [said("developer", "Be brief."), USER]}, ("Be brief.", "Why?")),
    "documents": (
        {"messages": [USER], "documents": [{"title": "Birds", "text": "Herons wade."}]},
        ("Why?", "Herons wade."),
    ),
}


@pytest.fixture(scope="module")
def templates(published: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted((published / "templates").glob("*.jinja"))}


def test_every_published_template_is_in_the_table(templates: dict[str, Path]) -> None:
    assert set(OUTCOMES) == set(templates)
    assert {len(row) for row in OUTCOMES.values()} == {len(CASES)}


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_template_treats_each_conversation_as_in_the_table(
    name: str, templates: dict[str, Path]
) -> None:
    source = templates[name].read_text(encoding="utf-8")
    template = completed(ChatTemplate(source, bos_token="<bos>", eos_token="<eos>"))
    thinks = bool(Markers().for_template(source).thinking)
    found = {case: outcome(template, case, thinks) for case in CASES}
    assert found == dict(zip(CASES, OUTCOMES[name], strict=True))


def outcome(template: ChatTemplate, case: str, thinks: bool) -> str:
    request, words = CASES[case]
    chat = fitted(template, chat_from(json.dumps(request)))
    refusal = ""
    try:
        text = template.render(chat.variables())
        check_shown(template, chat, text, thinks=thinks)
    except (TemplateFailed, NotShown) as error:
        refusal = str(error)
    if refusal:
        is_left_out = "would not reach the model" in refusal
        assert is_left_out or refusal.startswith("the chat template raised: "), refusal
        return "L" if is_left_out else "T"
    assert [word for word in words if word not in text] == [], text
    assert "{'word': 'heron'" not in text, text
    assert '\\"heron' not in text, text
    if case == "text beside calls" and BESIDE not in text:
        return "b"
    return "."


def test_the_named_templates_of_a_published_model_are_used(published: Path) -> None:
    """Command R's file has one for tools and one for documents beside the usual one."""
    backend = load_backend(
        "llama", str(published / "ggml-vocab-command-r.gguf"), ModelParams(vocab_only=True)
    )
    rules = ReplyRules.of(backend, Markers(), b"")
    sent_by_service: queue.Queue[object] = queue.Queue()
    service = TextService(backend, rules, send=lambda _, one: sent_by_service.put(one), run=print)
    try:
        assert [name for name, _ in backend.info.named_templates] == ["tool_use", "rag"]
        for case in ("tools", "documents", "plain"):
            request, words = CASES[case]
            service.ask(m.ApplyChatTemplate("r", json.dumps(request)), Address("127.0.0.1", 1))
            text, last = "", False
            while not last:
                page = sent_by_service.get(timeout=20)
                assert isinstance(page, m.ChatTemplateApplied), page
                text, last = text + page.text, page.last
            assert [word for word in words if word not in text] == [], text
    finally:
        service.close(m.FailReason.MODEL_UNLOADED, "")
        backend.close()
