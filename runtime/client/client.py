"""Every question that a host may ask a node, for threads.

The methods are those of ``AsyncClient``, which implements them; here each blocks until it is done.
Usable from several threads at once; each has its own mailbox inside the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from actors import messages as m
from runtime.client.answers import (
    ChatPrompt,
    Embeddings,
    Ranking,
    Verdict,
    VramInfo,
    WarmPrefix,
)
from runtime.client.async_client import AsyncClient
from runtime.client.reply import Reply
from runtime.client.request_options import Messages, Prompt, Prompts
from runtime.client.results import Completion, ModelStatus
from runtime.client.stream import CompletionStream, RequestHandle
from runtime.client.transport import BlockingTransport, finished
from supervision import Address, Connection, Entry

if TYPE_CHECKING:
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
    from runtime.client.tree import TreeNode
    from runtime.settings.config import ModelConfig


class Client:
    """Questions to one node. ``Node`` is a client that also starts and stops the node.

    Every method may raise ``NodeNotRunning`` and ``NoReply``; those that name a model also
    ``ModelUnknown``, ``ModelStopped`` and ``ModelDown``; those that send something also
    ``InvalidRequest``, ``NotSupported`` and ``Overloaded``. A model that is restarting is waited
    for, 30 seconds at most; the embedded one, ``demo``, is loaded at its first use. A question
    whose model dies is asked again where that is safe; one whose model dies of it twice raises
    ``RequestPoisoned``.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._calls = AsyncClient(BlockingTransport(connection))

    @property
    def connection(self) -> Connection:
        """The connection itself: ``ask`` and ``tell`` any message to any actor."""
        return self._connection

    # ── models ──────────────────────────────────────────────────────────────────────────────────

    def load(
        self,
        model: str,
        path: str | Path | ModelConfig | None = None,
        *,
        progress: Callable[[float], None] | None = None,
        options: LoadOptions | None = None,
        **keywords: Unpack[LoadOptionsDict],
    ) -> ModelStatus:
        """Load a GGUF file under an id, and wait until it is ready.

        ``path`` may be a whole ``ModelConfig`` instead. ``demo`` without a path is the embedded
        model. ``progress`` is called with shares from 0 to 1 while the file is read. Options: see
        ``LoadOptions``.

        Raises ``ModelAlreadyLoaded``, ``ModelLoadFailed``, and ``ConfigError`` for an option.

        >>> node.load("qwen", "qwen.gguf", n_ctx=16384)                     # doctest: +SKIP
        """
        return finished(
            self._calls.load(model, path, progress=progress, options=options, **keywords)
        )

    def unload(self, model: str, *, drain_s: float | None = 0.0) -> None:
        """Unload a model; its running requests may continue for ``drain_s`` seconds."""
        finished(self._calls.unload(model, drain_s=drain_s))

    def models(self) -> list[ModelStatus]:
        """Loaded and loading models, by id."""
        return finished(self._calls.models())

    def known_models(self) -> list[m.KnownModel]:
        """Every model that is loaded, or would be at its next use: its state, memory, last use."""
        return finished(self._calls.known_models())

    def set_keep_alive(self, model: str, seconds: float | None) -> None:
        """How long a model stays in memory without requests, until it is unloaded.

        below 0: without end; 0: until its requests have ended; None: as it is configured.
        """
        finished(self._calls.set_keep_alive(model, seconds))

    def model_info(self, model: str) -> ModelStatus:
        """Everything a model reports of itself, at once, whatever it is doing."""
        return finished(self._calls.model_info(model))

    def ready(self, model: str, *, ends_at: float | None = None) -> None:
        """Wait for a model that restarts; the embedded one is loaded at its first use.

        No longer than until ``ends_at`` on the monotonic clock, if that is given.
        """
        finished(self._calls.ready(model, ends_at=ends_at))

    # ── completions ─────────────────────────────────────────────────────────────────────────────

    def complete(
        self,
        model: str,
        prompt: Prompt,
        *,
        options: RequestOptions | None = None,
        **keywords: Unpack[RequestOptionsDict],
    ) -> Completion:
        """Generate, and return the whole completion. Options: see ``RequestOptions``.

        >>> node.complete("demo", "Once upon a time", max_tokens=40).text   # doctest: +SKIP
        """
        return finished(self._calls.complete(model, prompt, options=options, **keywords))

    def stream(
        self,
        model: str,
        prompt: Prompt,
        *,
        options: RequestOptions | None = None,
        **keywords: Unpack[RequestOptionsDict],
    ) -> CompletionStream:
        """Generate, and yield events as they come; the last one is a ``CompletionEvent``.

        ``prompt`` is text or token ids. Options: see ``RequestOptions``. Nothing is sent before the
        first step.

        When a process of the node dies, or all of them, the reply continues at its next token, and
        nothing comes twice. ``ModelDown`` is raised only if the model does not come back.
        """
        return self._stream(self._calls._reply_to_prompt(model, prompt, options, keywords))

    def chat(
        self,
        model: str,
        messages: Messages,
        *,
        options: RequestOptions | ChatOptions | None = None,
        **keywords: Unpack[ChatOptionsDict],
    ) -> Completion:
        """Answer a conversation, and return the whole answer; as ``stream_chat``."""
        return finished(self._calls.chat(model, messages, options=options, **keywords))

    def stream_chat(
        self,
        model: str,
        messages: Messages,
        *,
        options: RequestOptions | ChatOptions | None = None,
        **keywords: Unpack[ChatOptionsDict],
    ) -> CompletionStream:
        """Answer a conversation by the model's template, and yield events as they come.

        ``messages``: ``[{"role": "user", "content": …}, …]``. Options: see ``ChatOptions``. Calls
        of given ``tools`` are returned apart from the text. ``NotSupported`` names what the
        template would leave out.
        """
        return self._stream(self._calls._reply_to_chat(model, messages, options, keywords))

    def complete_many(
        self,
        model: str,
        prompts: Prompts,
        *,
        n: int | None = None,
        options: RequestOptions | None = None,
        **keywords: Unpack[RequestOptionsDict],
    ) -> list[Completion]:
        """Generate ``n`` replies (1 to 128, default 1) to each prompt of one or of a list.

        Returns them in the order of the prompts, those of each together. A prompt is computed once.
        Reply ``i`` of a prompt has the seed ``seed + i``, so the first one is that of ``complete``;
        at temperature 0 all of them are equal. Options: see ``RequestOptions``; ``timeout_s`` is
        for all of them together. A reply that fails ends the others, and its error is raised.

        >>> node.complete_many("demo", "Once", n=3, temperature=0.8)        # doctest: +SKIP
        >>> node.complete_many("demo", ["The fox", "The hen"], max_tokens=8)  # doctest: +SKIP
        """
        return finished(self._calls.complete_many(model, prompts, n=n, options=options, **keywords))

    def chat_many(
        self,
        model: str,
        messages: Messages,
        *,
        n: int | None = None,
        options: RequestOptions | ChatOptions | None = None,
        **keywords: Unpack[ChatOptionsDict],
    ) -> list[Completion]:
        """Give ``n`` answers to one conversation; as ``complete_many``."""
        return finished(self._calls.chat_many(model, messages, n=n, options=options, **keywords))

    def infill(
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
        r"""Write what belongs between ``prefix`` and ``suffix``; for models trained to do that.

        ``extra``: names and texts of other files that help; ``repository`` and ``file`` name what
        the gap is in. ``suffix_first`` is the order that some models were trained with. Options:
        see ``RequestOptions``. ``NotSupported`` where the vocabulary has no tokens for this.

        >>> node.infill("coder", "def add(a, b):\n    return ", "\n").text   # doctest: +SKIP
        """
        return finished(
            self._calls.infill(
                model,
                prefix,
                suffix,
                extra=extra,
                repository=repository,
                file=file,
                suffix_first=suffix_first,
                options=options,
                **keywords,
            )
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
    ) -> CompletionStream:
        """As ``infill``, and yield events as they come; as ``stream``."""
        place = {"repository": repository, "file": file, "suffix_first": suffix_first}
        return self._stream(
            self._calls._reply_to_infill(model, prefix, suffix, extra, place, options, keywords)
        )

    def prefill_only(
        self,
        model: str,
        prompt: Prompt,
        *,
        options: RequestOptions | None = None,
        **keywords: Unpack[RequestOptionsDict],
    ) -> Completion:
        """Read a prompt into the cache and generate nothing; its ``finish_key`` can be continued.

        ``max_tokens`` is 0, whatever is given.
        """
        return finished(self._calls.prefill_only(model, prompt, options=options, **keywords))

    def continue_session(
        self,
        model: str,
        session: str,
        more: Prompt,
        *,
        options: RequestOptions | None = None,
        **keywords: Unpack[ContinuationOptionsDict],
    ) -> Completion:
        """Continue a session: ``more`` is only what follows what it holds already."""
        return finished(
            self._calls.continue_session(model, session, more, options=options, **keywords)
        )

    def _stream(self, reply: Reply) -> CompletionStream:
        return CompletionStream(reply, RequestHandle(self._calls._cancel))

    # ── texts and tokens ────────────────────────────────────────────────────────────────────────

    def tokenize(
        self,
        model: str,
        text: str | bytes,
        *,
        add_special: bool | None = True,
        parse_special: bool | None = False,
    ) -> list[int]:
        """The tokens of a text; with ``add_special``, also those that the model puts around one.

        ``parse_special`` reads control tokens that are written in it: not for texts of third
        parties.
        """
        return finished(
            self._calls.tokenize(model, text, add_special=add_special, parse_special=parse_special)
        )

    def detokenize(self, model: str, tokens: Sequence[int], *, special: bool | None = False) -> str:
        """The text of some tokens; bytes that are no character become U+FFFD.

        ``special`` shows control tokens, which are left out otherwise.
        """
        return finished(self._calls.detokenize(model, tokens, special=special))

    def detokenize_bytes(
        self, model: str, tokens: Sequence[int], *, special: bool | None = False
    ) -> bytes:
        """The bytes of some tokens, for one may begin or end inside a character."""
        return finished(self._calls.detokenize_bytes(model, tokens, special=special))

    def token_pieces(self, model: str, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token by itself, control tokens as they are written.

        A blank that begins a text is part of its first token here, as in the vocabulary.
        """
        return finished(self._calls.token_pieces(model, tokens))

    def apply_chat_template(  # noqa: PLR0913  # what a template reads, by name
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
        """The prompt that the model's template makes of a conversation; see ``ChatOptions``.

        ``add_generation_prompt`` (True) ends it where the answer begins. ``NotSupported`` names
        what the template would leave out.
        """
        return finished(
            self._calls.apply_chat_template(
                model,
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
        )

    def verify_thinking(self, model: str, content: bytes, signature: bytes) -> bool:
        """Whether a model of this node thought this, a ``SpanEvent``'s ``body``, and signed it."""
        return finished(self._calls.verify_thinking(model, content, signature))

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
        return finished(
            self._calls.embed(
                model, inputs, pooling=pooling, normalise=normalise, timeout_s=timeout_s
            )
        )

    def rerank(
        self,
        model: str,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        timeout_s: float | None = None,
    ) -> Ranking:
        """Documents by how well they fit a query, best first; ``top_n`` at most.

        For models with a head that ranks; ``NotSupported`` for others. A query and a document
        together may have ``embed_tokens``. ``timeout_s`` (600) bounds each silence.
        """
        return finished(
            self._calls.rerank(model, query, documents, top_n=top_n, timeout_s=timeout_s)
        )

    # ── guesses ─────────────────────────────────────────────────────────────────────────────────

    def draft_tokens(
        self, model: str, prefix: Prompt, most: int, *, timeout_s: float | None = None
    ) -> tuple[int, ...]:
        """At most ``most`` tokens that the model generates after ``prefix``, greedily."""
        return finished(self._calls.draft_tokens(model, prefix, most, timeout_s=timeout_s))

    def verify(
        self,
        model: str,
        prefix: Sequence[int],
        candidates: Sequence[int],
        *,
        k: int | None = None,
        timeout_s: float | None = None,
    ) -> Verdict:
        """How many of these tokens the model would generate itself after ``prefix``, greedily.

        Only the first ``k`` count, if that is given.
        """
        return finished(self._calls.verify(model, prefix, candidates, k=k, timeout_s=timeout_s))

    # ── sessions and what is warm ───────────────────────────────────────────────────────────────

    def end_session(self, model: str, session: str, *, salt: bytes | None = None) -> bool:
        """Forget a session; whether there was one. A request of it that runs is its last.

        ``salt`` is that of its requests, see ``RequestOptions``.
        """
        return finished(self._calls.end_session(model, session, salt=salt))

    def list_sessions(self, model: str) -> tuple[m.SessionStatus, ...]:
        """The sessions that were used last, latest first, with their salts; 256 at most."""
        return finished(self._calls.list_sessions(model))

    def evict(self, model: str) -> int:
        """Remove every idle sequence from the context; how many there were.

        What is not stored yet is stored first. Running requests are not touched.
        """
        return finished(self._calls.evict(model))

    def match_prefix(
        self,
        model: str,
        prompt: Prompt,
        *,
        parse_special: bool = False,
        salt: bytes | None = None,
    ) -> WarmPrefix:
        """How much of a prompt is warm, for requests with this ``salt``.

        Restores nothing and touches no row. A text is tokenised by the model first, as for a
        completion; ``PromptTooLong`` as there.
        """
        return finished(
            self._calls.match_prefix(model, prompt, parse_special=parse_special, salt=salt)
        )

    def list_cached_prefixes(self, model: str, prompt: Prompt) -> int:
        """Leading tokens of a prompt that are warm, live or stored."""
        return finished(self._calls.list_cached_prefixes(model, prompt))

    # ── adapters ────────────────────────────────────────────────────────────────────────────────

    def load_adapter(
        self, model: str, path: str | Path, *, scale: float | None = 1.0
    ) -> m.AdapterStatus:
        """Apply a LoRA adapter once the running requests have ended; later requests wait."""
        return finished(self._calls.load_adapter(model, path, scale=scale))

    def unload_adapter(self, model: str, adapter: int) -> tuple[m.AdapterStatus, ...]:
        """Free an adapter, by its id; returns what is left."""
        return finished(self._calls.unload_adapter(model, adapter))

    def set_adapter_scale(
        self, model: str, adapter: int, scale: float
    ) -> tuple[m.AdapterStatus, ...]:
        """Apply an adapter, by its id, times another scale; 0 applies nothing."""
        return finished(self._calls.set_adapter_scale(model, adapter, scale))

    def list_adapters(self, model: str) -> tuple[m.AdapterStatus, ...]:
        """The adapters that are loaded."""
        return finished(self._calls.list_adapters(model))

    # ── what it is and does ─────────────────────────────────────────────────────────────────────

    def vram_info(self, model: str) -> VramInfo:
        """GPU memory as this model's llama.cpp reports it; ``NotSupported`` without a GPU."""
        return finished(self._calls.vram_info(model))

    def phase(self, model: str) -> str:
        """``loading | idle | prefilling | generating``, or the supervisor's state of one not up."""
        return finished(self._calls.phase(model))

    def pending_len(self, model: str) -> int:
        """Requests that wait in the model for a place in its context."""
        return finished(self._calls.pending_len(model))

    def queue_depth(self, model: str | None = None) -> int:
        """Requests that run or wait: of a model, or of the whole node."""
        return finished(self._calls.queue_depth(model))

    def last_cache_hit(self, model: str) -> dict[str, Any] | None:
        """Of the request that ended last: ``hit``, ``source``, ``cached_tokens``."""
        return finished(self._calls.last_cache_hit(model))

    # ── the node ────────────────────────────────────────────────────────────────────────────────

    def directory(self) -> tuple[Entry, ...]:
        """Every entry of the tree, from the registry; from the root while that restarts."""
        return finished(self._calls.directory())

    def status(self) -> dict[str, Any]:
        """For people: ``node`` with its ``port``, ``pid`` and ``boot``; ``actors``: ``reports``."""
        return finished(self._calls.status())

    def reports(self) -> dict[str, dict[str, Any] | None]:
        """What every actor reports of itself, by id; ``None`` for one that did not answer."""
        return finished(self._calls.reports())

    def report_of(self, actor: str) -> dict[str, Any] | None:
        """What one actor reports of itself; None if it does not answer in time."""
        return finished(self._calls.report_of(actor))

    def tree(self, *, vitals: bool | None = False) -> TreeNode:
        """The live tree, from the launcher down.

        With ``vitals``, memory, uptime and mailboxes too: the supervisors are asked, who report on
        children that hang as well, and so is the kernel, which takes a few milliseconds.
        """
        return finished(self._calls.tree(vitals=vitals))

    def ask(self, target: str | Address, message: object) -> object:
        """Ask any actor, by id or address; ``message`` has a ``ref``, see ``actors.messages``."""
        return finished(self._calls.ask(target, message))
