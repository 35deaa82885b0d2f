"""Embeddings and rankings of one model, on a thread of their own.

llama.cpp allows two contexts of one model on two threads, so generation continues meanwhile: a text
of 2,000 tokens takes as long as a prompt of that length, and between two steps of the engine every
stream would stop for it. The context is small, is made for the first text, and is freed after a
minute without one. The sequences of requests are never touched: an embedding that used the context
of the engine would overwrite their cells.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from actors import messages as m
from actors.engine.prompt_tokens import is_countable, least_tokens
from actors.messages.errors import InvalidRequest, RequestRefused, UnsupportedRequest
from actors.messages.finish_reasons import FailReason
from actors.messages.payload import PayloadGone, read_payload
from actors.model.job_queue import JobQueue
from actors.requests.questions import refusal
from actors.text.chat_prompt import ControlTokens
from actors.text.rank_prompt import rank_tokens
from native.backend import Backend, Embedder
from native.errors import BackendClosed, InvalidParam, PromptTooLong
from native.model_params import POOLINGS

REST_AFTER_S = 60.0
MAX_INPUTS = 4096  # of one request: their rows, or their scores, must fit one message
MAX_BYTES = 256 << 20  # of one answer; only unpooled ones get that far
PAGE_FLOATS = 12_000  # 48 KB, under the 64 KiB of a message

Question = m.Embed | m.Rerank | m.ReportVram
Send = Callable[[object, object], None]


@dataclass(frozen=True, slots=True)
class _Job:
    question: Question
    reply_to: object


class EmbeddingService:
    """Answers ``Embed``, ``Rerank`` and ``ReportVram`` in turn. ``send`` is for any thread."""

    def __init__(self, backend: Backend, send: Send, *, rest_after_s: float = REST_AFTER_S) -> None:
        self._backend = backend
        self._send = send
        self._embedder: Embedder | None = None
        self._jobs: JobQueue[_Job] = JobQueue(
            "embedding service",
            "requests for embeddings",
            do=self._do,
            refuse=self._refuse,
            idle_after_s=rest_after_s,
            idle=self._rest,
        )
        self._control: ControlTokens | None = None
        self.texts_embedded = 0

    def ask(self, question: Question, reply_to: object) -> None:
        """From the mailbox: never waits."""
        self._jobs.put(_Job(question, reply_to))

    def close(self, reason: m.FailReason, detail: str) -> None:
        """Refuse what waits; the text that is being read is abandoned when the backend closes."""
        self._jobs.close(reason, detail)

    def wait_ended(self, timeout_s: float) -> None:
        """After ``close``: give the answers that long to be posted."""
        self._jobs.wait_ended(timeout_s)

    # ── its thread ──────────────────────────────────────────────────────────────────────────────

    def _rest(self) -> None:
        """Give the memory of the small context back."""
        if self._embedder is not None and not self._embedder.is_resting:
            self._embedder.rest()

    def _do(self, job: _Job) -> None:
        match job.question:
            case m.ReportVram():
                self._report_vram(job.question, job.reply_to)
            case m.Embed():
                self._embedder = self._embedder or self._backend.embedder()
                self._embed(job.question, job.reply_to, self._embedder)
            case m.Rerank():
                self._embedder = self._embedder or self._backend.embedder()
                self._rerank(job.question, job.reply_to, self._embedder)

    def _embed(self, question: m.Embed, reply_to: object, embedder: Embedder) -> None:
        if question.pooling not in POOLINGS:
            raise InvalidParam("pooling", question.pooling, "one of " + ", ".join(POOLINGS))
        inputs = _read_inputs(question)
        n_embd = self._backend.info.n_embd_out
        pages = _Pages(question.ref, lambda page: self._send(reply_to, page))
        rows, n_tokens = [], 0
        for one in inputs:
            self._check_open()
            tokens = self._tokens(one, embedder) if isinstance(one, str) else one
            vectors = embedder.embed(tokens, question.pooling)
            if question.normalise:
                _normalise(vectors, n_embd)
            pages.add(vectors)
            rows.append(len(vectors) // n_embd)
            n_tokens += len(tokens)
            self.texts_embedded += 1
        pages.flush()
        self._send(reply_to, m.Embedded(question.ref, n_embd, tuple(rows), n_tokens))

    def _check_open(self) -> None:
        if self._jobs.is_closed:
            raise BackendClosed("the model is being unloaded")

    def _rerank(self, question: m.Rerank, reply_to: object, embedder: Embedder) -> None:
        form = self._backend.info.rank
        if form is None:
            raise UnsupportedRequest(
                "this model has no head that ranks texts (cls.weight or cls.output.weight in its "
                "file); load a reranking model"
            )
        query, documents = _read_texts(question)
        self._control = self._control or ControlTokens.of(self._backend)
        scores, n_tokens = array("f"), 0
        for at, document in enumerate(documents):
            self._check_open()
            text = query + document
            if not is_countable(text):
                self._check_length(at, least_tokens(text, self._backend.info), embedder)
            tokens = rank_tokens(self._backend, form, self._control, query, document)
            self._check_length(at, len(tokens), embedder)
            scores.append(embedder.score(tokens))
            n_tokens += len(tokens)
            self.texts_embedded += 1
        self._send(reply_to, m.Reranked(question.ref, scores.tobytes(), n_tokens))

    def _check_length(self, at: int, n_tokens: int, embedder: Embedder) -> None:
        if n_tokens > embedder.n_tokens_max:
            detail = (
                f"document {at} and the query have {n_tokens} tokens or more; "
                f"{embedder.n_tokens_max} are read at once. Shorten it, or load the model with "
                "larger embed_tokens if it was trained for more"
            )
            facts = m.FailureFacts(n_prompt=n_tokens, n_ctx=embedder.n_tokens_max)
            raise RequestRefused(FailReason.PROMPT_TOO_LONG, detail, facts)

    def _tokens(self, text: str, embedder: Embedder) -> list[int]:
        n_least = 0 if is_countable(text) else least_tokens(text, self._backend.info)
        if n_least > embedder.n_tokens_max:
            raise PromptTooLong(n_least, embedder.n_tokens_max)
        return self._backend.tokenize(text)

    def _report_vram(self, question: m.ReportVram, reply_to: object) -> None:
        gpus = self._backend.gpus()
        if not gpus:
            raise UnsupportedRequest(
                "no_gpu: llama.cpp sees none here; build it with GPU support to use one"
            )
        free, total = sum(one[1] for one in gpus), sum(one[2] for one in gpus)
        self._send(reply_to, m.VramReported(question.ref, free, total, gpus))

    def _refuse(self, job: _Job, why: RequestRefused) -> None:
        self._send(job.reply_to, refusal(job.question, why.reason, str(why), why.facts))


class _Pages:
    """Cuts one run of numbers into messages."""

    def __init__(self, ref: str, send: Callable[[m.EmbeddingPage], None]) -> None:
        self._ref = ref
        self._send = send
        self._held = array("f")
        self._sent = 0

    def add(self, numbers: array[float]) -> None:
        self._held += numbers
        if 4 * (self._sent + len(self._held)) > MAX_BYTES:
            raise InvalidRequest(
                f"the vectors are more than {MAX_BYTES >> 20} MiB; ask for fewer texts at once, or "
                "pool them",
            )
        whole = len(self._held) // PAGE_FLOATS * PAGE_FLOATS
        for at in range(0, whole, PAGE_FLOATS):
            self._page(self._held[at : at + PAGE_FLOATS])
        del self._held[:whole]

    def flush(self) -> None:
        if self._held:
            self._page(self._held)

    def _page(self, numbers: array[float]) -> None:
        self._sent += len(numbers)
        self._send(m.EmbeddingPage(self._ref, numbers.tobytes()))


def _read_inputs(question: m.Embed) -> list[str | list[int]]:
    try:
        inputs: Any = json.loads(read_payload(question.inputs))
    except (PayloadGone, ValueError, RecursionError) as error:
        raise InvalidRequest(f"cannot read the inputs: {error}") from error
    if not isinstance(inputs, list) or not 1 <= len(inputs) <= MAX_INPUTS:
        detail = f"send a list of 1 to {MAX_INPUTS} texts or lists of token ids"
        raise InvalidRequest(detail)
    for at, one in enumerate(inputs):
        is_tokens = isinstance(one, list) and all(type(token) is int for token in one)
        if not one or not (isinstance(one, str) or is_tokens):
            detail = f"input {at} is neither a text nor a list of token ids, or it is empty"
            raise InvalidRequest(detail)
    return inputs


def _read_texts(question: m.Rerank) -> tuple[str, list[str]]:
    """The query and the documents."""
    try:
        given: Any = json.loads(read_payload(question.texts))
    except (PayloadGone, ValueError, RecursionError) as error:
        raise InvalidRequest(f"cannot read the query and the documents: {error}") from error
    query = given.get("query") if isinstance(given, dict) else None
    documents = given.get("documents") if isinstance(given, dict) else None
    if not isinstance(query, str) or not query:
        raise InvalidRequest("send a query, which is a text that is not empty")
    if not isinstance(documents, list) or not 1 <= len(documents) <= MAX_INPUTS:
        raise InvalidRequest(f"send documents, a list of 1 to {MAX_INPUTS} texts")
    for at, one in enumerate(documents):
        if not isinstance(one, str) or not one:
            raise InvalidRequest(f"document {at} is no text, or it is empty")
    return query, documents


def _normalise(vectors: array[float], n_embd: int) -> None:
    """Make each row one unit long, in place; a row of zeros stays."""
    for at in range(0, len(vectors), n_embd):
        length = math.sqrt(math.fsum(x * x for x in vectors[at : at + n_embd]))
        if length > 0:
            for i in range(at, at + n_embd):
                vectors[i] /= length
