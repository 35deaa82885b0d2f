"""Texts whose bytes prove that they do not fit: refused before anything is tokenised."""

from __future__ import annotations

import json
import queue
from dataclasses import replace

import pytest

from actors import messages as m
from actors.engine import prompt_tokens
from actors.engine.prompt_tokens import least_tokens
from actors.engine.request_builder import open_request
from actors.messages.errors import RequestRefused
from actors.model.embedding_service import EmbeddingService
from actors.model.text_service import TextService
from actors.text.reply_events import ReplyRules
from cache import tokens as token_bytes
from native.params import ModelParams
from native.stub import StubBackend
from supervision import Address

pytestmark = pytest.mark.pure

HOST = Address("127.0.0.1", 1)
N_CTX = 256
LONG = "x" * (4 * N_CTX + 1)  # a token of the stub has four bytes at most
AT_LEAST = m.FailureFacts(n_prompt=N_CTX + 1, n_ctx=N_CTX)


class Reluctant(StubBackend):
    """A stub that is never to tokenise a long text."""

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        assert len(text) <= 4 * N_CTX, "a text was tokenised that cannot fit"
        return super().tokenize(text, add_special=add_special, parse_special=parse_special)


@pytest.fixture
def backend() -> StubBackend:
    found = Reluctant.load("long", ModelParams(n_ctx=N_CTX, embed_tokens=64))
    found.info = replace(found.info, chat_template="{{ messages[0].content }}")
    return found


@pytest.fixture
def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """No text is tokenised that its bytes prove to be too long."""
    monkeypatch.setattr(prompt_tokens, "COUNTED_BYTES", 4)


def opened(backend: StubBackend, request: m.Complete) -> str:
    with pytest.raises(RequestRefused) as caught:
        open_request(m.Run("id", HOST, request), backend, now=0.0)
    assert caught.value.reason is m.FailReason.PROMPT_TOO_LONG
    assert caught.value.facts == m.FailureFacts(n_prompt=257, n_ctx=N_CTX)
    return str(caught.value)


def test_a_prompt_that_cannot_fit_is_refused_by_its_bytes(backend: StubBackend) -> None:
    request = m.Complete("r", "long", m.TextPrompt(LONG))
    for asked in (
        request,
        replace(request, prompt=m.TextPrompt(LONG.encode())),
        replace(request, session="s"),
        replace(request, session="s", prompt=m.Continuation(m.TextPrompt(LONG))),
        replace(request, parent_key=b"k" * 32),
    ):
        assert "at least 257 tokens and the context holds 256" in opened(backend, asked)
    fits = open_request(
        m.Run("id", HOST, replace(request, prompt=m.TextPrompt(LONG[:-1]))), backend, now=0.0
    )
    assert fits.prompt.text == LONG[:-1]


def test_ids_that_cannot_fit_are_refused_by_their_number(backend: StubBackend) -> None:
    packed = token_bytes.pack([65] * 257)
    refusal = opened(backend, m.Complete("r", "long", m.TokenPrompt(packed)))
    assert "has 257 tokens and the context holds 256" in refusal
    more = m.Complete("r", "long", m.Continuation(m.TokenPrompt(packed)), session="s")
    assert "has at least 257 tokens" in opened(backend, more)


@pytest.mark.usefixtures("uncounted")
def test_chats_and_questions_that_cannot_fit_are_refused(backend: StubBackend) -> None:
    sent: queue.SimpleQueue[object] = queue.SimpleQueue()
    service = TextService(backend, ReplyRules(), send=lambda _, it: sent.put(it), run=sent.put)
    chat = json.dumps({"messages": [{"role": "user", "content": LONG}]})
    gap = json.dumps({"prefix": LONG, "suffix": ""})
    prompts = m.ConversationPrompt(chat), m.InfillPrompt(gap), m.TextPrompt(LONG)
    for number, prompt in enumerate(prompts):
        service.prepare(m.Run(f"{number}", HOST, m.Complete("c", "long", prompt)))
    service.ask(m.Tokenize("t", LONG, as_prompt=True), HOST)
    service.ask(m.Tokenize("short", "x", as_prompt=True), HOST)
    for number in range(3):
        failed, ended = (sent.get(timeout=10) for _ in range(2))
        assert isinstance(failed, m.CompletionFailed)
        assert failed.reason is m.FailReason.PROMPT_TOO_LONG
        assert failed.facts == AT_LEAST
        assert ended == m.RequestEnded(f"{number}")
    refused, done = (sent.get(timeout=10) for _ in range(2))
    service.close(m.FailReason.MODEL_UNLOADED, "")
    assert isinstance(refused, m.TextRefused)
    assert refused.reason is m.FailReason.PROMPT_TOO_LONG
    assert refused.facts == AT_LEAST
    assert isinstance(done, m.Tokenized)


@pytest.mark.usefixtures("uncounted")
def test_a_text_to_embed_that_cannot_fit_is_refused(backend: StubBackend) -> None:
    sent: queue.SimpleQueue[object] = queue.SimpleQueue()
    service = EmbeddingService(backend, lambda _, it: sent.put(it))
    service.ask(m.Embed("e", json.dumps([LONG]).encode()), HOST)
    service.ask(m.Embed("deep", b"[" * 100_000), HOST)
    service.ask(m.Embed("good", b'["x"]'), HOST)
    refused, deep, page, good = (sent.get(timeout=10) for _ in range(4))
    service.close(m.FailReason.MODEL_UNLOADED, "")
    service.wait_ended(5)
    assert isinstance(refused, m.EmbedFailed)
    assert refused.reason is m.FailReason.PROMPT_TOO_LONG
    assert refused.facts == m.FailureFacts(n_prompt=257, n_ctx=64)
    assert isinstance(deep, m.EmbedFailed)
    assert deep.reason is m.FailReason.INVALID_REQUEST
    assert isinstance(page, m.EmbeddingPage)
    assert isinstance(good, m.Embedded)


def test_nothing_is_refused_where_a_token_may_stand_for_any_text(backend: StubBackend) -> None:
    assert least_tokens(LONG, backend.info) == 257
    assert least_tokens(LONG, replace(backend.info, max_token_bytes=0)) == 0
