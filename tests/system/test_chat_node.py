"""Chats and texts through a whole node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actors import messages as m
from actors.messages.markers import Markers
from cache import tokens as token_bytes
from runtime import Node
from runtime.client.received import Received
from runtime.embedded import path as embedded
from tests.support.runtime_nodes import kill, one_thread, pid_of, started
from tests.support.waiting import eventually

pytestmark = pytest.mark.system


TALK = [{"role": "user", "content": "Tell me a story about a fox."}]
CHAT = json.dumps(TALK)
RENDERED = "<|user|>\nTell me a story about a fox.<|end|>\n<|assistant|>\n"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    config = replace(one_thread(embedded(), n_ctx=1024), markers=Markers(thinking=(" a ", " the ")))
    with started(tmp_path_factory.mktemp("node"), models={"m": config}) as one:
        eventually(lambda: [s for s in one.models() if s.state == "up"], within_s=30, what="loaded")
        yield one


def heard(node: Node, request: m.Complete) -> list[object]:
    replies: list[object] = []
    for reply in node.connection.stream("inflight", request, idle_timeout_s=30):
        replies.append(reply)
        if isinstance(reply, m.Completed | m.CompletionFailed):
            return replies
    raise AssertionError(replies)


def reply(replies: list[object]) -> Received:
    received = Received()
    for one in replies:
        if isinstance(one, m.TokensDelivered):
            received.take(one)
        elif isinstance(one, m.SpanEnded):
            received.take_span(one)
    return received


def test_a_chat_gives_the_reply_of_its_rendered_text(node: Node) -> None:
    chat = heard(node, m.Complete("c", "m", m.ConversationPrompt(CHAT), max_tokens=24))
    text = node.complete("m", RENDERED, parse_special=True, max_tokens=24)
    assert reply(chat).text == text.text
    assert reply(chat).tokens == text.tokens


def test_texts_and_templates_are_answered_by_the_model(node: Node) -> None:
    applied = node.connection.ask("model:m", m.ApplyChatTemplate("a", CHAT), timeout_s=30)
    assert isinstance(applied, m.ChatTemplateApplied)
    assert applied.text == RENDERED
    shown = node.connection.ask(
        "model:m", m.Detokenize("d", applied.tokens, special=True), timeout_s=20
    )
    assert isinstance(shown, m.Detokenized)
    assert shown.data.decode() == "<|bos|>" + RENDERED
    ids = node.connection.ask(
        "model:m", m.Tokenize("t", RENDERED, parse_special=True), timeout_s=20
    )
    assert isinstance(ids, m.Tokenized)
    assert ids.tokens == applied.tokens


def test_the_error_of_a_bad_chat_names_the_mistake_and_the_model_stays_up(node: Node) -> None:
    failed = heard(node, m.Complete("c", "m", m.ConversationPrompt('[{"content": "x"}]')))[-1]
    assert isinstance(failed, m.CompletionFailed)
    assert (failed.reason, failed.detail) == (
        m.FailReason.INVALID_REQUEST, 'messages[0] has no "role"',
    )  # fmt: skip
    assert node.complete("m", "Once", max_tokens=2).tokens


def test_thinking_comes_apart_and_is_verified_by_the_node(node: Node) -> None:
    """The markers set for this model are words that it generates."""
    asked = m.Complete("c", "m", m.ConversationPrompt(CHAT), max_tokens=48, thinking=True)
    apart, whole = reply(heard(node, asked)), reply(heard(node, replace(asked, thinking=False)))
    assert apart.tokens == whole.tokens
    assert apart.spans
    first = apart.spans[0]
    assert first.content.startswith(b" a ")
    if first.is_closed:
        assert first.content == b" a " + first.body + b" the "
    assert first.text not in apart.text
    for body, valid in ((first.body, True), (first.body + b"x", False)):
        question = m.VerifyThinking("v", body, first.signature)
        assert node.connection.ask("model:m", question, timeout_s=30) == m.ThinkingVerified(
            "v", valid
        )


def test_a_chat_whose_model_is_killed_resumes_at_its_next_token(node: Node) -> None:
    chat = m.ConversationPrompt(CHAT)
    asked = m.Complete("c", "m", chat, max_tokens=400, thinking=True, exact=m.Exact.PREFIX)
    whole = reply(heard(node, asked))
    received, killed = Received(), False
    for one in node.connection.stream("inflight", replace(asked, ref="d"), idle_timeout_s=30):
        if isinstance(one, m.TokensDelivered):
            received.take(one)
            if not killed and len(received) > 20:
                killed = True
                kill(pid_of(node, "model:m"))
        elif isinstance(one, m.SpanEnded):
            received.take_span(one)
        elif isinstance(one, m.Completed | m.CompletionFailed):
            assert isinstance(one, m.Completed), one
            break
    assert killed
    assert received.tokens == whole.tokens
    assert received.text == whole.text
    assert received.spans == whole.spans


def test_a_signature_is_valid_after_a_restart_of_the_node(tmp_path: Path) -> None:
    config = replace(one_thread(embedded(), n_ctx=512), markers=Markers(thinking=(" a ", " the ")))
    signed = None
    for _ in range(2):
        with started(tmp_path, models={"m": config}) as node:
            eventually(
                lambda n=node: [s for s in n.models() if s.state == "up"], within_s=30, what="up"
            )  # type: ignore[misc]
            if signed is None:
                asked = m.Complete(
                    "c", "m", m.ConversationPrompt(CHAT), max_tokens=48, thinking=True
                )
                signed = reply(heard(node, asked)).spans[0]
            question = m.VerifyThinking("v", signed.body, signed.signature)
            answer = node.connection.ask("model:m", question, timeout_s=30)
            assert answer == m.ThinkingVerified("v", True)
    assert token_bytes.pack(signed.tokens) if signed else False
    assert (tmp_path / "cache" / "signing-key").stat().st_mode & 0o777 == 0o600
