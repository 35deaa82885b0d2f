"""The service for embeddings: pages, limits, refusals, and memory that is given back."""

from __future__ import annotations

import json
import math
import queue
from array import array
from collections.abc import Iterator
from dataclasses import replace

import pytest

from actors import messages as m
from actors.messages.payload import PayloadKeeper
from actors.model import embedding_service as embedder
from actors.model import job_queue
from actors.model.embedding_service import EmbeddingService
from native.params import ModelParams
from native.stub import StubBackend
from tests.support.waiting import eventually

pytestmark = pytest.mark.pure


class Service:
    """A service over a stub, and what it sends."""

    def __init__(self, **params: object) -> None:
        self.backend = StubBackend.load("stub", ModelParams(**params))  # type: ignore[arg-type]
        self.sent: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.service = EmbeddingService(self.backend, lambda _, message: self.sent.put(message))

    def embed(self, inputs: object, **options: object) -> tuple[list[float], object]:
        """The numbers of all pages, and the message that ended them."""
        keeper = PayloadKeeper(json.dumps(inputs).encode())
        self.service.ask(m.Embed("e", keeper.payload, **options), "caller")  # type: ignore[arg-type]
        numbers = array("f")
        while isinstance(answer := self.sent.get(timeout=60), m.EmbeddingPage):
            assert len(answer.data) < 64 << 10
            numbers.frombytes(answer.data)
        keeper.close()
        return list(numbers), answer

    def close(self) -> None:
        self.service.close(m.FailReason.MODEL_UNLOADED, "it is being unloaded")
        self.service.wait_ended(5)
        self.backend.close()


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


def test_each_text_gets_a_vector_one_unit_long(service: Service) -> None:
    numbers, answer = service.embed(["one", "two", [65, 66], "one"])
    assert answer == m.Embedded("e", 8, (1, 1, 1, 1), 4 + 4 + 2 + 4)
    vectors = [numbers[at : at + 8] for at in range(0, 32, 8)]
    assert vectors[0] == vectors[3] != vectors[1]
    for vector in vectors:
        assert math.hypot(*vector) == pytest.approx(1.0, abs=1e-6)


def test_without_normalising_they_are_as_the_model_made_them(service: Service) -> None:
    numbers, _ = service.embed(["one"], normalise=False)
    assert numbers == list(service.backend.embedder().embed(service.backend.tokenize("one")))
    assert math.hypot(*numbers) != pytest.approx(1.0, abs=1e-3)


def test_long_answers_come_in_small_pages(service: Service) -> None:
    """More than 12,000 numbers, cut anywhere, even inside a vector."""
    numbers, answer = service.embed(
        ["x" * 1999, "y" * 10, "z" * 1999], pooling="none", normalise=False
    )
    assert isinstance(answer, m.Embedded)
    assert answer.rows == (2000, 11, 2000)
    assert len(numbers) == 8 * 4011
    rows = service.backend.embedder().embed(service.backend.tokenize("z" * 1999), "none")
    assert numbers[-8 * 2000 :] == list(rows)


def test_a_request_bigger_than_a_message_is_read(service: Service) -> None:
    _, answer = service.embed(["word " * 300] * 60)
    assert isinstance(answer, m.Embedded)
    assert answer.rows == (1,) * 60


@pytest.mark.parametrize(
    ("inputs", "options", "reason"),
    [
        ([], {}, m.FailReason.INVALID_REQUEST),
        ("text", {}, m.FailReason.INVALID_REQUEST),
        ([""], {}, m.FailReason.INVALID_REQUEST),
        ([[]], {}, m.FailReason.INVALID_REQUEST),
        ([[True]], {}, m.FailReason.INVALID_REQUEST),
        ([[1.5]], {}, m.FailReason.INVALID_REQUEST),
        ([None], {}, m.FailReason.INVALID_REQUEST),
        ([[258]], {}, m.FailReason.INVALID_REQUEST),
        ([[-1]], {}, m.FailReason.INVALID_REQUEST),
        (["a"] * 4097, {}, m.FailReason.INVALID_REQUEST),
        (["a"], {"pooling": "max"}, m.FailReason.INVALID_REQUEST),
        (["fits", "x" * 2048], {}, m.FailReason.PROMPT_TOO_LONG),
    ],
)
def test_what_cannot_be_embedded_is_refused_and_the_service_continues(
    service: Service, inputs: object, options: dict[str, object], reason: m.FailReason
) -> None:
    _, answer = service.embed(inputs, **options)
    assert isinstance(answer, m.EmbedFailed)
    assert (answer.ref, answer.reason) == ("e", reason)
    assert answer.detail
    assert isinstance(service.embed(["fine"])[1], m.Embedded)


def test_an_answer_beyond_all_measure_is_refused(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder, "MAX_BYTES", 1000)
    _, answer = service.embed(["x" * 100], pooling="none")
    assert isinstance(answer, m.EmbedFailed)
    assert answer.reason is m.FailReason.INVALID_REQUEST


