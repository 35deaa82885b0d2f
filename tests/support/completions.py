"""Finished replies as values, for tests of what is made of them."""

from __future__ import annotations

from typing import Any

from actors.messages import CacheReport, Divergence, HitKind, Timings, Usage
from cache.answers import Miss, MissReason
from runtime.client.results import Completion, SpanEvent, ToolCallEvent


def thought(text: str, signature: bytes = b"signed") -> SpanEvent:
    """A thought that has ended."""
    body = text.encode()
    return SpanEvent("thinking", b"<think>" + body + b"</think>", body, (1, 2), True, signature)


def call_span(text: str) -> SpanEvent:
    """A tool call that has ended."""
    return SpanEvent("tool_call", text.encode(), text.encode(), (3,), True, b"")


def completion(text: str = "", **fields: Any) -> Completion:
    """A reply of 5 tokens to a prompt of 20, of which 12 were cached."""
    calls: tuple[ToolCallEvent, ...] = fields.get("calls", ())
    usual: dict[str, Any] = {
        "tokens": (1, 2, 3, 4, 5),
        "finish_reason": "stop",
        "finish_key": None,
        "stop_sequence": None,
        "usage": Usage(20, 12, 5),
        "cache": CacheReport(HitKind.PARTIAL, "live", 0.0, None),
        "timings": Timings(1.0, 2.0, 3.0, 4.0, 5.0),
        "spans": tuple(call_span(one.arguments) for one in calls),
    }
    return Completion(text=text, **(usual | fields))


def diverged(n_prompt: int = 12, n_cached: int = 5, n_generated: int = 3) -> Completion:
    """A reply to a prompt that was warm from RAM until its fifth message differed."""
    return completion(
        "a secret",
        tokens=tuple(range(n_generated)),
        usage=Usage(n_prompt, n_cached, n_generated),
        cache=CacheReport(
            HitKind.PARTIAL, "ram", 2.0, Miss(MissReason.DIVERGES, at=5), lookup_ms=0.5,
            diverged=Divergence("messages[4].content", 3, 3, 5, None, None),
        ),
        timings=Timings(4.0, 30.0, 20.0, 100.0, 30.0),
    )  # fmt: skip
