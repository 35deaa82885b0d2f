"""Ollama's replies: bodies of ``/api/chat`` and ``/api/generate`` in, lines or one object out."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from runtime.client.results import (
    Completion,
    CompletionEvent,
    Event,
    TokenEvent,
    ToolCall,
    ToolCallEvent,
)
from runtime.gateway.wire import ndjson
from runtime.gateway.wire.bodies import encode, read
from runtime.gateway.wire.failure import Failure, invalid
from runtime.gateway.wire.ollama_bodies import (
    ReplyBody,
    keep_alive_s,
    options_of,
    shown_name,
    thinking_of,
)
from runtime.gateway.wire.ollama_errors import error_object
from runtime.gateway.wire.openai_answer import FINISH, explained
from runtime.gateway.wire.tokens import chat_logprobs
from runtime.gateway.wire.wanted import Answer, Head, Kind, Wanted

Form = Literal["chat", "generate"]
NO_IMAGES: Final = "this node reads text only; leave the images out"


class ChatBody(ReplyBody, kw_only=True):
    """The body of ``POST /api/chat``."""

    messages: list[dict[str, Any]] | None = None
    """None: the model is only loaded, or unloaded."""
    tools: list[dict[str, Any]] | None = None


class GenerateBody(ReplyBody, kw_only=True):
    """The body of ``POST /api/generate``."""

    prompt: str | None = None
    """None and no ``suffix``: the model is only loaded, or unloaded."""
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[Any] | None = None
    raw: bool | None = None
    images: list[Any] | None = None


def read_chat(body: bytes, defaults: Mapping[str, float]) -> tuple[Wanted | None, ChatBody]:
    """What a body asks for, None where it asks for no reply; Refused names the wrong field."""
    asked = read(body, ChatBody)
    keep_alive_s(asked.keep_alive)
    if not asked.messages:
        return None, asked
    messages = [_message(at, one) for at, one in enumerate(asked.messages)]
    options = options_of(asked, defaults) | thinking_of(asked.think)
    if asked.tools:
        options["tools"] = asked.tools
    last = messages[-1]
    if last.get("role") == "assistant" and last["content"] and not last.get("tool_calls"):
        options["continue_final_message"] = True
    options["thinking"] = "auto"
    return _wanted(asked, "chat", messages, options), asked


def _message(at: int, given: dict[str, Any]) -> dict[str, Any]:
    """A message without what Ollama's clients write and no template reads."""
    if given.get("images"):
        raise invalid(f"messages[{at}].images: {NO_IMAGES}", f"messages[{at}].images")
    message = {key: value for key, value in given.items() if value is not None}
    message.pop("images", None)
    message.setdefault("content", "")
    calls = message.pop("tool_calls", None)
    if calls:
        message["tool_calls"] = [_call(one) for one in calls] if isinstance(calls, list) else calls
    return message


def _call(given: Any) -> Any:
    function = given.get("function") if isinstance(given, dict) else None
    if not isinstance(function, dict):
        return given  # the runtime names what is wrong with it
    return {**given, "function": {key: one for key, one in function.items() if key != "index"}}


def read_generate(body: bytes, defaults: Mapping[str, float]) -> tuple[Wanted | None, GenerateBody]:
    """What a body asks for, None where it asks for no reply; Refused names the wrong field."""
    asked = read(body, GenerateBody)
    keep_alive_s(asked.keep_alive)
    if asked.images:
        raise invalid(f"images: {NO_IMAGES}", "images")
    if asked.raw and (asked.template or asked.system or asked.context):
        raise invalid("raw mode does not support template, system, or context", "raw")
    if asked.template:
        raise invalid(
            "template: replies use the template that the model was loaded with; leave it out, or "
            "send a finished prompt with raw: true",
            "template",
        )
    if asked.context:
        raise invalid(
            "context: this node keeps no conversation for a list of tokens; send the messages to "
            "/api/chat instead, what they have in common with earlier ones is reused",
            "context",
        )
    if not asked.prompt and not asked.suffix:
        return None, asked
    options = options_of(asked, defaults)
    if asked.suffix:
        parts = {"prefix": asked.prompt or "", "suffix": asked.suffix}
        return _wanted(asked, "infill", parts, options), asked
    if asked.raw:
        return _wanted(asked, "prompt", asked.prompt, options), asked
    messages = [{"role": "system", "content": asked.system}] if asked.system else []
    messages.append({"role": "user", "content": asked.prompt or ""})
    options |= {**thinking_of(asked.think), "thinking": "auto"}
    return _wanted(asked, "chat", messages, options), asked


def _wanted(asked: ReplyBody, kind: Kind, given: Any, options: Mapping[str, Any]) -> Wanted:
    return Wanted(
        model=asked.model or "",
        kind=kind,
        inputs=(given,),
        options=options,
        is_stream=asked.is_stream,
        needs_pieces="n_logprobs" in options,
    )