def test_a_vocabulary_alone_embeds_nothing() -> None:
    service = Service(vocab_only=True)
    _, answer = service.embed(["text"])
    assert isinstance(answer, m.EmbedFailed)
    assert answer.reason is m.FailReason.NOT_SUPPORTED
    service.close()


def test_a_crowd_is_refused_with_a_reason(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_queue, "MAX_JOBS", 0)
    _, answer = service.embed(["text"])
    assert isinstance(answer, m.EmbedFailed)
    assert answer.reason is m.FailReason.OVERLOADED


def test_without_a_gpu_vram_is_refused_as_no_gpu(service: Service) -> None:
    service.service.ask(m.ReportVram("v"), "caller")
    answer = service.sent.get(timeout=60)
    assert isinstance(answer, m.NoVram)
    assert answer.reason is m.FailReason.NOT_SUPPORTED
    assert answer.detail.startswith("no_gpu")


def test_gpu_memory_is_summed(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = (("one", 10, 100), ("two", 20, 200))
    monkeypatch.setattr(service.backend, "gpus", lambda: gpus)
    service.service.ask(m.ReportVram("v"), "caller")
    assert service.sent.get(timeout=60) == m.VramReported("v", 30, 300, gpus)


def test_memory_is_freed_when_no_request_comes(service: Service) -> None:
    service.service = EmbeddingService(
        service.backend, lambda _, message: service.sent.put(message), rest_after_s=0.02
    )
    service.embed(["one"])
    resting = service.backend.embedder()
    eventually(lambda: resting.is_resting, within_s=5, what="the embedder rests")
    assert isinstance(service.embed(["one"])[1], m.Embedded)


def test_a_caller_waiting_when_the_model_is_unloaded_gets_an_error() -> None:
    service = Service()
    service.embed(["one"])
    service.service.close(m.FailReason.MODEL_UNLOADED, "it is being unloaded")
    service.service.wait_ended(5)
    _, answer = service.embed(["one"])
    assert isinstance(answer, m.EmbedFailed)
    assert answer.reason is m.FailReason.MODEL_UNLOADED
    service.close()


# ── ranking ─────────────────────────────────────────────────────────────────────────────────────


def ranked(service: Service, given: object) -> object:
    keeper = PayloadKeeper(json.dumps(given).encode())
    service.service.ask(m.Rerank("r", keeper.payload), "caller")
    answer = service.sent.get(timeout=60)
    keeper.close()
    return answer


def test_each_document_gets_a_score_in_its_place(service: Service) -> None:
    answer = ranked(service, {"query": "abcd", "documents": ["xyz", "abxd", "abcd"] * 9})
    assert isinstance(answer, m.Reranked)
    assert list(array("f", answer.scores)) == [0.0, 0.75, 1.0] * 9
    assert answer.n_tokens == 9 * (3 * (4 + 3) + 3 + 4 + 4)


@pytest.mark.parametrize(
    ("given", "reason", "words"),
    [
        ([], m.FailReason.INVALID_REQUEST, "a query"),
        ({"query": "a"}, m.FailReason.INVALID_REQUEST, "documents"),
        ({"query": "", "documents": ["a"]}, m.FailReason.INVALID_REQUEST, "a query"),
        ({"query": 5, "documents": ["a"]}, m.FailReason.INVALID_REQUEST, "a query"),
        ({"query": "a", "documents": []}, m.FailReason.INVALID_REQUEST, "1 to 4096"),
        ({"query": "a", "documents": ["b"] * 4097}, m.FailReason.INVALID_REQUEST, "1 to 4096"),
        ({"query": "a", "documents": ["b", 1]}, m.FailReason.INVALID_REQUEST, "document 1 is"),
        ({"query": "a", "documents": ["b", ""]}, m.FailReason.INVALID_REQUEST, "document 1 is"),
        (
            {"query": "a", "documents": ["b", "x" * 2048]},
            m.FailReason.PROMPT_TOO_LONG,
            "document 1 and the query have 2052",
        ),
    ],
)
def test_what_cannot_be_ranked_is_refused_by_its_place(
    service: Service, given: object, reason: m.FailReason, words: str
) -> None:
    refused = ranked(service, given)
    assert isinstance(refused, m.EmbedFailed)
    assert refused.reason is reason
    assert words in refused.detail
    assert isinstance(ranked(service, {"query": "a", "documents": ["b"]}), m.Reranked)


def test_a_model_without_a_head_that_ranks_is_refused(service: Service) -> None:
    service.backend.info = replace(service.backend.info, rank=None)
    refused = ranked(service, {"query": "a", "documents": ["b"]})
    assert isinstance(refused, m.EmbedFailed)
    assert refused.reason is m.FailReason.NOT_SUPPORTED
