"""Anthropic's messages: events or one object out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from runtime.client.results import (
    Completion,
    CompletionEvent,
    Event,
    PrefillEvent,
    SpanEvent,
    TokenEvent,
    ToolCallEvent,
)
from runtime.gateway.wire import report, sse
from runtime.gateway.wire.anthropic import Asked
from runtime.gateway.wire.anthropic_blocks import Blocks, signature_text
from runtime.gateway.wire.anthropic_errors import error_object
from runtime.gateway.wire.bodies import encode
from runtime.gateway.wire.diagnose import Parts, compare
from runtime.gateway.wire.failure import Failure
from runtime.gateway.wire.wanted import Answer, Head, Wanted

PING: Final = sse.named(b"ping", b'{"type":"ping"}')
STOP: Final = sse.named(b"message_stop", b'{"type":"message_stop"}')
NOT_JSON: Final = "INVALID_JSON"
"""The key under which arguments stand that are no JSON object."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why a request could not use all that an earlier one has left, in Anthropic's words."""

    kind: str | None = None
    """``…_changed``, ``settings``, ``previous_message_not_found``; None: it continues that one."""
    n_earlier: int | None = None
    """Tokens of the earlier prompt."""

    def value(self, n_reused: int | None) -> dict[str, Any] | None:
        """``diagnostics`` of an answer; ``n_reused``: prompt tokens, None while not known."""
        if self.kind is None:
            return None
        if self.kind == "previous_message_not_found":
            return {"cache_miss_reason": {"type": self.kind}}
        if n_reused is None:
            return {"cache_miss_reason": None}  # not known yet, as Anthropic has it
        n_missed = None if self.n_earlier is None else max(0, self.n_earlier - n_reused)
        if n_missed is None:
            return {"cache_miss_reason": {"type": "unavailable"}}
        if self.kind == "settings":
            # Anthropic has no word for it; where all was reused, it did no harm.
            return {"cache_miss_reason": {"type": "unavailable"}} if n_missed else None
        reason = {"type": self.kind, "cache_missed_input_tokens": n_missed}
        return {"cache_miss_reason": reason}


def diagnosis(earlier: Parts | None, later: Parts) -> Diagnosis:
    """Compare a request with an earlier one; None: that one is not known here."""
    if earlier is None:
        return Diagnosis("previous_message_not_found")
    change = compare(earlier, later)
    if change is None:
        return Diagnosis()
    kind = change.kind if change.kind == "settings" else f"{change.kind}_changed"
    return Diagnosis(kind, earlier.n_tokens)