class OllamaAnswer(Answer):
    """The answer to one chat or one prompt; see ``wanted.Answer``."""

    content_type = ndjson.CONTENT_TYPE

    def __init__(self, head: Head, asked: ReplyBody, wanted: Wanted, form: Form) -> None:
        self._head = head
        self._wanted = wanted
        self._form = form
        self._facts = facts(shown_name(asked.model, head.model), head.created)
        self._calls: dict[int, _Call] = {}

    # ── a stream ────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> bytes:
        return b""

    def event(self, number: int, event: Event) -> bytes:  # noqa: ARG002  # there is one reply
        match event:
            case TokenEvent():
                return self._tokens(event)
            case ToolCallEvent():
                return self._call(event)
            case CompletionEvent(done):
                return self._end(done)
            case _:
                return b""

    def end(self) -> bytes:
        return b""

    def failed(self, failure: Failure) -> bytes:
        return ndjson.line(error_object(failure))

    def keepalive(self) -> bytes:
        return self._line(self._part())

    def _line(self, part: Mapping[str, Any]) -> bytes:
        return ndjson.line({**self._facts, **part, "done": False})

    def _part(
        self, text: str = "", thinking: str = "", calls: Sequence[Mapping[str, Any]] = ()
    ) -> dict[str, Any]:
        return part_of(self._form, text, thinking, calls)

    def _tokens(self, event: TokenEvent) -> bytes:
        text = event.text if event.kind == "text" else ""
        thinking = event.text if event.kind == "thinking" else ""
        if not (text or thinking or event.logprobs):
            return b""
        part = self._part(text, thinking)
        if event.logprobs:
            part["logprobs"] = chat_logprobs(event.tokens, event.logprobs, self._head.pieces)
        return self._line(part)

    def _call(self, event: ToolCallEvent) -> bytes:
        """A call is shown when it is whole."""
        call = self._calls.setdefault(event.index, _Call(event.id, event.name))
        call.arguments += event.arguments
        if not event.is_end or (shown := call.shown(event.index)) is None:
            return b""
        call.is_shown = True
        return self._line(self._part(calls=[shown]))

    def _end(self, done: Completion) -> bytes:
        calls, unread = split_calls(done.tool_calls)
        shown = {index for index, call in self._calls.items() if call.is_shown}
        left = [value for index, value in calls if index not in shown]
        rest = self._line(self._part(unread, calls=left)) if left or unread else b""
        return rest + ndjson.line({**self._facts, **self._part(), **self._finish(done)})

    # ── one object ──────────────────────────────────────────────────────────────────────────────

    def whole(self, done: Sequence[Completion]) -> bytes:
        one = done[0]
        calls, unread = split_calls(one.tool_calls)
        part = self._part(one.text + unread, one.thinking, [value for _, value in calls])
        if one.logprobs is not None and self._wanted.needs_pieces:
            part["logprobs"] = chat_logprobs(one.tokens, one.logprobs, self._head.pieces)
        return encode({**self._facts, **part, **self._finish(one)})

    def _finish(self, done: Completion) -> dict[str, Any]:
        reason = FINISH.get(done.finish_reason, "stop")
        return {
            "done": True,
            "done_reason": reason,
            **counts(done),
            **explained(self._head, self._wanted, done),
        }


class _Call:
    """A tool call of which parts have come."""

    def __init__(self, call_id: str, name: str) -> None:
        self.id = call_id
        self.name = name
        self.arguments = ""
        self.is_shown = False

    def shown(self, index: int) -> dict[str, Any] | None:
        return call_object(index, self.id, self.name, self.arguments)


def facts(name: str, created: int) -> dict[str, Any]:
    """How every object of an answer begins; ``created``: Unix time in seconds."""
    return {"model": name, "created_at": time_text(created)}


def time_text(seconds: int) -> str:
    """Unix time as RFC 3339."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()[:19] + "Z"


def part_of(
    form: Form, text: str = "", thinking: str = "", calls: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """A part of a reply; an empty text is there, thinking and calls only where there are any."""
    more: dict[str, Any] = {"thinking": thinking} if thinking else {}
    if calls:
        more["tool_calls"] = list(calls)
    if form == "chat":
        return {"message": {"role": "assistant", "content": text, **more}}
    return {"response": text, **more}


def split_calls(calls: Iterable[ToolCall]) -> tuple[list[tuple[int, dict[str, Any]]], str]:
    """Calls as values, with their numbers; and the text of those that are none.

    A call is none where the reply ended inside it, or markers alone separated it.
    """
    found: list[tuple[int, dict[str, Any]]] = []
    unread = ""
    for index, one in enumerate(calls):
        value = call_object(index, one.id, one.name, one.arguments) if one.is_closed else None
        if value is None:
            unread += one.text
        else:
            found.append((index, value))
    return found, unread


def call_object(index: int, call_id: str, name: str, arguments: str) -> dict[str, Any] | None:
    """A tool call, its arguments as an object; None where they are none."""
    try:
        plain = msgspec.json.decode(arguments) if name else None
    except msgspec.DecodeError:
        plain = None
    if not isinstance(plain, dict):
        return None
    # As the model wrote them, but in one line: a line of the stream ends at a line break.
    raw = msgspec.Raw(msgspec.json.format(arguments.encode(), indent=-1))
    return {"id": call_id, "function": {"index": index, "name": name, "arguments": raw}}


def counts(done: Completion) -> dict[str, Any]:
    """Tokens and nanoseconds. All prompt tokens count; how many were not computed is beside."""
    took, usage = done.timings, done.usage
    load = took.queue_ms + done.cache.lookup_ms + done.cache.restore_ms
    return {
        "total_duration": _ns(load + took.prefill_ms + took.decode_ms + took.aside_ms),
        "load_duration": _ns(load),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_cached_count": usage.cached_tokens,
        "prompt_eval_duration": _ns(took.prefill_ms),
        "eval_count": usage.completion_tokens,
        "eval_duration": _ns(took.decode_ms),
    }


def _ns(milliseconds: float) -> int:
    """Never 0: clients divide by it."""
    return max(1, round(milliseconds * 1e6))


def command_json(form: Form, name: str, created: int, reason: Literal["load", "unload"]) -> bytes:
    """The answer to a request that loads or unloads a model."""
    end = {"done": True, "done_reason": reason}
    return encode({**facts(name, created), **part_of(form), **end})
