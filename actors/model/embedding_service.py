"""Embeddings of one model, on a thread of their own.

llama.cpp allows two contexts of one model on two threads, so generation goes on meanwhile: a text
of 2,000 tokens takes as long as a prompt of that length, and between two steps of the engine every
stream would stand still for it. The context is small, is made when the first text comes, and is
given back when none came for a minute. The sequences of requests are never touched (trap T-43R).
"""

from __future__ import annotations

import json
import math
import queue
import threading
from array import array
from collections.abc import Callable
from typing import Any

from actors import messages as m
from actors.engine.prompt_tokens import least_tokens
from actors.messages.payload import PayloadGone, read_payload
from native.backend import Backend, Embedder
from native.errors import (
    BackendClosed,
    DecodeAborted,
    InvalidParam,
    InvalidToken,
    NativeError,
    NotSupported,
    PromptTooLong,
)
from native.model_params import POOLINGS

REST_AFTER_S = 60.0
MAX_INPUTS = 4096  # of one request: their rows must fit one message
MAX_WAITING = 256
MAX_BYTES = 256 << 20  # of one answer; only unpooled ones get that far
PAGE_FLOATS = 12_000  # 48 KB, under the 64 KiB of a message

Question = m.Embed | m.ReportVram
Send = Callable[[object, object], None]


class EmbedDesk:
    """Answers ``Embed`` and ``ReportVram``, one after the other. ``send`` is for any thread."""

    def __init__(self, backend: Backend, send: Send, *, rest_after_s: float = REST_AFTER_S) -> None:
        self._backend = backend
        self._send = send
        self._rest_after_s = rest_after_s
        self._asked: queue.SimpleQueue[tuple[Question, object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing = False
        self.texts_embedded = 0

    def ask(self, question: Question, reply_to: object) -> None:
        """From the mailbox: never waits."""
        if self._closing:
            self._refuse(question, reply_to, m.FailReason.MODEL_UNLOADED, "it is being unloaded")
        elif self._asked.qsize() >= MAX_WAITING:
            detail = f"{MAX_WAITING} requests for embeddings already wait; try again later"
            self._refuse(question, reply_to, m.FailReason.OVERLOADED, detail)
        else:
            self._asked.put((question, reply_to))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="embedder", daemon=True)
                self._thread.start()

    def end(self) -> None:
        """Refuse what waits; the text that is being read is given up when the backend closes."""
        self._closing = True
        self._asked.put(None)

    def wait_ended(self, timeout_s: float) -> None:
        """Give the answers of ``end`` that long to be posted."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    # ── its thread ──────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        embedder: Embedder | None = None
        while True:
            try:
                asked = self._asked.get(timeout=self._patience(embedder))
            except queue.Empty:
                if embedder is not None:
                    embedder.rest()
                continue
            if asked is None:
                return
            question, reply_to = asked
            match question:
                case m.ReportVram():
                    self._report_vram(question, reply_to)
                case m.Embed():
                    try:
                        embedder = embedder or self._backend.embedder()
                        self._embed(question, reply_to, embedder)
                    except _Refused as refused:
                        self._refuse(question, reply_to, refused.reason, str(refused))
                    except NativeError as error:
                        self._refuse(question, reply_to, _reason(error), str(error))
                    except Exception as error:  # noqa: BLE001 - later questions are answered
                        detail = f"{type(error).__name__}: {error}"
                        self._refuse(question, reply_to, m.FailReason.ENGINE_ERROR, detail)

    def _patience(self, embedder: Embedder | None) -> float | None:
        return None if embedder is None or embedder.is_resting else self._rest_after_s

    def _embed(self, question: m.Embed, reply_to: object, embedder: Embedder) -> None:
        if question.pooling not in POOLINGS:
            raise InvalidParam("pooling", question.pooling, "one of " + ", ".join(POOLINGS))
        inputs = _read_inputs(question)
        n_embd = self._backend.info.n_embd_out
        pages = _Pages(question.ref, lambda page: self._send(reply_to, page))
        rows, n_tokens = [], 0
        for one in inputs:
            if self._closing:
                raise BackendClosed("the model is being unloaded")
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

    def _tokens(self, text: str, embedder: Embedder) -> list[int]:
        n_least = least_tokens(text, self._backend.info)
        if n_least > embedder.n_tokens_max:  # megabytes take seconds to tokenise
            raise PromptTooLong(n_least, embedder.n_tokens_max)
        return self._backend.tokenize(text)

    def _report_vram(self, question: m.ReportVram, reply_to: object) -> None:
        try:
            gpus = self._backend.gpus()
        except NativeError as error:
            self._refuse(question, reply_to, m.FailReason.ENGINE_ERROR, str(error))
            return
        if not gpus:
            detail = "no_gpu: llama.cpp sees none here; build it with GPU support to use one"
            self._refuse(question, reply_to, m.FailReason.NOT_SUPPORTED, detail)
            return
        free, total = sum(one[1] for one in gpus), sum(one[2] for one in gpus)
        self._send(reply_to, m.VramReported(question.ref, free, total, gpus))

    def _refuse(
        self, question: Question, reply_to: object, reason: m.FailReason, detail: str
    ) -> None:
        match question:
            case m.Embed(ref):
                self._send(reply_to, m.EmbedFailed(ref, reason, detail))
            case m.ReportVram(ref):
                self._send(reply_to, m.NoVram(ref, reason, detail))


class _Refused(Exception):
    """The request, not the model, is at fault."""

    def __init__(self, reason: m.FailReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


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
            raise _Refused(
                m.FailReason.INVALID_REQUEST,
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
        raise _Refused(m.FailReason.INVALID_REQUEST, f"cannot read the inputs: {error}") from error
    if not isinstance(inputs, list) or not 1 <= len(inputs) <= MAX_INPUTS:
        detail = f"send a list of 1 to {MAX_INPUTS} texts or lists of token ids"
        raise _Refused(m.FailReason.INVALID_REQUEST, detail)
    for at, one in enumerate(inputs):
        is_tokens = isinstance(one, list) and all(type(token) is int for token in one)
        if not one or not (isinstance(one, str) or is_tokens):
            detail = f"input {at} is neither a text nor a list of token ids, or it is empty"
            raise _Refused(m.FailReason.INVALID_REQUEST, detail)
    return inputs


def _normalise(vectors: array[float], n_embd: int) -> None:
    """Make each row one unit long, in place; a row of zeros stays."""
    for at in range(0, len(vectors), n_embd):
        length = math.sqrt(math.fsum(x * x for x in vectors[at : at + n_embd]))
        if length > 0:
            for i in range(at, at + n_embd):
                vectors[i] /= length


def _reason(error: NativeError) -> m.FailReason:
    match error:
        case PromptTooLong():
            return m.FailReason.PROMPT_TOO_LONG
        case NotSupported():
            return m.FailReason.NOT_SUPPORTED
        case InvalidParam() | InvalidToken():
            return m.FailReason.INVALID_REQUEST
        case BackendClosed() | DecodeAborted():
            return m.FailReason.MODEL_UNLOADED
        case _:
            return m.FailReason.ENGINE_ERROR
