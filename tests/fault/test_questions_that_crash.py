"""Questions that end their model's process: each is refused alone, and the model stays."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from actors import messages as m
from native.stub import FATAL_TEXT
from runtime import Node, errors
from supervision.messages import new_ref
from tests.support.runtime_nodes import Streaming, entry_of, inflight_status, kill, pid_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.fault

POISON = f"Count {FATAL_TEXT} sheep."


@pytest.fixture
def slow(node: Node) -> Node:
    """A model whose replies last long enough to be there when it dies."""
    node.load("narrow", "narrow", backend="stub", n_seq_max=2)
    return node


def ask_for(question: Callable[[Node], object], node: Node) -> None:
    with pytest.raises(errors.RequestPoisoned) as caught:
        question(node)
    assert caught.value.model == "narrow"
    assert "Change" in str(caught.value)


QUESTIONS: dict[str, Callable[[Node], object]] = {
    "tokenize": lambda node: node.tokenize("narrow", POISON),
    "match_prefix": lambda node: node.match_prefix("narrow", POISON),
    "embed": lambda node: node.embed("narrow", ["good", POISON]),
    "complete": lambda node: node.complete("narrow", POISON, max_tokens=4),
}


def test_a_text_that_crashes_its_model_is_refused_in_whatever_is_asked(slow: Node) -> None:
    busy = Streaming(slow, "narrow", 1500)
    expected = slow.complete("narrow", "good", max_tokens=8).text
    with pytest.raises(errors.RequestPoisoned, match="died 2 times"):
        slow.tokenize("narrow", POISON)
    assert busy.whole().tokens
    assert slow.tokenize("narrow", "good") == [256, *b"good"]
    restarts = entry_of(slow, "narrow").restarts
    assert restarts == 2
    for question in QUESTIONS.values():
        for _ in range(3):
            ask_for(question, slow)
    assert slow.complete("narrow", "good", max_tokens=8).text == expected
    assert entry_of(slow, "narrow").restarts == restarts
    eventually(lambda: inflight_status(slow)["in_flight"] == 0, what="no request is left")
    status = inflight_status(slow)
    assert (status["suspects"], status["poisonous_digests"]) == (0, 1)


def test_an_embedding_is_refused_at_its_second_crash(slow: Node) -> None:
    for _ in range(3):
        ask_for(QUESTIONS["embed"], slow)
    assert entry_of(slow, "narrow").restarts == 2
    assert slow.embed("narrow", "good").rows == (1,)


def test_questions_and_replies_beside_a_crash_complete(slow: Node) -> None:
    busy = [Streaming(slow, "narrow", 1500) for _ in range(2)]
    alone = slow.embed("narrow", "a fox").vectors
    for text in (POISON, f"another {POISON}"):
        ask_for(lambda node, text=text: node.tokenize("narrow", text), slow)  # type: ignore[misc]
        assert slow.embed("narrow", "a fox").vectors == alone
        assert slow.detokenize("narrow", [*b"a fox"]) == "a fox"
    for one in busy:
        assert len(one.whole().tokens) == 1500
    assert inflight_status(slow)["suspects"] == 0


def test_a_question_sent_to_the_model_itself_is_answered_when_it_crashes_the_model(
    slow: Node,
) -> None:
    reasons = []
    for _ in range(3):
        eventually(lambda: entry_of(slow, "narrow").is_up, what="the model is up")
        question = m.Embed(new_ref(), json.dumps([POISON]).encode())
        answer = slow.connection.ask("inflight", m.Ask("narrow", question), timeout_s=20)
        assert isinstance(answer, m.EmbedFailed)
        reasons.append(answer.reason)
    assert reasons[0] is m.FailReason.INTERRUPTED
    assert reasons[1:] == [m.FailReason.POISONOUS] * 2
    direct = slow.connection.ask("model:narrow", m.Tokenize(new_ref(), "ab"), timeout_s=20)
    assert isinstance(direct, m.Tokenized)
    eventually(lambda: inflight_status(slow)["in_flight"] == 0, what="no request is left")


def test_a_change_that_was_interrupted_is_not_made_twice(slow: Node) -> None:
    busy = Streaming(slow, "narrow", 2000)
    answers = slow.connection.stream(
        "inflight", m.Ask("narrow", m.LoadAdapter(new_ref(), "/nowhere")), idle_timeout_s=20
    )
    eventually(lambda: inflight_status(slow)["in_flight"] == 2, what="both are there")
    kill(pid_of(slow, "model:narrow"))
    answer = next(answers)
    assert isinstance(answer, m.AdapterNotChanged)
    assert answer.reason is m.FailReason.MODEL_DOWN
    assert "look whether it was done" in answer.detail
    assert busy.whole().tokens
