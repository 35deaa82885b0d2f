"""OpenAI's chat completions: bodies in, chunks or one object out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from runtime.client.results import (
    Completion,
    CompletionEvent,
    Event,
    LoadEvent,
    PrefillEvent,
    SpanEvent,
    TokenEvent,
    ToolCallEvent,
)
from runtime.gateway.wire import report, sse
from runtime.gateway.wire.bodies import encode, read, text_json
from runtime.gateway.wire.failure import invalid, unsupported
from runtime.gateway.wire.openai_answer import (
    FINISH,
    OpenAIAnswer,
    StreamOptions,
    n_of,
)
from runtime.gateway.wire.pace import Clock, Pace
from runtime.gateway.wire.progress import Progress, computed, load_report, timed
from runtime.gateway.wire.sampling import Options, max_tokens_of, options_of
from runtime.gateway.wire.tokens import chat_logprobs
from runtime.gateway.wire.usage import usage_of
from runtime.gateway.wire.wanted import Head, Wanted

MAX_N: Final = 8
_CHAT_OPTIONS: Final = (
    "tools", "tool_choice", "parallel_tool_calls", "documents", "chat_template_kwargs",
    "enable_thinking", "reasoning_effort", "continue_final_message", "thinking_budget_tokens",
)  # fmt: skip


_TEMPLATE_OPTIONS: Final = (
    "tools", "documents", "chat_template_kwargs", "enable_thinking", "reasoning_effort",
    "continue_final_message",
)  # fmt: skip


class ChatBody(Options, kw_only=True):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[dict[str, Any]]
    model: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n_predict: int | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    modalities: list[str] | None = None
    web_search_options: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    thinking_budget_tokens: int | None = None
    continue_final_message: bool | str | None = None
    add_generation_prompt: bool | None = None
    return_progress: bool | None = None
    timings_per_token: bool | None = None
    verbose: bool | None = None


def read_chat(body: bytes, defaults: Mapping[str, float]) -> tuple[Wanted, ChatBody]:
    """What a body asks for; Refused names the field that is wrong."""
    asked = read(body, ChatBody)
    if not asked.messages:
        raise invalid("messages is empty; send at least one message", "messages")
    if "audio" in (asked.modalities or ()):
        raise unsupported("modalities: this node generates text only", "modalities")
    if asked.add_generation_prompt and asked.continue_final_message:
        raise invalid(
            "add_generation_prompt and continue_final_message exclude each other; send one",
            "continue_final_message",
        )
    options = options_of(asked, defaults)
    for name in _CHAT_OPTIONS:
        if (value := getattr(asked, name)) is not None:
            options[name] = value
    remarks = _put_functions(asked, options)
    if asked.tools == []:
        options.pop("tools", None)
    if not options.get("tools"):
        # Without tools there is nothing to choose; clients send the choice all the same.
        if _requires(options.get("tool_choice")):
            raise invalid("tool_choice requires a call, and there are no tools", "tool_choice")
        options.pop("tool_choice", None)
        options.pop("parallel_tool_calls", None)
    if asked.web_search_options is not None:
        remarks += ("web_search_options: this node does not search the web",)
    _put_logprobs(asked, options)
    options["max_tokens"] = max_tokens_of(
        asked.max_completion_tokens, asked.max_tokens, asked.n_predict,
        names=("max_completion_tokens", "max_tokens", "n_predict"),
    )  # fmt: skip
    options["thinking"] = "auto"
    return Wanted(
        model=asked.model or "",
        kind="chat",
        inputs=(asked.messages,),
        options=options,
        n=n_of(asked.n, MAX_N),
        is_stream=bool(asked.stream),
        needs_pieces="n_logprobs" in options,
        remarks=remarks,
    ), asked


def template_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that change the prompt, for ``AsyncClient.apply_chat_template``."""
    return {name: options[name] for name in _TEMPLATE_OPTIONS if name in options}


def _requires(choice: object) -> bool:
    return isinstance(choice, dict) or choice in ("required", "any")


