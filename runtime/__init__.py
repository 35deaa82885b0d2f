"""llama-actors: llama.cpp as a supervised tree of actors that keeps prompts warm.

>>> from runtime import Node
>>> with Node.start() as node:                                              # doctest: +SKIP
...     print(node.complete("demo", "Once upon a time", max_tokens=40).text)

``AsyncNode`` is the same on an event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime import _shadows  # isort: skip # noqa: F401  # first: it looks at all that follows
from runtime.answers import ChatPrompt, Embeddings, Verdict, VramInfo, WarmPrefix
from runtime.config import ModelConfig, RuntimeConfig
from runtime.errors import LlamaActorsError
from runtime.node import Node
from runtime.results import (
    Completion,
    CompletionEvent,
    Event,
    ModelStatus,
    PrefillEvent,
    ResumedEvent,
    SpanEvent,
    TokenEvent,
)
from runtime.stream import CompletionStream
from runtime.tree_view import TreeNode

if TYPE_CHECKING:
    from runtime.aio import AsyncNode
    from runtime.aio_stream import AsyncStream

__all__ = [
    "AsyncNode",
    "AsyncStream",
    "ChatPrompt",
    "Completion",
    "CompletionEvent",
    "CompletionStream",
    "Embeddings",
    "Event",
    "LlamaActorsError",
    "ModelConfig",
    "ModelStatus",
    "Node",
    "PrefillEvent",
    "ResumedEvent",
    "RuntimeConfig",
    "SpanEvent",
    "TokenEvent",
    "TreeNode",
    "Verdict",
    "VramInfo",
    "WarmPrefix",
]


def __getattr__(name: str) -> Any:
    """The asyncio half on demand: importing asyncio takes longer than all the rest."""
    if name == "AsyncNode":
        from runtime.aio import AsyncNode

        return AsyncNode
    if name == "AsyncStream":
        from runtime.aio_stream import AsyncStream

        return AsyncStream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
