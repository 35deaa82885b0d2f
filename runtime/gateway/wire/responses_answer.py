"""The answer of OpenAI's Responses API: events of a reply in, numbered frames or one object out.

At most one item of the output is open at a time. Its id is made of the answer's id and its place,
so the same events make the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

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
from runtime.gateway.wire.bodies import encode, text_json
from runtime.gateway.wire.failure import Failure, Fault
from runtime.gateway.wire.openai_responses import ResponseBody
from runtime.gateway.wire.responses_diagnosis import Compared, diagnosis
from runtime.gateway.wire.responses_items import Item, item_id, text_part
from runtime.gateway.wire.tokens import chat_logprobs
from runtime.gateway.wire.wanted import Head, Wanted

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
Kind = Literal["reasoning", "message", "function_call"]
Frames = list[bytes]
"""One for each event; the first of an answer has the sequence number 0."""

_DELTAS: Final[Mapping[Kind, str]] = {
    "reasoning": "response.reasoning_text",
    "message": "response.output_text",
    "function_call": "response.function_call_arguments",
}
_CODES: Final = {
    Fault.TOO_LONG: "context_length_exceeded",
    Fault.OVERLOADED: "server_is_overloaded",
    Fault.UNAVAILABLE: "server_is_overloaded",
    Fault.RATE: "rate_limit_exceeded",
    # A client that is answered so does not send the same again.
    Fault.POISONED: "invalid_prompt",
    Fault.INVALID: "invalid_prompt",
    Fault.UNSUPPORTED: "invalid_prompt",
}


@dataclass(slots=True)
class _Open:
    """The item that is being written."""

    kind: Kind
    id: str
    index: int
    name: str = ""
    call_id: str = ""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def item(self, status: str, *, is_empty: bool = False) -> Item:
        """As it is now, or as it began."""
        text = "" if is_empty else "".join(self.pieces)
        found: Item = {"id": self.id, "type": self.kind, "status": status}
        match self.kind:
            case "reasoning":
                content = [] if is_empty else [{"type": "reasoning_text", "text": text}]
                return {**found, "summary": [], "content": content, "encrypted_content": None}
            case "message":
                parts = [] if is_empty else [text_part(text, self.logprobs)]
                return {**found, "role": "assistant", "content": parts}
            case "function_call":
                return {**found, "call_id": self.call_id, "name": self.name, "arguments": text}


class ResponseAnswer:
    """One response. ``begin``, then ``event`` of each, then ``end`` or ``failed``."""

    def __init__(
        self, head: Head, asked: ResponseBody, wanted: Wanted, found: Compared | None = None
    ) -> None:
        """``found``: what it has in common with the response that it is compared with."""
        self.id = f"resp_{head.id}"
        self.status: Status = "queued" if asked.background else "in_progress"
        self.is_stored = asked.is_stored
        self.output: list[Item] = []
        """Items that are complete."""
        self._head = head
        self._asked = asked
        self._wanted = wanted
        self._compared = found
        self._facts = facts_of(head, asked, wanted)
        self._n_frames = 0
        self._open: _Open | None = None
        self._unshown: list[dict[str, Any]] = []
        """Log-probabilities of tokens whose text has not come yet."""
        self._n_calls = 0
        self._n_spans = 0
        self._done: Completion | None = None
        self._failure: Failure | None = None

    # ── the object ──────────────────────────────────────────────────────────────────────────────

    def response(self) -> dict[str, Any]:
        """The response as it is now."""
        done, failure = self._done, self._failure
        output = [*self.output, *([self._open.item("in_progress")] if self._open else ())]
        is_cut = self.status == "incomplete"
        found = {
            **self._facts,
            "status": self.status,
            "error": None if failure is None else error_of(failure),
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": output,
            "usage": None if done is None else self._usage(done),
        }
        if self._compared is not None and self.status not in ("queued", "in_progress"):
            found["prompt_cache_diagnostics"] = diagnosis(self._compared, done)
        return found

    def _usage(self, done: Completion) -> dict[str, Any]:
        usage, head, wanted = done.usage, self._head, self._wanted
        details: dict[str, Any] = {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.prompt_tokens - usage.cached_tokens,
        }
        if head.explains:
            details["cache"] = report.cache(done, wanted.remarks, wanted.rules)
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": details,
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": report.n_reasoning(done)},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }

    # ── frames ──────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> Frames:
        """The first frames."""
        created = self._state("response.created")
        self.status = "in_progress"
        return [created, self._state("response.in_progress")]

    def event(self, event: Event) -> Frames:
        """What is shown of an event; may be nothing."""
        match event:
            case TokenEvent(kind="text"):
                return self._text(event)
            case TokenEvent(kind="thinking", text=text) if text:
                return [*self._need("reasoning"), self._delta(text)]
            case ToolCallEvent():
                return self._call(event)
            case SpanEvent():
                return self._span(event)
            case PrefillEvent() if self._asked.return_progress:
                facts = {"total": event.total, "cache": event.reused, "processed": event.done}
                return [self._state("response.in_progress", prompt_progress=facts)]
            case CompletionEvent(done):
                return self._finish(done)
            case _:
                return []

    def end(self) -> Frames:
        """The last frame, after the reply has ended."""
        kind = "completed" if self.status == "completed" else "incomplete"
        return [self._state(f"response.{kind}")]

    def failed(self, failure: Failure) -> Frames:
        """The last frames of a reply that fails."""
        frames = self._close("incomplete")
        self._failure, self.status = failure, "failed"
        return [*frames, self._state("response.failed")]

    def cancelled(self) -> Frames:
        """The last frames of a reply of which nothing more is read."""
        frames = self._close("incomplete")
        self.status = "cancelled"
        return [*frames, *self.end()]

    def _state(self, kind: str, **more: Any) -> bytes:
        return self._frame(kind, response=self.response(), **more)

    def _frame(self, kind: str, **facts: Any) -> bytes:
        number = self._n_frames
        self._n_frames += 1
        body = encode({"type": kind, "sequence_number": number, **facts})
        return sse.named(kind.encode(), body, number)

    # ── items ───────────────────────────────────────────────────────────────────────────────────

    def _text(self, event: TokenEvent) -> Frames:
        if event.logprobs:
            self._unshown += chat_logprobs(event.tokens, event.logprobs, self._head.pieces)
        if not event.text:
            return []
        unshown = self._unshown
        frames = self._need("message")
        self._unshown = []
        return [*frames, self._delta(event.text, unshown)]

    def _call(self, event: ToolCallEvent) -> Frames:
        frames: Frames = []
        if event.index >= self._n_calls:
            self._n_calls = event.index + 1
            frames = self._start("function_call", event.name, event.id)
        if self._open is None or self._open.call_id != event.id:
            return frames
        if event.arguments:
            frames.append(self._delta(event.arguments))
        return [*frames, *self._close("completed")] if event.is_end else frames

    def _span(self, event: SpanEvent) -> Frames:
        if event.kind == "thinking":
            is_open = self._open is not None and self._open.kind == "reasoning"
            return self._close("completed" if event.is_closed else "incomplete") if is_open else []
        self._n_spans += 1
        if self._n_spans <= self._n_calls:
            return []
        # Separated by markers alone: there is no value, so it is shown as text.
        return [*self._need("message"), self._delta(event.text)]

    def _need(self, kind: Kind) -> Frames:
        """Have an item of this kind open."""
        return [] if self._open and self._open.kind == kind else self._start(kind)

    def _start(self, kind: Kind, name: str = "", call_id: str = "") -> Frames:
        frames = self._close("completed")
        self._unshown = []
        index = len(self.output)
        one = self._open = _Open(kind, item_id(kind, self._head.id, index), index, name, call_id)
        item = one.item("in_progress", is_empty=True)
        frames.append(self._frame("response.output_item.added", output_index=index, item=item))
        if kind == "message":
            frames.append(
                self._frame("response.content_part.added", **_place(one), part=text_part(""))
            )
        return frames

    def _delta(self, text: str, logprobs: list[dict[str, Any]] | None = None) -> bytes:
        one = self._open
        if one is None:
            raise ValueError("no item is open")
        one.pieces.append(text)
        kind, number = f"{_DELTAS[one.kind]}.delta".encode(), self._n_frames
        self._n_frames += 1
        rest = b""
        if one.kind == "message":
            one.logprobs += logprobs or ()
            rest = b',"logprobs":' + encode(logprobs or [])
        place = encode(_place(one))[1:-1]
        return sse.named(
            kind,
            b'{"type":"%b","sequence_number":%d,%b,"delta":%b%b}'
            % (kind, number, place, text_json(text), rest),
            number,
        )

    def _close(self, status: str) -> Frames:
        """The item that is open is complete."""
        one, self._open = self._open, None
        if one is None:
            return []
        if one.kind == "message":
            one.logprobs += self._unshown
        text, item = "".join(one.pieces), one.item(status)
        self.output.append(item)
        facts: dict[str, Any] = {"text": text}
        if one.kind == "message":
            facts["logprobs"] = one.logprobs
        elif one.kind == "function_call":
            facts = {"name": one.name, "arguments": text}
        frames = [self._frame(f"{_DELTAS[one.kind]}.done", **_place(one), **facts)]
        if one.kind == "message":
            part = item["content"][0]
            frames.append(self._frame("response.content_part.done", **_place(one), part=part))
        done = self._frame("response.output_item.done", output_index=one.index, item=item)
        return [*frames, done]

    def _finish(self, done: Completion) -> Frames:
        self._done = done
        is_whole = done.finish_reason == "stop"
        kinds = {one["type"] for one in self.output} | ({self._open.kind} if self._open else set())
        # An empty reply is a reply.
        frames = self._need("message") if is_whole and kinds <= {"reasoning"} else []
        frames += self._close("completed" if is_whole else "incomplete")
        if is_whole or (done.finish_reason == "prefilled" and self._asked.is_prewarm):
            self.status = "completed"
        else:
            self.status = "cancelled" if done.finish_reason == "cancelled" else "incomplete"
        return frames


def _place(one: _Open) -> dict[str, Any]:
    place: dict[str, Any] = {"item_id": one.id, "output_index": one.index}
    return place if one.kind == "function_call" else {**place, "content_index": 0}


def error_of(failure: Failure) -> dict[str, Any]:
    """``error`` of a failed response."""
    code = failure.code or _CODES.get(failure.fault, "server_error")
    return {"code": code, "message": failure.message}


def facts_of(head: Head, asked: ResponseBody, wanted: Wanted) -> dict[str, Any]:
    """What of a response does not change."""
    text = asked.text
    shown: dict[str, Any] = {"format": (text.format if text else None) or {"type": "text"}}
    if text and text.verbosity:
        shown["verbosity"] = text.verbosity
    reasoning = asked.reasoning
    options = wanted.options
    facts: dict[str, Any] = {
        "id": f"resp_{head.id}",
        "object": "response",
        "created_at": head.created,
        "status": None,
        "model": head.model,
        "error": None,
        "incomplete_details": None,
        "output": [],
        "usage": None,
        "instructions": asked.instructions,
        "previous_response_id": asked.previous_response_id,
        "tools": [_tool(one) for one in asked.tools or ()],
        "tool_choice": "auto" if asked.tool_choice is None else asked.tool_choice,
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "text": shown,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": reasoning.summary if reasoning else None,
        },
        "temperature": options.get("temperature"),
        "top_p": options.get("top_p"),
        "top_logprobs": asked.top_logprobs or 0,
        "max_output_tokens": asked.max_output_tokens,
        "truncation": "disabled",
        "store": asked.is_stored,
        "background": bool(asked.background),
        "service_tier": "default",
        "metadata": asked.metadata or {},
    }
    for name in ("prompt_cache_key", "user", "safety_identifier"):
        if (value := getattr(asked, name)) is not None:
            facts[name] = value
    return facts


def _tool(given: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as it came, with what clients expect of a function."""
    if given.get("type") not in (None, "function"):
        return dict(given)
    return {"type": "function", "description": None, "parameters": None, "strict": None, **given}
