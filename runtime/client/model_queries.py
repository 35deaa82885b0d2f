"""What may be asked of a model beside completions, as methods: the half of ``Node`` about models.

A model that is restarting is waited for, ``HEAL_TIMEOUT_S`` at most; the embedded one is loaded at
its first use. A question whose model dies is put to the next process where that is safe, else
``ModelDown`` is raised; one whose model dies of it twice is refused, ``RequestPoisoned``. Answers
that come in pages are joined. Every method may raise ``ModelUnknown``,
``ModelStopped``, ``ModelDown``, ``NoReply`` and ``NodeNotRunning``; those that send something also
``InvalidRequest``, ``NotSupported`` and ``Overloaded``.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from actors import messages as m
from actors.messages.payload import Payload, PayloadKeeper
from cache import tokens as token_bytes
from runtime import errors
from runtime.client.answers import ChatPrompt, Embeddings, Verdict, VramInfo, WarmPrefix
from runtime.client.attempt import GRACE_S, SILENCE_TIMEOUT_S, failure
from runtime.client.client import Client
from runtime.client.request_options import Messages, Prompt, chat_json, encoded_prompt, session_name
from runtime.client.results import ModelStatus
from runtime.settings import arguments
from runtime.settings.user_paths import user_path
from supervision.errors import NodeRestarted, SupervisionError, TargetDown
from supervision.messages import new_ref

TEXT_TIMEOUT_S: Final = 60.0
"""Megabytes are tokenised in a second or two; many may wait for the one thread that does it."""
STEP_TIMEOUT_S: Final = 330.0
"""What the engine answers between two steps: one step may take 300 s before it is cut short."""
DRAIN_EXTRA_S: Final = 30.0
MAX_ADAPTER_ID: Final = (1 << 31) - 1
_TRIES: Final = 5


class ModelClient:
    """Questions to the models of one node, from any thread."""

    def __init__(self, client: Client) -> None:
        self._client = client

    # ── texts and tokens ────────────────────────────────────────────────────────────────────────

    def tokenize(
        self,
        model: str,
        text: str | bytes,
        *,
        add_special: bool | None = True,
        parse_special: bool | None = False,
    ) -> list[int]:
        """The tokens of a text; with ``add_special``, also what the model wants around one.

        ``parse_special`` reads control tokens that are written in it: not for texts of strangers.
        """
        add = arguments.flag("add_special", add_special, default=True)
        parse = arguments.flag("parse_special", parse_special)
        with _kept(arguments.text("text", text).encode()) as payload:
            return self._tokens(model, m.Tokenize("", payload, add, parse))

    def _tokens(self, model: str, question: m.Tokenize) -> list[int]:
        pages = self._ask(model, question)
        parts = [page.tokens for page in pages if isinstance(page, m.Tokenized)]
        return list(token_bytes.unpack(b"".join(parts)))

    def detokenize(self, model: str, tokens: Sequence[int], *, special: bool | None = False) -> str:
        """The text of some tokens; bytes that are no character become U+FFFD.

        ``special`` shows control tokens, which are nothing otherwise.
        """
        return self.detokenize_bytes(model, tokens, special=special).decode("utf-8", "replace")

    def detokenize_bytes(
        self, model: str, tokens: Sequence[int], *, special: bool | None = False
    ) -> bytes:
        """The bytes of some tokens, for one may begin or end inside a character."""
        packed = arguments.packed_tokens("tokens", tokens, may_be_empty=True)
        shows = arguments.flag("special", special)
        if not packed:
            arguments.model_name(model)
            return b""
        with _kept(packed) as payload:
            pages = self._ask(model, m.Detokenize("", payload, shows))
        return b"".join(page.data for page in pages if isinstance(page, m.Detokenized))

    def apply_chat_template(self, model: str, messages: Messages, **options: Any) -> ChatPrompt:
        """What a conversation looks like to the model, by its own template.

        Options: ``tools``, ``documents``, ``template_kwargs``, ``enable_thinking``,
        ``add_generation_prompt``, and ``chat_template``: a Jinja text in place of the model's own.
        ``NotSupported`` names what the template would leave out.
        """
        with _kept(chat_json(messages, **options)) as payload:
            pages = self._ask(model, m.ApplyChatTemplate("", payload))
        parts = [page for page in pages if isinstance(page, m.ChatTemplateApplied)]
        ids = token_bytes.unpack(b"".join(page.tokens for page in parts))
        return ChatPrompt("".join(page.text for page in parts), tuple(ids))

    def verify_thinking(self, model: str, content: bytes, signature: bytes) -> bool:
        """Whether a model of this node thought this, a ``SpanEvent``'s ``body``, and signed it."""
        signed = arguments.data("signature", signature)
        with _kept(arguments.data("content", content)) as payload:
            (answer,) = self._ask(model, m.VerifyThinking("", payload, signed))
        return isinstance(answer, m.ThinkingVerified) and answer.valid

    def embed(
        self,
        model: str,
        inputs: str | Sequence[int] | Sequence[str | Sequence[int]],
        *,
        pooling: str | None = "model",
        normalise: bool | None = True,
        timeout_s: float | None = None,
    ) -> Embeddings:
        """Vectors of one text or list of token ids, or of several.

        ``pooling``: ``mean | cls | last``, ``none`` for a vector of each token, or ``model`` for
        what it was loaded with. ``timeout_s`` (600) bounds each silence, not all of the work.
        """
        idle_s = arguments.seconds("timeout_s", timeout_s, SILENCE_TIMEOUT_S) or math.inf
        way = arguments.text("pooling", "model" if pooling is None else pooling)
        unit = arguments.flag("normalise", normalise, default=True)
        with _kept(json.dumps(_inputs(inputs)).encode()) as payload:
            answers = self._ask(model, m.Embed("", payload, way, unit), idle_s=idle_s)
        numbers = array("f")
        for page in answers:
            if isinstance(page, m.EmbeddingPage):
                numbers.frombytes(page.data)
        end = answers[-1]
        if not isinstance(end, m.Embedded):
            raise errors.NoReply(f"model {model!r} did not say how its vectors end")
        cuts = range(0, len(numbers), end.n_embd)
        vectors = tuple(numbers[at : at + end.n_embd] for at in cuts)
        return Embeddings(vectors, end.rows, end.n_embd, end.n_tokens)

    # ── guesses ─────────────────────────────────────────────────────────────────────────────────

    def draft_tokens(
        self, model: str, prefix: Prompt, most: int, *, timeout_s: float | None = None
    ) -> tuple[int, ...]:
        """At most so many tokens that the model would say after ``prefix``, greedily."""
        most = arguments.whole("most", most, 0)
        return self._client.complete(model, prefix, max_tokens=most, timeout_s=timeout_s).tokens

    def verify(
        self,
        model: str,
        prefix: Sequence[int],
        candidates: Sequence[int],
        *,
        k: int | None = None,
        timeout_s: float | None = None,
    ) -> Verdict:
        """How many of these tokens the model would say itself after ``prefix``, greedily.

        Only the first ``k`` count, if that is given.
        """
        guesses = arguments.packed_tokens("candidates", candidates)
        most = None if k is None else arguments.whole("k", k, 0)
        within_s = arguments.seconds("timeout_s", timeout_s)
        name = arguments.model_name(model)
        with _kept(arguments.packed_tokens("the prefix", prefix)) as payload:
            request = m.Verify("", name, payload, guesses, most, within_s)
            ends_at = None if within_s is None else time.monotonic() + within_s + GRACE_S
            found = self._ask(model, request, idle_s=SILENCE_TIMEOUT_S, ends_at=ends_at)[-1]
        if not isinstance(found, m.Verified):
            raise errors.NoReply(f"model {model!r} ended without a verdict")
        return Verdict(
            found.accepted, found.next_token, found.finish_reason.value, found.cached_tokens
        )

    # ── sessions and what is warm ───────────────────────────────────────────────────────────────

    def end_session(self, model: str, session: str) -> bool:
        """Forget a session, whether there was one; a request of it that runs is its last."""
        (answer,) = self._ask(model, m.EndSession("", session_name(session)), idle_s=STEP_TIMEOUT_S)
        return isinstance(answer, m.SessionEnded) and answer.was_known

    def evict(self, model: str) -> int:
        """Give up every idle sequence of the context; how many there were.

        What is stored nowhere yet is stored first. Running requests are not touched.
        """
        (answer,) = self._ask(model, m.EvictLive(""), idle_s=STEP_TIMEOUT_S)
        return answer.sequences if isinstance(answer, m.LiveEvicted) else 0

    def match_prefix(
        self, model: str, prompt: Prompt, *, parse_special: bool = False
    ) -> WarmPrefix:
        """How much of a prompt is warm. Restores nothing and touches no row.

        A text is tokenised by the model first, as for a completion; ``PromptTooLong`` as there.
        """
        parse = arguments.flag("parse_special", parse_special)
        packed = encoded_prompt(prompt)
        if arguments.is_text(prompt):
            with _kept(packed) as payload:
                question = m.Tokenize("", payload, True, parse, as_prompt=True)
                packed = token_bytes.pack(self._tokens(model, question))
        with _kept(packed) as payload:
            (answer,) = self._ask(model, m.MatchPrefix("", payload), idle_s=STEP_TIMEOUT_S)
        if not isinstance(answer, m.PrefixMatched):
            raise errors.NoReply(f"model {model!r} did not say what is warm")
        return WarmPrefix(answer.live, answer.stored)

    def list_cached_prefixes(self, model: str, prompt: Prompt) -> int:
        """Leading tokens of a prompt that are warm, live or stored."""
        return self.match_prefix(model, prompt).n_tokens

    # ── adapters ────────────────────────────────────────────────────────────────────────────────

    def load_adapter(
        self, model: str, path: str | Path, *, scale: float | None = 1.0
    ) -> m.AdapterStatus:
        """Apply a LoRA adapter, once the running requests have ended; requests behind it wait."""
        where = str(user_path(arguments.path("path", path), "load_adapter"))
        factor = 1.0 if scale is None else arguments.real("scale", scale)
        return self._change(model, m.LoadAdapter("", where, factor))[-1]

    def unload_adapter(self, model: str, adapter: int) -> tuple[m.AdapterStatus, ...]:
        """Free an adapter, by its id; what is left."""
        return self._change(model, m.UnloadAdapter("", _adapter_id(adapter)))

    def set_adapter_scale(
        self, model: str, adapter: int, scale: float
    ) -> tuple[m.AdapterStatus, ...]:
        """Apply an adapter, by its id, times another scale; 0 applies nothing."""
        factor = arguments.real("scale", scale)
        return self._change(model, m.SetAdapterScale("", _adapter_id(adapter), factor))

    def list_adapters(self, model: str) -> tuple[m.AdapterStatus, ...]:
        """The adapters that are loaded."""
        (answer,) = self._ask(model, m.ListAdapters(""), idle_s=STEP_TIMEOUT_S)
        return answer.adapters if isinstance(answer, m.AdaptersListed) else ()

    def _change(self, model: str, message: Any) -> tuple[m.AdapterStatus, ...]:
        (answer,) = self._ask(model, message, idle_s=SILENCE_TIMEOUT_S, again=False)
        return answer.adapters if isinstance(answer, m.AdaptersChanged) else ()

    # ── what it is and does ─────────────────────────────────────────────────────────────────────

    def vram_info(self, model: str) -> VramInfo:
        """GPU memory as this model's llama.cpp sees it; ``NotSupported`` without a GPU."""
        (answer,) = self._ask(model, m.ReportVram(""), idle_s=SILENCE_TIMEOUT_S)
        if not isinstance(answer, m.VramReported):
            raise errors.NoReply(f"model {model!r} did not say how much memory there is")
        return VramInfo(answer.free, answer.total, answer.gpus)

    def model_info(self, model: str) -> ModelStatus:
        """Everything a model says of itself, at once, whatever it is doing."""
        return self._client.model_status(model)

    def phase(self, model: str) -> str:
        """``loading | idle | prefilling | generating``, or the supervisor's word for one not up."""
        status = self.model_info(model)
        return str(status.details.get("phase", status.state))

    def pending_len(self, model: str) -> int:
        """Requests that wait in the model for a place in its context."""
        return int(self.model_info(model).details.get("waiting", 0))

    def queue_depth(self, model: str | None = None) -> int:
        """Requests that run or wait: of a model, or of the whole node."""
        if model is None:
            return int((self._client.report_of("inflight") or {}).get("in_flight", 0))
        details = self.model_info(model).details
        return int(details.get("running", 0)) + int(details.get("waiting", 0))

    def last_cache_hit(self, model: str) -> dict[str, Any] | None:
        """Of the request that ended last: ``hit``, ``source``, ``cached_tokens``."""
        last = self.model_info(model).details.get("cache", {}).get("last")
        return None if last is None else dict(last)

    # ── asking ──────────────────────────────────────────────────────────────────────────────────

    def _ask(
        self,
        model: str,
        message: Any,
        *,
        idle_s: float = TEXT_TIMEOUT_S,
        ends_at: float | None = None,
        again: bool = True,
    ) -> list[Any]:
        """All answers to a question, in order; a refusal is raised.

        ``DeadlineExceeded`` where none came by ``ends_at`` on the monotonic clock.
        """
        arguments.model_name(model)
        try:
            return self._ask_until(model, message, idle_s, ends_at, again=again)
        except (errors.NoReply, errors.ModelDown) as error:
            if ends_at is None or time.monotonic() < ends_at:
                raise
            raise errors.DeadlineExceeded(f"no answer within timeout_s ({error})") from error

    def _ask_until(
        self, model: str, message: Any, idle_s: float, ends_at: float | None, *, again: bool
    ) -> list[Any]:
        for tries_left in reversed(range(_TRIES)):
            self._client.ready(model, ends_at=ends_at)
            message = replace(message, ref=new_ref())
            is_verify = isinstance(message, m.Verify)
            asked = message.as_complete() if is_verify else m.Ask(model, message)
            try:
                return list(self._answers(model, asked, idle_s, ends_at))
            except _Interrupted as error:
                if not (again and tries_left):
                    raise errors.ModelDown(model, str(error)) from error
            except (TargetDown, NodeRestarted) as error:
                if not (again and tries_left):  # inflight or the whole node ended
                    raise errors.NoReply(f"{error}; look whether it was done") from error
            except SupervisionError as error:
                raise self._client.typed(error) from error
        raise errors.ModelDown(
            model, f"the question to model {model!r} was interrupted {_TRIES} times"
        )

    def _answers(
        self, model: str, asked: object, idle_s: float, ends_at: float | None
    ) -> Iterator[object]:
        from actors.requests.questions import (
            is_end,  # here: it imports the messages of every question
        )

        replies = self._client.connection.stream(
            "inflight", asked, idle_timeout_s=idle_s, ends_at=ends_at, until_down=True
        )
        for reply in replies:
            match reply:
                case (
                    m.TextRefused(_, reason, detail)
                    | m.EmbedFailed(_, reason, detail)
                    | m.NoVram(_, reason, detail)
                    | m.AdapterNotChanged(_, reason, _, detail)
                    | m.CompletionFailed(_, reason, detail)
                ):
                    if reason is m.FailReason.INTERRUPTED:
                        raise _Interrupted(detail)
                    raise failure(model, reason, detail)
                case m.Accepted() | m.StillRunning() | m.PrefillProgress() | m.Resumed():
                    pass
                case _:
                    yield reply
                    if is_end(reply) or isinstance(reply, m.Verified):
                        return


class _Interrupted(Exception):
    """The model's process ended while it answered; what came of the answer is of no use."""


def _inputs(given: object) -> list[str | list[int]]:
    """What to embed, one by one; ids alone are one text."""
    if arguments.is_text(given):
        return [arguments.text("inputs", given)]
    ones = arguments.items("inputs", given, "a text, token ids, or a list of texts or token ids")
    if ones and all(map(arguments.is_whole, ones)):
        return [arguments.token_list("inputs", ones)]
    return [
        arguments.text(f"inputs[{at}]", one)
        if arguments.is_text(one)
        else arguments.token_list(f"inputs[{at}]", one)
        for at, one in enumerate(ones)
    ]


def _adapter_id(adapter: object) -> int:
    return arguments.whole("adapter", adapter, 0, MAX_ADAPTER_ID)


@contextlib.contextmanager
def _kept(data: bytes) -> Iterator[Payload]:
    """Bytes for a message, wherever they lie, until the question is answered."""
    keeper = PayloadKeeper(data)
    try:
        yield keeper.payload
    finally:
        keeper.close()