def _put_functions(asked: ChatBody, options: dict[str, Any]) -> tuple[str, ...]:
    """``functions`` is what tools were called before."""
    if not asked.functions or asked.tools:
        return ()
    options["tools"] = [{"type": "function", "function": one} for one in asked.functions]
    choice = asked.function_call
    if isinstance(choice, dict):
        options["tool_choice"] = {"type": "function", "function": choice}
    elif choice is not None:
        options["tool_choice"] = choice
    return ("functions: read as tools",)


def _put_logprobs(asked: ChatBody, options: dict[str, Any]) -> None:
    wanted, top = asked.logprobs, asked.top_logprobs
    if wanted is False and top:
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    if wanted is None or wanted is False:
        if top:
            options["n_logprobs"] = top
        return
    options["n_logprobs"] = (top or 0) if wanted is True else wanted


class ChatAnswer(OpenAIAnswer):
    """The answer to one chat completion; see ``wanted.Answer``."""

    id_prefix = "chatcmpl-"
    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def __init__(
        self,
        head: Head,
        asked: ChatBody,
        wanted: Wanted,
        prompt: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        """``prompt``: what the template made, where the answer shows it.

        ``clock``: of the times that a stream shows as it comes; None: it shows none.
        """
        super().__init__(head, wanted, asked.stream_options)
        self._clock = clock if asked.timings_per_token or asked.return_progress else None
        self._shows_times = bool(asked.timings_per_token)
        self._paces: dict[int, Pace] = {}
        self._verbose = {} if prompt is None else {"__verbose": {"prompt": prompt}}
        self._shows_progress = self.shows_load = bool(asked.return_progress)
        self._replies: dict[int, _Reply] = {}
        self._read: dict[int, Progress] = {}
        self._done: list[Completion] = []

    # ── a stream ────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> bytes:
        return self._first(0) if self._wanted.n_replies == 1 else b""

    def event(self, number: int, event: Event) -> bytes:
        if self._clock is not None:
            self._paces.setdefault(number, Pace(self._clock)).note(event)
        if isinstance(event, LoadEvent):
            share = encode(load_report(event))
            return sse.data(self._open + b',"choices":[],"load_progress":' + share + b"}")
        progress = self._progress(number, event)
        if isinstance(event, PrefillEvent):
            return progress
        first = progress + (b"" if number in self._replies else self._first(number))
        reply = self._replies[number]
        match event:
            case TokenEvent():
                return first + self._tokens(number, event)
            case ToolCallEvent():
                return first + self._call(number, reply, event)
            case SpanEvent() if reply.is_unread_call(event):
                # Separated by markers alone: there is no value, so it is shown as text.
                return first + self._delta(number, b'"content":' + text_json(event.text))
            case CompletionEvent(done):
                self._done.append(done)
                return first + self._finish(number, done)
            case _:
                return first

    def end(self) -> bytes:
        usage = b""
        if self._shows_usage:
            usage = self._without_choice(
                usage=usage_of(self._done, self._wanted.n),
                timings=report.timings(self._done[-1]),
            )
        return usage + sse.DONE

    def _chunk(self, number: int, delta: bytes, rest: bytes = b'"finish_reason":null') -> bytes:
        choice = b'{"index":%d,"delta":{%b},%b}' % (number, delta, rest)
        return self._choice(choice, self._times(number))

    def _times(self, number: int, n_read: int | None = None) -> bytes:
        pace = self._paces.get(number)
        if pace is None or not self._shows_times:
            return b""
        return b',"timings":' + encode(pace.timings(n_read))

    def _delta(self, number: int, delta: bytes) -> bytes:
        return self._chunk(number, delta)

    def _first(self, number: int) -> bytes:
        if number in self._replies:
            return b""
        self._replies[number] = _Reply()
        choice = b'{"index":%d,"delta":{"role":"assistant","content":null},"finish_reason":null}'
        return self._choice(choice % number)

    def _progress(self, number: int, event: Event) -> bytes:
        if not self._shows_progress:
            return b""
        reports = self._read.setdefault(number, Progress()).reports(event)
        start = self._open + b',"choices":[],"prompt_progress":'
        pace = self._paces.get(number)
        return b"".join(
            sse.data(start + encode(timed(one, pace)) + self._times(number, computed(one)) + b"}")
            for one in reports
        )

    def _tokens(self, number: int, event: TokenEvent) -> bytes:
        name = {"text": b'"content":', "thinking": b'"reasoning_content":'}.get(event.kind)
        rest = b'"finish_reason":null'
        if event.logprobs:
            content = chat_logprobs(event.tokens, event.logprobs, self._head.pieces)
            rest = b'"logprobs":' + encode({"content": content, "refusal": None}) + b"," + rest
        elif name is None or not event.text:
            return b""
        delta = name + text_json(event.text) if name and event.text else b""
        return self._chunk(number, delta, rest)

    def _call(self, number: int, reply: _Reply, event: ToolCallEvent) -> bytes:
        reply.n_calls = max(reply.n_calls, event.index + 1)
        if event.index in reply.begun:
            if not event.arguments:
                return b""
            call = b'{"index":%d,"function":{"arguments":%b}}' % (
                event.index,
                text_json(event.arguments),
            )
        else:
            reply.begun.add(event.index)
            call = encode({"index": event.index, **call_object(event.id, event.name, "")})
            if event.arguments:
                more = b'{"index":%d,"function":{"arguments":%b}}' % (
                    event.index,
                    text_json(event.arguments),
                )
                return self._delta(number, b'"tool_calls":[' + call + b"]") + self._delta(
                    number, b'"tool_calls":[' + more + b"]"
                )
        return self._delta(number, b'"tool_calls":[' + call + b"]")

    def _finish(self, number: int, done: Completion) -> bytes:
        finish = b'"finish_reason":' + text_json(finish_of(done))
        choice = b'{"index":%d,"delta":{},%b}' % (number, finish)
        return self._last_choice(choice, done, **self._verbose)

    # ── one object ──────────────────────────────────────────────────────────────────────────────

    def whole(self, done: Sequence[Completion]) -> bytes:
        choices = [
            {
                "index": number,
                "message": message_of(one),
                "logprobs": self._logprobs(one),
                "finish_reason": finish_of(one),
            }
            for number, one in enumerate(done)
        ]
        return self._object(choices, done, **self._verbose)

    def _logprobs(self, done: Completion) -> dict[str, Any] | None:
        if done.logprobs is None or not self._wanted.needs_pieces:
            return None
        content = chat_logprobs(done.tokens, done.logprobs, self._head.pieces)
        return {"content": content, "refusal": None}


class _Reply:
    """What was shown of one reply."""

    def __init__(self) -> None:
        self.begun: set[int] = set()
        """Calls whose name was shown."""
        self.n_calls = 0
        self._n_spans = 0

    def is_unread_call(self, span: SpanEvent) -> bool:
        """Whether this is a tool call that came without a value."""
        if span.kind != "tool_call":
            return False
        self._n_spans += 1
        return self._n_spans > self.n_calls


def finish_of(done: Completion) -> str:
    """Why a reply ended, in OpenAI's words."""
    if done.finish_reason == "stop" and any(call.name for call in done.tool_calls):
        return "tool_calls"
    return FINISH.get(done.finish_reason, "stop")


def call_object(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """A tool call."""
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def message_of(done: Completion) -> dict[str, Any]:
    """The reply as a message. Its content is ``null`` where it has calls alone."""
    calls = [one for one in done.tool_calls if one.name]
    unread = "".join(one.text for one in done.tool_calls if not one.name)
    text = done.text + unread
    message: dict[str, Any] = {"role": "assistant", "content": text or None if calls else text}
    message["refusal"] = None
    if done.thinking:
        message["reasoning_content"] = done.thinking
    if calls:
        message["tool_calls"] = [call_object(one.id, one.name, one.arguments) for one in calls]
    return message
