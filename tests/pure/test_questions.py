"""Questions on their way through inflight: which are the same, what ends one, what is repeated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import pytest

from actors import messages as m
from actors.messages.payload import PayloadKeeper, Spilled
from actors.messages.questions import Question
from actors.requests.questions import is_end, is_repeatable, refusal
from actors.requests.request_digest import digest_of, part_digests

pytestmark = pytest.mark.pure

TEXT = "a text " * 4_000
QUESTIONS: tuple[Question, ...] = (
    m.Tokenize("r", b"text"),
    m.Detokenize("r", b"\1\0\0\0"),
    m.ApplyChatTemplate("r", "{}"),
    m.VerifyThinking("r", b"thought", b"signature"),
    m.Embed("r", b'["text"]'),
    m.Rerank("r", b'{"query": "text", "documents": ["text", "other"]}'),
    m.ReportVram("r"),
    m.LoadAdapter("r", "/a"),
    m.UnloadAdapter("r", 1),
    m.SetAdapterScale("r", 1, 0.5),
    m.ListAdapters("r"),
    m.EndSession("r", "s"),
    m.ListSessions("r"),
    m.EvictLive("r"),
    m.MatchPrefix("r", b"\1\0\0\0"),
)


@pytest.fixture
def spilled() -> Iterator[Spilled]:
    keeper = PayloadKeeper(TEXT.encode())
    assert isinstance(keeper.payload, Spilled)
    yield keeper.payload
    keeper.close()


def test_every_question_is_tried_here() -> None:
    assert {type(one) for one in QUESTIONS} == set(get_args(Question))


def test_a_refusal_ends_its_question_and_carries_its_ref() -> None:
    for question in QUESTIONS:
        refused = refusal(question, m.FailReason.POISONOUS, "why")
        assert is_end(refused)
        assert (refused.ref, refused.detail) == ("r", "why")  # type: ignore[attr-defined]


def test_pages_end_with_the_last_one() -> None:
    for page in (m.Tokenized("r", b"", False), m.Detokenized("r", b"", False)):
        assert not is_end(page)
        assert is_end(replace(page, last=True))
    assert not is_end(m.EmbeddingPage("r", b""))
    assert is_end(m.Embedded("r", 1, (1,), 1))
    assert not is_end(m.StillRunning("r"))


def test_only_changes_of_adapters_are_not_repeated() -> None:
    changes = {type(one) for one in QUESTIONS if not is_repeatable(one)}
    assert changes == {m.LoadAdapter, m.UnloadAdapter, m.SetAdapterScale}


def test_questions_differ_by_their_content_and_not_by_their_sender() -> None:
    digests = [digest_of(m.Ask("model", one)) for one in QUESTIONS]
    assert None not in digests
    assert len(set(digests)) == len(QUESTIONS)
    for one, digest in zip(QUESTIONS, digests, strict=True):
        assert digest_of(m.Ask("model", replace(one, ref="another"))) == digest
        assert digest_of(m.Ask("other", one)) != digest


def test_where_a_text_lies_makes_no_difference(spilled: Spilled) -> None:
    inline = m.Ask("model", m.Tokenize("r", TEXT))
    assert digest_of(m.Ask("model", m.Tokenize("r", spilled))) == digest_of(inline)
    assert digest_of(m.Ask("model", m.ApplyChatTemplate("r", spilled))) is not None
    gone = replace(spilled, path="/proc/0/fd/9")
    assert digest_of(m.Ask("model", m.Tokenize("r", gone))) is None
    assert digest_of(m.Ask("model", m.Embed("r", gone))) is None


def test_a_text_is_part_of_all_that_tokenises_it(spilled: Spilled) -> None:
    text = digest_of(m.Ask("model", m.Tokenize("r", TEXT, add_special=False)))
    request = m.Complete("r", "model", m.TextPrompt(spilled))
    assert list(part_digests(request)) == [text]
    embed = m.Ask("model", m.Embed("r", json.dumps(["x", TEXT, [1]]).encode()))
    assert list(part_digests(embed))[1:] == [text]
    ranked = {"query": "x", "documents": ["y", TEXT]}
    rerank = m.Ask("model", m.Rerank("r", json.dumps(ranked).encode()))
    assert list(part_digests(rerank))[2:] == [text]
    gap = json.dumps({"prefix": "x", "suffix": "y", "extra": [{"name": "z", "text": TEXT}]})
    assert list(part_digests(replace(request, prompt=m.InfillPrompt(gap))))[3:] == [text]
    assert not list(part_digests(replace(request, prompt=m.TokenPrompt(spilled))))
    assert not list(part_digests(replace(request, prompt=m.ConversationPrompt(spilled))))
    assert not list(part_digests(m.Ask("model", m.ListAdapters("r"))))


@pytest.mark.parametrize("junk", [5, None, b"[" * 100_000, b"\xff", b"{}", b"[5]"])
def test_what_is_no_request_has_no_digest_or_any_and_raises_nothing(junk: object) -> None:
    kinds: tuple[Any, ...] = (m.Tokenize, m.Embed, m.Rerank, m.Detokenize)
    for question in (kind("r", junk) for kind in kinds):
        digest_of(m.Ask("model", question))
        list(part_digests(m.Ask("model", question)))
    prompts = (m.TextPrompt(junk), m.InfillPrompt(junk), m.Continuation(junk))  # type: ignore[arg-type]
    for prompt in (junk, *prompts):
        list(part_digests(m.Complete("r", "model", prompt)))  # type: ignore[arg-type]
        digest_of(m.Complete("r", "model", prompt))  # type: ignore[arg-type]
