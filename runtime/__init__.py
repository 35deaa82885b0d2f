"""llama-actors: llama.cpp as a supervised tree of actors that keeps prompts warm.

>>> from runtime import Node
>>> with Node.start() as node:                                              # doctest: +SKIP
...     print(node.complete("demo", "Once upon a time", max_tokens=40).text)

``AsyncNode`` is the same on an event loop. Options of requests are keywords, or one
``RequestOptions``. Every error is a ``LlamaActorsError``; see ``runtime.errors``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from runtime import _shadows  # isort: skip # noqa: F401  # first: it looks at all that follows
from runtime.errors import LlamaActorsError

if TYPE_CHECKING:
    from runtime.client.answers import (
        ChatPrompt,
        Embeddings,
        Ranked,
        Ranking,
        Verdict,
        VramInfo,
        WarmPrefix,
    )
    from runtime.client.async_client import AsyncClient
    from runtime.client.async_stream import AsyncStream
    from runtime.client.client import Client
    from runtime.client.options import ChatOptions, LoadOptions, RequestOptions
    from runtime.client.results import (
        Completion,
        CompletionEvent,
        Event,
        LoadEvent,
        ModelStatus,
        PrefillEvent,
        QueuedEvent,
        ResumedEvent,
        SpanEvent,
        TokenEvent,
        ToolCall,
        ToolCallEvent,
    )
    from runtime.client.stream import CompletionStream
    from runtime.client.tree import TreeNode
    from runtime.node import AsyncNode, Node
    from runtime.settings.config import ModelConfig, RuntimeConfig

__all__ = [
    "AsyncClient",
    "AsyncNode",
    "AsyncStream",
    "ChatOptions",
    "ChatPrompt",
    "Client",
    "Completion",
    "CompletionEvent",
    "CompletionStream",
    "Embeddings",
    "Event",
    "LlamaActorsError",
    "LoadEvent",
    "LoadOptions",
    "ModelConfig",
    "ModelStatus",
    "Node",
    "PrefillEvent",
    "QueuedEvent",
    "Ranked",
    "Ranking",
    "RequestOptions",
    "ResumedEvent",
    "RuntimeConfig",
    "SpanEvent",
    "TokenEvent",
    "ToolCall",
    "ToolCallEvent",
    "TreeNode",
    "Verdict",
    "VramInfo",
    "WarmPrefix",
]

_HOMES: Final = {
    name: module
    for module, names in {
        "runtime.client.answers": (
            "ChatPrompt",
            "Embeddings",
            "Ranked",
            "Ranking",
            "Verdict",
            "VramInfo",
            "WarmPrefix",
        ),
        "runtime.settings.config": ("ModelConfig", "RuntimeConfig"),
        "runtime.client.async_client": ("AsyncClient",),
        "runtime.client.async_stream": ("AsyncStream",),
        "runtime.client.client": ("Client",),
        "runtime.client.options": ("ChatOptions", "LoadOptions", "RequestOptions"),
        "runtime.node": ("AsyncNode", "Node"),
        "runtime.client.results": (
            "Completion",
            "CompletionEvent",
            "Event",
            "LoadEvent",
            "ModelStatus",
            "PrefillEvent",
            "QueuedEvent",
            "ResumedEvent",
            "SpanEvent",
            "TokenEvent",
            "ToolCall",
            "ToolCallEvent",
        ),
        "runtime.client.stream": ("CompletionStream",),
        "runtime.client.tree": ("TreeNode",),
    }.items()
    for name in names
}
"""Where each public name is defined."""


if not TYPE_CHECKING:  # a checker reads the imports above, and refuses other names

    def __getattr__(name: str) -> Any:
        """A public name, when it is first used: a command imports only what it uses."""
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(home), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
