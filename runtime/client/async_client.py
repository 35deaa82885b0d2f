"""Every question that a host may ask a node, for asyncio code; and the one implementation of them.

``Client`` is the same for threads: it runs these coroutines over a transport that blocks. A method
returns what its docstring in ``Client`` describes, takes the same arguments and raises the same
errors.

No method blocks the loop, and no request needs a thread: all wait at one descriptor of the loop.
(``tree(vitals=True)`` reads ``/proc`` on a thread of the loop's executor, for some milliseconds.)
Cancelling the task that waits for a completion, or leaving a stream, cancels the request in the
node, whatever it is doing. Cancelling any other question only ends the wait for its answer.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import time
import weakref
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

from actors import messages as m
from actors.messages.actor_ids import RESIDENCY, model_actor_id, model_of
from actors.messages.payload import Payload, PayloadKeeper
from cache import tokens as token_bytes
from runtime import errors
from runtime.client.answers import (
    ChatPrompt,
    Embeddings,
    Ranked,
    Ranking,
    Verdict,
    VramInfo,
    WarmPrefix,
)
from runtime.client.failures import failure
from runtime.client.models import Models
from runtime.client.reply import Reply
from runtime.client.request_options import (
    Messages,
    PreparedRequest,
    Prompt,
    Prompts,
    chat_json,
    chat_request,
    encoded_prompt,
    infill_request,
    prompt_request,
    salt_of,
    session_name,
    several_of_chat,
    several_of_prompts,
    with_options,
)
from runtime.client.results import Completion, CompletionEvent, ModelStatus, TokenEvent
from runtime.client.stream import RequestHandle
from runtime.client.time_limits import (
    CANCEL_S,
    DRAIN_EXTRA_S,
    GRACE_S,
    SILENCE_TIMEOUT_S,
    STATUS_TIMEOUT_S,
    STEP_TIMEOUT_S,
    TEXT_TIMEOUT_S,
    VITALS_TIMEOUT_S,
)
from runtime.client.transport import Transport
from runtime.settings import arguments
from runtime.settings.user_paths import user_path
from supervision import Address, ChildKind, Entry
from supervision.errors import NodeRestarted, SupervisionError, TargetDown
from supervision.messages import (
    ListDirectory,
    ReportVitals,
    Vitals,
    VitalsReported,
    new_ref,
)

if TYPE_CHECKING:
    from runtime.client.async_stream import AsyncStream
    from runtime.client.options import (
        ChatOptions,
        ChatOptionsDict,
        ContinuationOptionsDict,
        ContinuedName,
        EffortName,
        LoadOptions,
        LoadOptionsDict,
        RequestOptions,
        RequestOptionsDict,
    )
    from runtime.client.tree import ProcessFacts, TreeNode
    from runtime.settings.config import ModelConfig

MAX_ADAPTER_ID: Final = (1 << 31) - 1
_TRIES: Final = 5


class AsyncClient:
    """Questions to one node, as coroutines. Get one from ``AsyncNode``."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._models = Models(transport)
        self._replies: weakref.WeakSet[Reply] = weakref.WeakSet()

    # ── models ──────────────────────────────────────────────────────────────────────────────────

    async def load(
        self,
        model: str,
        path: str | Path | ModelConfig | None = None,
        *,
        progress: Callable[[float], None] | None = None,
        options: LoadOptions | None = None,
        **keywords: Unpack[LoadOptionsDict],
    ) -> ModelStatus:
        """As ``Client.load``; ``progress`` is called on the loop."""
        from runtime.client.load_request import config_of

        if progress is not None and not callable(progress):
            raise arguments.wrong("progress", progress, "a function that takes a share")
        given = with_options("options", options, "LoadOptions", keywords)
        return await self._models.load(model, config_of(model, path, given), progress)

    async def unload(self, model: str, *, drain_s: float | None = 0.0) -> None:
        """As ``Client.unload``."""
        drain = arguments.pause("drain_s", drain_s)
        request = m.UnloadModel(new_ref(), arguments.model_name(model), drain)
        answer = await self._models.ask("registry", request, timeout_s=DRAIN_EXTRA_S + drain)
        if isinstance(answer, m.ModelUnloaded) and answer.was_loaded:
            return
        slept = await self._models.ask(RESIDENCY, m.UnloadModel(new_ref(), model))
        if not (isinstance(slept, m.ModelUnloaded) and slept.was_loaded):
            raise errors.ModelUnknown(model, f"no model {model!r} is loaded")

    async def models(self) -> list[ModelStatus]:
        """As ``Client.models``."""
        entries = await self.directory()
        found = [e for e in entries if model_of(e.id) and e.state != "down"]
        return [await self._models.status_of(one) for one in sorted(found, key=lambda e: e.id)]

    async def known_models(self) -> list[m.KnownModel]:
        """As ``Client.known_models``."""
        return await self._models.known()

    async def set_keep_alive(self, model: str, seconds: float | None) -> None:
        """As ``Client.set_keep_alive``."""
        kept = None if seconds is None else arguments.real("seconds", seconds)
        asked = m.SetKeepAlive(new_ref(), arguments.model_name(model), kept)
        answer = await self._models.ask(RESIDENCY, asked)
        if not (isinstance(answer, m.KeepAliveSet) and answer.is_known):
            raise errors.ModelUnknown(model, f"no model {model!r} is known")

    async def model_info(self, model: str) -> ModelStatus:
        """As ``Client.model_info``."""
        entry = await self._models.where(model_actor_id(arguments.model_name(model)))
        if entry is None:
            raise errors.ModelUnknown(model, f"no model {model!r} is loaded; load it first")
        return await self._models.status_of(entry)

    async def ready(self, model: str, *, ends_at: float | None = None) -> None:
        """As ``Client.ready``."""
        await self._models.ready(arguments.model_name(model), ends_at=ends_at)

    # ── completions ─────────────────────────────────────────────────────────────────────────────

    def stream(
        self,
        model: str,
        prompt: Prompt,
        *,
        options: RequestOptions | None = None,
        **keywords: Unpack[RequestOptionsDict],
    ) -> AsyncStream:
        """As ``Client.stream``; iterate with ``async for``."""
        return self._async_stream(self._reply_to_prompt(model, prompt, options, keywords))

    def stream_chat(
        self,
        model: str,
        messages: Messages,
        *,
        options: RequestOptions | ChatOptions | None = None,
        **keywords: Unpack[ChatOptionsDict],
    ) -> AsyncStream:
        """As ``Client.stream_chat``; iterate with ``async for``."""
        return self._async_stream(self._reply_to_chat(model, messages, options, keywords))

    async def complete(
        self,
        model: str,
        prompt: Prompt,
        *,
        options: RequestOptions | None = None,
        **keywords: Unpack[RequestOptionsDict],
    ) -> Completion:
        """As ``Client.complete``."""
        return await self._whole(self._reply_to_prompt(model, prompt, options, keywords))

    async def chat(
        self,
        model: str,
        messages: Messages,
        *,
        options: RequestOptions | ChatOptions | None = None,
        **keywords: Unpack[ChatOptionsDict],
    ) -> Completion:
        """As ``Client.chat``."""
        return await self._whole(self._reply_to_chat(model, messages, options, keywords))

    async def complete_many(
        self,
        model: str,
        prompts: Prompts,
        *,
        n: int | None = None,
        options: RequestOptions | None = None,
        **keywords: Unpack[RequestOptionsDict],
    ) -> list[Completion]:
        """As ``Client.complete_many``."""
        given = with_options("options", options, "RequestOptions", keywords)
        return await self._several(several_of_prompts(model, prompts, n, **given))

    async def chat_many(
        self,
        model: str,
        messages: Messages,
        *,
        n: int | None = None,
        options: RequestOptions | ChatOptions | None = None,
        **keywords: Unpack[ChatOptionsDict],
    ) -> list[Completion]:
        """As ``Client.chat_many``."""
        given = with_options("options", options, "ChatOptions", keywords)
        return await self._several([several_of_chat(model, messages, n, **given)])

    async def infill(
        self,
        model: str,
        prefix: str,
        suffix: str,
        *,
        extra: Mapping[str, str] | Sequence[tuple[str, str]] | None = None,
        repository: str | None = None,
        file: str | None = None,
        suffix_first: bool | None = None,
        options: RequestOptions | None = None,
        **keywords: Unpack[RequestOptionsDict],
    ) -> Completion:
        """As ``Client.infill``."""
        place = {"repository": repository, "file": file, "suffix_first": suffix_first}
        return await self._whole(
            self._reply_to_infill(model, prefix, suffix, extra, place, options, keywords)
        )

    def stream_infill(
        self,
        model: str,
        prefix: str,
        suffix: str,
        *,
        extra: Mapping[str, str] | Sequence[tuple[str, str]] | None = None,
        repository: str | None = None,
        file: str | None = None,
        suffix_first: bool | None = None,
        options: RequestOptions | None = None,
        **keywords: Unpack[RequestOptionsDict],
    ) -> AsyncStream:
        """As ``Client.stream_infill``; iterate with ``async for``."""
        place = {"repository": repository, "file": file, "suffix_first": suffix_first}
        return self._async_stream(
            self._reply_to_infill(model, prefix, suffix, extra, place, options, keywords)
        )

    async def prefill_only(
        self,
        model: str,
        prompt: Prompt,
        *,
        options: RequestOptions | None = None,
        **keywords: Unpack[RequestOptionsDict],
    ) -> Completion:
        """As ``Client.prefill_only``."""
        given = {**keywords, "max_tokens": 0}
        return await self._whole(self._reply_to_prompt(model, prompt, options, given))

    async def continue_session(
        self,
        model: str,
        session: str,
        more: Prompt,
        *,
        options: RequestOptions | None = None,
        **keywords: Unpack[ContinuationOptionsDict],
    ) -> Completion:
        """As ``Client.continue_session``."""
        given = {**keywords, "session": session_name(session), "continues": True}
        return await self._whole(self._reply_to_prompt(model, more, options, given))

    def _reply_to_prompt(
        self,
        model: str,
        prompt: Prompt,
        options: RequestOptions | None,
        keywords: Mapping[str, Any],
    ) -> Reply:
        """The reply to a text or to token ids; for the two kinds of streams."""
        given = with_options("options", options, "RequestOptions", keywords)
        return self._reply(prompt_request(model, prompt, **given))

    def _reply_to_chat(
        self,
        model: str,
        messages: Messages,
        options: RequestOptions | None,
        keywords: Mapping[str, Any],
    ) -> Reply:
        """The reply to a conversation; for the two kinds of streams."""
        given = with_options("options", options, "ChatOptions", keywords)
        return self._reply(chat_request(model, messages, **given))

    def _reply_to_infill(
        self,
        model: str,
        prefix: str,
        suffix: str,
        extra: Mapping[str, str] | Sequence[tuple[str, str]] | None,
        place: Mapping[str, Any],
        options: RequestOptions | None,
        keywords: Mapping[str, Any],
    ) -> Reply:
        """The reply to what surrounds a gap; for the two kinds of streams."""
        given = with_options("options", options, "RequestOptions", keywords)
        return self._reply(infill_request(model, prefix, suffix, extra=extra, **place, **given))

    def _reply(self, prepared: PreparedRequest) -> Reply:
        return self._replies_of([prepared])[0]

    def _replies_of(self, requests: Sequence[PreparedRequest]) -> list[Reply]:
        """Replies to one prompt, which is read once where it is to be shown."""
        shown: TokenEvent | None = None

        async def read(ends_at: float | None) -> TokenEvent:
            nonlocal shown
            if shown is None:
                shown = await self._shown_prompt(requests[0], ends_at)
            return shown

        replies = [
            Reply(self._transport, self._models, one, read if one.echo else None)
            for one in requests
        ]
        self._replies.update(replies)
        return replies

    async def _several(self, prompts: Sequence[Sequence[PreparedRequest]]) -> list[Completion]:
        from runtime.client.several import completions_of

        replies = [self._replies_of(requests) for requests in prompts]
        return await completions_of(self._transport, self._cancel, replies)

    async def _shown_prompt(self, prepared: PreparedRequest, ends_at: float | None) -> TokenEvent:
        """The prompt as an event. A text has the tokens that the tokenizer makes of it."""
        request, model = prepared.request, prepared.request.model
        with _kept(prepared.prompt) as payload:
            if isinstance(request.prompt, m.TextPrompt):
                parse, text = request.prompt.parse_special, prepared.prompt.decode()
                question = m.Tokenize("", payload, True, parse, as_prompt=True)
                tokens = tuple(await self._tokens(model, question, ends_at))
            else:
                pages = await self._ask_model(
                    model, m.Detokenize("", payload, False), ends_at=ends_at
                )
                parts = [page.data for page in pages if isinstance(page, m.Detokenized)]
                text = b"".join(parts).decode("utf-8", "replace")
                tokens = tuple(token_bytes.unpack(prepared.prompt))
        asked = request.sampling.n_logprobs is not None
        logprobs = (None,) * len(tokens) if asked else ()
        return TokenEvent(-len(tokens), tokens, text, logprobs, "prompt")

    def _cancel(self, request_id: str) -> None:
        """Have the node stop a request; may raise errors of ``supervision``."""
        self._transport.notify("inflight", m.Cancel(request_id), timeout_s=CANCEL_S)

    def _async_stream(self, reply: Reply) -> AsyncStream:
        from runtime.client.async_stream import AsyncStream

        return AsyncStream(reply, RequestHandle(self._cancel))

    async def _whole(self, reply: Reply) -> Completion:
        try:
            while (event := await reply.next()) is not None:
                if isinstance(event, CompletionEvent):
                    return event.completion
        finally:
            reply.leave()
        raise errors.NoReply("the stream ended without a result")

    def _leave_all(self) -> None:
        """Cancel every request of this client that still runs."""
        for reply in list(self._replies):
            reply.leave()

    # ── texts and tokens ────────────────────────────────────────────────────────────────────────

    async def tokenize(
        self,
        model: str,
        text: str | bytes,
        *,
        add_special: bool | None = True,
        parse_special: bool | None = False,
    ) -> list[int]:
        """As ``Client.tokenize``."""
        add = arguments.flag("add_special", add_special, default=True)
        parse = arguments.flag("parse_special", parse_special)
        with _kept(arguments.text("text", text).encode()) as payload:
            return await self._tokens(model, m.Tokenize("", payload, add, parse))

    async def _tokens(
        self, model: str, question: m.Tokenize, ends_at: float | None = None
    ) -> list[int]:
        pages = await self._ask_model(model, question, ends_at=ends_at)
        parts = [page.tokens for page in pages if isinstance(page, m.Tokenized)]
        return list(token_bytes.unpack(b"".join(parts)))

    async def detokenize(
        self, model: str, tokens: Sequence[int], *, special: bool | None = False
    ) -> str:
        """As ``Client.detokenize``."""
        found = await self.detokenize_bytes(model, tokens, special=special)
        return found.decode("utf-8", "replace")

    async def detokenize_bytes(
        self, model: str, tokens: Sequence[int], *, special: bool | None = False
    ) -> bytes:
        """As ``Client.detokenize_bytes``."""
        packed = arguments.packed_tokens("tokens", tokens, may_be_empty=True)
        shows = arguments.flag("special", special)
        if not packed:
            arguments.model_name(model)
            return b""
        with _kept(packed) as payload:
            pages = await self._ask_model(model, m.Detokenize("", payload, shows))
        return b"".join(page.data for page in pages if isinstance(page, m.Detokenized))

    async def token_pieces(self, model: str, tokens: Sequence[int]) -> list[bytes]:
        """As ``Client.token_pieces``."""
        packed = arguments.packed_tokens("tokens", tokens, may_be_empty=True)
        if not packed:
            arguments.model_name(model)
            return []
        with _kept(packed) as payload:
            question = m.Detokenize("", payload, special=True, by_token=True)
            pages = await self._ask_model(model, question)
        pieces: list[bytes] = []
        for page in pages:
            if isinstance(page, m.Detokenized):
                ends = list(itertools.accumulate(page.lengths, initial=0))
                pieces += [page.data[a:b] for a, b in itertools.pairwise(ends)]
        return pieces

    async def apply_chat_template(  # noqa: PLR0913  # what a template reads, by name
        self,
        model: str,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        enable_thinking: bool | None = None,
        reasoning_effort: EffortName | None = None,
        continue_final_message: bool | ContinuedName | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool | None = None,
    ) -> ChatPrompt:
        """As ``Client.apply_chat_template``."""
        conversation = chat_json(
            messages,
            tools=tools,
            documents=documents,
            template_kwargs=template_kwargs,
            chat_template_kwargs=chat_template_kwargs,
            enable_thinking=enable_thinking,
            reasoning_effort=reasoning_effort,
            continue_final_message=continue_final_message,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
        )
        with _kept(conversation) as payload:
            pages = await self._ask_model(model, m.ApplyChatTemplate("", payload))
        applied = [page for page in pages if isinstance(page, m.ChatTemplateApplied)]
        ids = token_bytes.unpack(b"".join(page.tokens for page in applied))
        return ChatPrompt(
            "".join(page.text for page in applied),
            tuple(ids),
            tuple(part for page in applied for part in page.parts),
            tuple(name for page in applied for name in page.unknown),
        )

    async def verify_thinking(self, model: str, content: bytes, signature: bytes) -> bool:
        """As ``Client.verify_thinking``."""
        signed = arguments.data("signature", signature)
        with _kept(arguments.data("content", content)) as payload:
            (answer,) = await self._ask_model(model, m.VerifyThinking("", payload, signed))
        return isinstance(answer, m.ThinkingVerified) and answer.valid

    async def embed(
        self,
        model: str,
        inputs: str | Sequence[int] | Sequence[str | Sequence[int]],
        *,
        pooling: str | None = "model",
        normalise: bool | None = True,
        timeout_s: float | None = None,
    ) -> Embeddings:
        """As ``Client.embed``."""
        idle_s = arguments.seconds("timeout_s", timeout_s, SILENCE_TIMEOUT_S) or math.inf
        way = arguments.text("pooling", "model" if pooling is None else pooling)
        unit = arguments.flag("normalise", normalise, default=True)
        with _kept(json.dumps(_inputs(inputs)).encode()) as payload:
            question = m.Embed("", payload, way, unit)
            answers = await self._ask_model(model, question, idle_s=idle_s)
        numbers = array("f")
        for page in answers:
            if isinstance(page, m.EmbeddingPage):
                numbers.frombytes(page.data)
        end = answers[-1]
        if not isinstance(end, m.Embedded):
            raise errors.NoReply(f"model {model!r} did not report how its vectors end")
        cuts = range(0, len(numbers), end.n_embd)
        vectors = tuple(numbers[at : at + end.n_embd] for at in cuts)
        return Embeddings(vectors, end.rows, end.n_embd, end.n_tokens)

    async def rerank(
        self,
        model: str,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        timeout_s: float | None = None,
    ) -> Ranking:
        """As ``Client.rerank``."""
        idle_s = arguments.seconds("timeout_s", timeout_s, SILENCE_TIMEOUT_S) or math.inf
        texts = [
            arguments.text(f"documents[{at}]", one)
            for at, one in enumerate(arguments.items("documents", documents, "a list of texts"))
        ]
        most = len(texts) if top_n is None else arguments.whole("top_n", top_n, 1)
        given = {"query": arguments.text("query", query), "documents": texts}
        with _kept(json.dumps(given).encode()) as payload:
            (end,) = await self._ask_model(model, m.Rerank("", payload), idle_s=idle_s)
        if not isinstance(end, m.Reranked):
            raise errors.NoReply(f"model {model!r} did not report its scores")
        scores = array("f", end.scores)
        best = sorted(range(len(scores)), key=lambda at: (-scores[at], at))
        return Ranking(tuple(Ranked(at, scores[at]) for at in best[:most]), end.n_tokens)

    # ── guesses ─────────────────────────────────────────────────────────────────────────────────

    async def draft_tokens(
        self, model: str, prefix: Prompt, most: int, *, timeout_s: float | None = None
    ) -> tuple[int, ...]:
        """As ``Client.draft_tokens``."""
        most = arguments.whole("most", most, 0)
        done = await self.complete(model, prefix, max_tokens=most, timeout_s=timeout_s)
        return done.tokens

    async def verify(
        self,
        model: str,
        prefix: Sequence[int],
        candidates: Sequence[int],
        *,
        k: int | None = None,
        timeout_s: float | None = None,
    ) -> Verdict:
        """As ``Client.verify``."""
        guesses = arguments.packed_tokens("candidates", candidates)
        most = None if k is None else arguments.whole("k", k, 0)
        within_s = arguments.seconds("timeout_s", timeout_s)
        name = arguments.model_name(model)
        with _kept(arguments.packed_tokens("the prefix", prefix)) as payload:
            request = m.Verify("", name, payload, guesses, most, within_s)
            ends_at = None if within_s is None else time.monotonic() + within_s + GRACE_S
            answers = await self._ask_model(
                model, request, idle_s=SILENCE_TIMEOUT_S, ends_at=ends_at
            )
        found = answers[-1]
        if not isinstance(found, m.Verified):
            raise errors.NoReply(f"model {model!r} ended without a verdict")
        return Verdict(
            found.accepted, found.next_token, found.finish_reason.value, found.cached_tokens
        )

    # ── sessions and what is warm ───────────────────────────────────────────────────────────────

    async def end_session(self, model: str, session: str, *, salt: bytes | None = None) -> bool:
        """As ``Client.end_session``."""
        question = m.EndSession("", session_name(session), salt_of(salt))
        (answer,) = await self._ask_model(model, question, idle_s=STEP_TIMEOUT_S)
        return isinstance(answer, m.SessionEnded) and answer.was_known

    async def list_sessions(self, model: str) -> tuple[m.SessionStatus, ...]:
        """As ``Client.list_sessions``."""
        (answer,) = await self._ask_model(model, m.ListSessions(""), idle_s=STEP_TIMEOUT_S)
        return answer.sessions if isinstance(answer, m.SessionsListed) else ()

    async def evict(self, model: str) -> int:
        """As ``Client.evict``."""
        (answer,) = await self._ask_model(model, m.EvictLive(""), idle_s=STEP_TIMEOUT_S)
        return answer.sequences if isinstance(answer, m.LiveEvicted) else 0

    async def match_prefix(
        self,
        model: str,
        prompt: Prompt,
        *,
        parse_special: bool = False,
        salt: bytes | None = None,
    ) -> WarmPrefix:
        """As ``Client.match_prefix``."""
        parse = arguments.flag("parse_special", parse_special)
        theirs = salt_of(salt)
        packed = encoded_prompt(prompt)
        if arguments.is_text(prompt):
            with _kept(packed) as payload:
                question = m.Tokenize("", payload, True, parse, as_prompt=True)
                packed = token_bytes.pack(await self._tokens(model, question))
        with _kept(packed) as payload:
            answers = await self._ask_model(
                model, m.MatchPrefix("", payload, theirs), idle_s=STEP_TIMEOUT_S
            )
        (answer,) = answers
        if not isinstance(answer, m.PrefixMatched):
            raise errors.NoReply(f"model {model!r} did not report what is warm")
        return WarmPrefix(answer.live, answer.stored, len(packed) // token_bytes.TOKEN_BYTES)

    async def list_cached_prefixes(self, model: str, prompt: Prompt) -> int:
        """As ``Client.list_cached_prefixes``."""
        return (await self.match_prefix(model, prompt)).n_tokens

    # ── adapters ────────────────────────────────────────────────────────────────────────────────

    async def load_adapter(
        self, model: str, path: str | Path, *, scale: float | None = 1.0
    ) -> m.AdapterStatus:
        """As ``Client.load_adapter``."""
        where = str(user_path(arguments.path("path", path), "load_adapter"))
        factor = 1.0 if scale is None else arguments.real("scale", scale)
        return (await self._change(model, m.LoadAdapter("", where, factor)))[-1]

    async def unload_adapter(self, model: str, adapter: int) -> tuple[m.AdapterStatus, ...]:
        """As ``Client.unload_adapter``."""
        return await self._change(model, m.UnloadAdapter("", _adapter_id(adapter)))

    async def set_adapter_scale(
        self, model: str, adapter: int, scale: float
    ) -> tuple[m.AdapterStatus, ...]:
        """As ``Client.set_adapter_scale``."""
        factor = arguments.real("scale", scale)
        return await self._change(model, m.SetAdapterScale("", _adapter_id(adapter), factor))

    async def list_adapters(self, model: str) -> tuple[m.AdapterStatus, ...]:
        """As ``Client.list_adapters``."""
        (answer,) = await self._ask_model(model, m.ListAdapters(""), idle_s=STEP_TIMEOUT_S)
        return answer.adapters if isinstance(answer, m.AdaptersListed) else ()

    async def _change(self, model: str, message: Any) -> tuple[m.AdapterStatus, ...]:
        (answer,) = await self._ask_model(model, message, idle_s=SILENCE_TIMEOUT_S, again=False)
        return answer.adapters if isinstance(answer, m.AdaptersChanged) else ()

    # ── what it is and does ─────────────────────────────────────────────────────────────────────

    async def vram_info(self, model: str) -> VramInfo:
        """As ``Client.vram_info``."""
        (answer,) = await self._ask_model(model, m.ReportVram(""), idle_s=SILENCE_TIMEOUT_S)
        if not isinstance(answer, m.VramReported):
            raise errors.NoReply(f"model {model!r} did not report how much memory there is")
        return VramInfo(answer.free, answer.total, answer.gpus)

    async def phase(self, model: str) -> str:
        """As ``Client.phase``."""
        return (await self.model_info(model)).phase

    async def pending_len(self, model: str) -> int:
        """As ``Client.pending_len``."""
        return (await self.model_info(model)).waiting

    async def queue_depth(self, model: str | None = None) -> int:
        """As ``Client.queue_depth``."""
        if model is None:
            return int((await self.report_of("inflight") or {}).get("in_flight", 0))
        found = await self.model_info(model)
        return found.running + found.waiting + found.aside

    async def last_cache_hit(self, model: str) -> dict[str, Any] | None:
        """As ``Client.last_cache_hit``."""
        last = (await self.model_info(model)).details.get("cache", {}).get("last")
        return None if last is None else dict(last)

    # ── the node ────────────────────────────────────────────────────────────────────────────────

    async def directory(self) -> tuple[Entry, ...]:
        """As ``Client.directory``."""
        try:
            answer = await self._models.ask(
                "registry", ListDirectory(new_ref()), timeout_s=STATUS_TIMEOUT_S
            )
        except errors.NoReply:
            return await self._root_directory()
        return tuple(getattr(answer, "entries", ()))

    async def _root_directory(self) -> tuple[Entry, ...]:
        try:
            return await self._transport.directory()
        except SupervisionError as error:
            raise self._models.typed(error) from error

    async def status(self) -> dict[str, Any]:
        """As ``Client.status``."""
        record = self._transport.record
        return {
            "node": {"port": record.port, "pid": record.pid, "boot": record.boot},
            "actors": await self.reports(),
        }

    async def reports(self) -> dict[str, dict[str, Any] | None]:
        """As ``Client.reports``."""
        entries = await self.directory()
        return {one.id: await self._models.report(one) for one in entries if one.state != "down"}

    async def report_of(self, actor: str) -> dict[str, Any] | None:
        """As ``Client.report_of``."""
        if not isinstance(actor, str):
            raise arguments.wrong("actor", actor, "the id of an actor")
        entry = await self._models.where(actor)
        return None if entry is None else await self._models.report(entry)

    async def tree(self, *, vitals: bool | None = False) -> TreeNode:
        """As ``Client.tree``."""
        from runtime.client.tree import arrange

        if not arguments.flag("vitals", vitals):
            entries = await self.directory()
            record = self._transport.record
            return arrange(record.pid, record.root_pid, record.boot, entries)
        entries = await self._root_directory()
        pulses: dict[str, Vitals] = {}
        for entry in entries:
            if entry.kind is ChildKind.SUPERVISOR and entry.is_up:
                with contextlib.suppress(errors.NoReply):
                    answer = await self._models.ask(
                        entry.id, ReportVitals(new_ref()), timeout_s=VITALS_TIMEOUT_S
                    )
                    if isinstance(answer, VitalsReported):
                        pulses |= {one.id: one for one in answer.vitals}
        record = self._transport.record
        return await self._transport.run(
            lambda: arrange(record.pid, record.root_pid, record.boot, entries, pulses, _facts)
        )

    async def ask(self, target: str | Address, message: object) -> object:
        """As ``Client.ask``."""
        if not isinstance(target, str | Address):
            raise arguments.wrong("target", target, "the id of an actor, or its address")
        ref = getattr(message, "ref", None)
        if not isinstance(ref, str) or not ref:
            raise arguments.wrong("message", message, "a message with a ref; see actors.messages")
        return await self._models.ask(target, message)

    # ── asking ──────────────────────────────────────────────────────────────────────────────────

    async def _ask_model(
        self,
        model: str,
        message: Any,
        *,
        idle_s: float = TEXT_TIMEOUT_S,
        ends_at: float | None = None,
        again: bool = True,
    ) -> list[Any]:
        """All answers to a question, in order; a refusal is raised.

        A model that restarts is waited for; a question whose model dies is asked again where
        ``again`` allows it. ``DeadlineExceeded`` where no answer came by ``ends_at`` (monotonic).
        """
        arguments.model_name(model)
        try:
            return await self._ask_until(model, message, idle_s, ends_at, again=again)
        except (errors.NoReply, errors.ModelDown) as error:
            if ends_at is None or time.monotonic() < ends_at:
                raise
            raise errors.DeadlineExceeded(f"no answer within timeout_s ({error})") from error

    async def _ask_until(
        self, model: str, message: Any, idle_s: float, ends_at: float | None, *, again: bool
    ) -> list[Any]:
        for tries_left in reversed(range(_TRIES)):
            await self._models.ready(model, ends_at=ends_at)
            message = replace(message, ref=new_ref())
            is_verify = isinstance(message, m.Verify)
            asked = message.as_complete() if is_verify else m.Ask(model, message)
            try:
                return await self._answers(model, asked, idle_s, ends_at)
            except _Interrupted as error:
                if not (again and tries_left):
                    raise errors.ModelDown(model, str(error)) from error
            except (TargetDown, NodeRestarted) as error:
                if not (again and tries_left):  # inflight or the whole node ended
                    raise errors.NoReply(f"{error}; look whether it was done") from error
            except SupervisionError as error:
                raise self._models.typed(error) from error
        raise errors.ModelDown(
            model, f"the question to model {model!r} was interrupted {_TRIES} times"
        )

    async def _answers(
        self, model: str, asked: object, idle_s: float, ends_at: float | None
    ) -> list[Any]:
        from actors.requests.questions import (
            is_end,  # here: it imports the messages of every question
        )

        answers: list[Any] = []
        replies = self._transport.stream("inflight", asked, idle_timeout_s=idle_s, ends_at=ends_at)
        try:
            while True:
                reply = await replies.next()
                match reply:
                    case (
                        m.TextRefused(_, reason, detail, facts)
                        | m.EmbedFailed(_, reason, detail, facts)
                        | m.CompletionFailed(_, reason, detail, facts)
                    ):
                        if reason is m.FailReason.INTERRUPTED:
                            raise _Interrupted(detail)
                        raise failure(model, reason, detail, facts)
                    case m.NoVram(_, reason, detail) | m.AdapterNotChanged(_, reason, _, detail):
                        if reason is m.FailReason.INTERRUPTED:
                            raise _Interrupted(detail)
                        raise failure(model, reason, detail)
                    case m.Accepted() | m.StillRunning() | m.PrefillProgress() | m.Resumed():
                        pass
                    case _:
                        answers.append(reply)
                        if is_end(reply) or isinstance(reply, m.Verified):
                            return answers
        finally:
            replies.close()


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


def _facts(pid: int) -> ProcessFacts:
    from runtime.client.tree import ProcessFacts
    from supervision.process import age_s, memory

    size = memory(pid)
    return ProcessFacts(age_s(pid), *(size or (None, None)))


@contextlib.contextmanager
def _kept(data: bytes) -> Iterator[Payload]:
    """Bytes for a message, wherever they lie, until the question is answered."""
    keeper = PayloadKeeper(data)
    try:
        yield keeper.payload
    finally:
        keeper.close()
