"""llama-actors: llama.cpp as a supervised tree of actors that keeps prompts warm.

>>> from runtime import Node
>>> with Node.start() as node:                                              # doctest: +SKIP
...     print(node.complete("demo", "Once upon a time", max_tokens=40).text)
"""

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
from runtime.tree_view import TreeNode

__all__ = [
    "Completion",
    "CompletionEvent",
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
]
