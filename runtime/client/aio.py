"""The asyncio twin of ``Node``: the same methods as coroutines, streams as async iterators.

No call blocks the event loop. A question occupies one of ``QUESTION_THREADS`` threads until it is
answered, a running stream one of ``STREAM_THREADS``; what comes when all are taken waits for one,
first come first served, and is not sent until then; a stream's ``timeout_s`` counts that wait.
Threads are made as they are needed.

In a forked process an ``AsyncNode`` makes threads and a connection of its own when it is used.

Cancelling the task that waits for a completion, or leaving a stream, cancels the request in the
node, whatever it is doing. Cancelling any other question only stops the waiting for its answer.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

from runtime import errors
from runtime.client.aio_stream import AsyncStream, Feed
from runtime.client.answers import ChatPrompt
from runtime.client.request_options import Messages, Prompt
from runtime.client.results import Completion, CompletionEvent, ModelStatus
from runtime.client.stream import CompletionStream
from runtime.node import Node
from runtime.settings import arguments
from supervision import Connection, forks

QUESTION_THREADS: Final = 16
STREAM_THREADS: Final = 64

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _twin(
    method: Callable[Concatenate[Node, _P], _R],
) -> Callable[Concatenate[AsyncNode, _P], Coroutine[Any, Any, _R]]:
    """A coroutine that runs this method of the node on another thread."""

    async def ask(self: AsyncNode, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return await self._on_thread(functools.partial(method, self._node, *args, **kwargs))

    functools.update_wrapper(ask, method)
    return ask


class AsyncNode:
    """A running node, for code on an event loop. Get one with ``start`` or ``attach``.

    >>> async with AsyncNode.start() as node:                               # doctest: +SKIP
    ...     async for event in node.stream("demo", "Once upon a time"):
    ...         ...
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._is_closed = False
        self._make_threads()

    def _make_threads(self) -> None:
        self._process = forks.here()
        self._questions = ThreadPoolExecutor(QUESTION_THREADS, "node question")
        self._streams = ThreadPoolExecutor(STREAM_THREADS, "node stream")
        self._cancels = ThreadPoolExecutor(1, "node cancel")  # never behind a slow question
        self._open: set[Feed] = set()

    def _own_threads(self) -> None:
        """The pools of a parent have no threads here, and their locks may be held forever."""
        if not forks.is_here(self._process):
            self._make_threads()

    @classmethod
    def start(cls, *args: Any, **kwargs: Any) -> Opening:
        """As ``Node.start``; to be awaited, or used in an ``async with``."""
        return Opening(functools.partial(Node.start, *args, **kwargs))

    @classmethod
    def attach(cls, *args: Any, **kwargs: Any) -> Opening:
        """As ``Node.attach``; to be awaited, or used in an ``async with``."""
        return Opening(functools.partial(Node.attach, *args, **kwargs))

    @property
    def port(self) -> int:
        return self._node.port

    @property
    def launcher_pid(self) -> int:
        return self._node.launcher_pid

    @property
    def connection(self) -> Connection:
        """The raw line into the tree; its methods block."""
        return self._node.connection

    @property
    def node(self) -> Node:
        """The same node for threads; its methods block."""
        return self._node

    # ── completions ─────────────────────────────────────────────────────────────────────────────

    def stream(self, model: str, prompt: Prompt, **options: Any) -> AsyncStream:
        """Generate; iterate with ``async for``. Options as for ``Client.stream``."""
        return self._stream(self._node.stream(model, prompt, **options))

    def stream_chat(self, model: str, messages: Messages, **options: Any) -> AsyncStream:
        """Answer a conversation; iterate with ``async for``. As ``Client.stream_chat``."""
        return self._stream(self._node.stream_chat(model, messages, **options))

    async def complete(self, model: str, prompt: Prompt, **options: Any) -> Completion:
        """Generate and wait for the end; options as for ``Client.stream``."""
        return await _whole(model, self.stream(model, prompt, **options))

    async def chat(self, model: str, messages: Messages, **options: Any) -> Completion:
        """Answer a conversation and wait for the end; options as for ``Client.stream_chat``."""
        return await _whole(model, self.stream_chat(model, messages, **options))

    async def prefill_only(self, model: str, prompt: Prompt, **options: Any) -> Completion:
        """Read a prompt into the cache and say nothing."""
        return await self.complete(model, prompt, **options, max_tokens=0)

    async def continue_session(
        self, model: str, session: str, more: Prompt, **options: Any
    ) -> Completion:
        """Go on in a session: ``more`` is only what follows what it holds already."""
        return await self.complete(model, more, **options, session=session, continues=True)

    async def draft_tokens(
        self, model: str, prefix: Prompt, most: int, *, timeout_s: float | None = None
    ) -> tuple[int, ...]:
        """At most so many tokens that the model would say after ``prefix``, greedily."""
        done = await self.complete(model, prefix, max_tokens=most, timeout_s=timeout_s)
        return done.tokens

    def _stream(self, events: CompletionStream) -> AsyncStream:
        self._own_threads()
        self._require_open()
        return AsyncStream(events, self._streams, self._cancels, self._open)

    def _require_open(self) -> None:
        if self._is_closed:
            raise errors.NodeNotRunning(self.port, "this connection is closed")

    # ── everything else, on a thread ────────────────────────────────────────────────────────────

    async def load(
        self,
        model: str,
        path: str | Path | None = None,
        *,
        progress: Callable[[float], None] | None = None,
        **options: Any,
    ) -> ModelStatus:
        """Load a GGUF under an id; as ``Node.load``. ``progress`` is called on the loop."""
        if progress is not None and not callable(progress):
            raise arguments.wrong("progress", progress, "a function that takes a share")
        loop = asyncio.get_running_loop()

        def tell(share: float) -> None:
            if progress is not None:
                loop.call_soon_threadsafe(progress, share)

        call = functools.partial(self._node.load, model, path, progress=tell, **options)
        return await self._on_thread(call)

    async def apply_chat_template(
        self, model: str, messages: Messages, **options: Any
    ) -> ChatPrompt:
        """What a conversation looks like to the model; as ``Node.apply_chat_template``."""
        call = functools.partial(self._node.apply_chat_template, model, messages, **options)
        return await self._on_thread(call)

    unload = _twin(Node.unload)
    models = _twin(Node.models)
    status = _twin(Node.status)
    tree = _twin(Node.tree)
    tokenize = _twin(Node.tokenize)
    detokenize = _twin(Node.detokenize)
    detokenize_bytes = _twin(Node.detokenize_bytes)
    verify_thinking = _twin(Node.verify_thinking)
    embed = _twin(Node.embed)
    verify = _twin(Node.verify)
    end_session = _twin(Node.end_session)
    evict = _twin(Node.evict)
    match_prefix = _twin(Node.match_prefix)
    list_cached_prefixes = _twin(Node.list_cached_prefixes)
    load_adapter = _twin(Node.load_adapter)
    unload_adapter = _twin(Node.unload_adapter)
    set_adapter_scale = _twin(Node.set_adapter_scale)
    list_adapters = _twin(Node.list_adapters)
    vram_info = _twin(Node.vram_info)
    model_info = _twin(Node.model_info)
    phase = _twin(Node.phase)
    pending_len = _twin(Node.pending_len)
    queue_depth = _twin(Node.queue_depth)
    last_cache_hit = _twin(Node.last_cache_hit)

    async def _on_thread(self, call: Callable[[], _R]) -> _R:
        self._own_threads()
        self._require_open()
        return await asyncio.get_running_loop().run_in_executor(self._questions, call)

    # ── ending it ───────────────────────────────────────────────────────────────────────────────

    async def stop(self) -> None:
        """Stop the node, whoever started it, and wait until nothing of it is left."""
        await self._end(self._node.stop)

    async def close(self) -> None:
        """Cancel what runs, and let go of the node without stopping it."""
        await self._end(self._node.close)

    async def _end(self, end: Callable[[], None]) -> None:
        self._own_threads()
        self._is_closed = True
        for feed in list(self._open):
            feed.leave()
        await asyncio.shield(asyncio.to_thread(self._end_on_thread, end))

    def _end_on_thread(self, end: Callable[[], None]) -> None:
        """Nobody may be inside a call when the connection is closed."""
        self._streams.shutdown(cancel_futures=True)
        self._questions.shutdown(cancel_futures=True)
        self._cancels.shutdown()
        end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await (self.stop() if self._node.is_own else self.close())


class Opening:
    """A node that is being started or attached to: await it, or use it in an ``async with``."""

    def __init__(self, open_node: Callable[[], Node]) -> None:
        self._open_node = open_node
        self._node: AsyncNode | None = None

    def __await__(self) -> Generator[Any, None, AsyncNode]:
        return self._opened().__await__()

    async def _opened(self) -> AsyncNode:
        return AsyncNode(await asyncio.to_thread(self._open_node))

    async def __aenter__(self) -> AsyncNode:
        self._node = await self
        return self._node

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._node is not None:
            await self._node.__aexit__(kind, error, trace)


async def _whole(model: str, events: AsyncStream) -> Completion:
    async with events:
        async for event in events:
            if isinstance(event, CompletionEvent):
                return event.completion
    raise errors.NoReply(f"model {model!r} ended the stream without a result")