class MessagesAnswer(Answer):
    """The answer to one request for a message; see ``wanted.Answer``."""

    content_type = sse.CONTENT_TYPE

    def __init__(
        self, head: Head, wanted: Wanted, asked: Asked, found: Diagnosis | None = None
    ) -> None:
        self.id = message_id(head)
        self.n_prompt: int | None = None
        """Tokens of the prompt, when they are known."""
        self._head = head
        self._wanted = wanted
        self._asked = asked
        self._diagnosis = found or Diagnosis()
        self._has_begun = False
        self._blocks = Blocks()

    # ── a stream ────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> bytes:
        return b""  # the first event has the size of the prompt

    def event(self, number: int, event: Event) -> bytes:  # noqa: ARG002 - there is one reply
        match event:
            case PrefillEvent(total=total, reused=reused):
                return self._start(total, reused)
            case TokenEvent(kind="text" | "thinking" as kind, text=text):
                return self._start() + self._blocks.text(kind, text)
            case ToolCallEvent():
                return self._start() + self._blocks.call(event)
            case SpanEvent():
                return self._start() + self._blocks.span(event)
            case CompletionEvent(done):
                self.n_prompt = done.usage.prompt_tokens
                start = self._start(done.usage.prompt_tokens, done.usage.cached_tokens)
                return start + self._blocks.close() + self._finish(done)
            case _:
                return b""

    def end(self) -> bytes:
        return STOP

    def failed(self, failure: Failure) -> bytes:
        return sse.named(b"error", encode(error_object(failure)))

    def keepalive(self) -> bytes:
        return PING if self._has_begun else sse.COMMENT

    def _start(self, n_prompt: int | None = None, n_cached: int | None = None) -> bytes:
        """The message begins, once; without counts where a token came before the prompt's size."""
        if self._has_begun:
            return b""
        self._has_begun = True
        message = {
            **self._message([], None, None),
            "usage": self._usage(n_prompt or 0, n_cached or 0, 0),
            "diagnostics": self._diagnosis.value(n_cached),
        }
        return sse.named(b"message_start", encode({"type": "message_start", "message": message}))

    def _finish(self, done: Completion) -> bytes:
        delta = {
            "stop_reason": stop_reason_of(done),
            "stop_sequence": done.stop_sequence,
            "stop_details": None,
            "container": None,
        }
        event = {"type": "message_delta", "delta": delta, "usage": self._whole_usage(done)}
        return sse.named(b"message_delta", encode(event))

    # ── one object ──────────────────────────────────────────────────────────────────────────────

    def whole(self, done: Sequence[Completion]) -> bytes:
        one = done[0]
        self.n_prompt = one.usage.prompt_tokens
        message = {
            **self._message(content_of(one), stop_reason_of(one), one.stop_sequence),
            "usage": self._whole_usage(one),
            "diagnostics": self._diagnosis.value(one.usage.cached_tokens),
        }
        return encode(message)

    def _message(
        self, content: list[dict[str, Any]], reason: str | None, stop: str | None
    ) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self._head.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop,
            "stop_details": None,
            "container": None,
        }

    def _whole_usage(self, done: Completion) -> dict[str, Any]:
        counts = done.usage
        usage = self._usage(counts.prompt_tokens, counts.cached_tokens, counts.completion_tokens)
        usage["output_tokens_details"] = {"thinking_tokens": report.n_reasoning(done)}
        if self._head.explains:
            usage["cache"] = report.cache(done, self._wanted.remarks, self._wanted.rules)
        return usage

    def _usage(self, n_prompt: int, n_cached: int, n_output: int) -> dict[str, Any]:
        """Counts, of which the first three together are the prompt's."""
        mark = self._asked.breakpoint
        n_created = 0 if mark is None else max(0, mark.n_tokens(n_prompt) - n_cached)
        is_long = mark is not None and mark.is_long
        return {
            "input_tokens": n_prompt - n_cached - n_created,
            "cache_creation_input_tokens": n_created,
            "cache_read_input_tokens": n_cached,
            "cache_creation": {
                "ephemeral_5m_input_tokens": 0 if is_long else n_created,
                "ephemeral_1h_input_tokens": n_created if is_long else 0,
            },
            "output_tokens": n_output,
            "server_tool_use": None,
            "service_tier": "standard",
            "inference_geo": None,
        }


def message_id(head: Head) -> str:
    """The id of an answer."""
    return f"msg_{head.id}"


def stop_reason_of(done: Completion) -> str:
    """Why a reply ended, in Anthropic's words."""
    if done.finish_reason in ("length", "prefilled"):
        return "model_context_window_exceeded" if done.limit == "context" else "max_tokens"
    if done.stop_sequence is not None:
        return "stop_sequence"
    return "tool_use" if any(call.name for call in done.tool_calls) else "end_turn"


def content_of(done: Completion) -> list[dict[str, Any]]:
    """The blocks of a reply: thoughts, text, calls. A blank one is none."""
    blocks: list[dict[str, Any]] = [
        {
            "type": "thinking",
            "thinking": span.text,
            "signature": signature_text(span.signature),
        }
        for span in done.spans
        if span.kind == "thinking" and span.text.strip()
    ]
    calls = done.tool_calls
    text = done.text + "".join(one.text for one in calls if not one.name)
    if text.strip():
        # No `citations`: there are none, and the AI SDK refuses null.
        blocks.append({"type": "text", "text": text})
    return blocks + [
        {"type": "tool_use", "id": one.id, "name": one.name, "input": _input(one.arguments)}
        for one in calls
        if one.name
    ]


def _input(arguments: str) -> object:
    """Arguments as the model wrote them, if they are an object."""
    try:
        if isinstance(msgspec.json.decode(arguments or "{}"), dict):
            return msgspec.Raw((arguments or "{}").encode())
    except (msgspec.DecodeError, RecursionError):
        pass
    return {NOT_JSON: arguments}
