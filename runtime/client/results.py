"""Results and events of requests, and their one JSON form."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from supervision.frozen import frozen

if TYPE_CHECKING:
    from actors.messages import CacheReport, Completed, Timings, Usage
    from native.backend import Logprobs


@frozen
class QueuedEvent:
    """The request waits for its turn in its model. Only for requests with ``queue_events``.

    Once, and when its place has changed, once a second at most. None where it starts at once.
    """

    place: int
    """How many requests that wait start, or continue, before it; 0: it is the next one."""


@frozen
class LoadEvent:
    """The model of the request is loaded for it. Only for requests with ``load_events``."""

    share: float
    """Of the file that is read, 0 to 1."""


@frozen
class PrefillEvent:
    """The prompt is being read.

    The first one of a stream comes when it is known how much of the prompt is reused, before
    anything is computed, also where nothing has to be. What is computed in one step has no other.
    """

    done: int
    """Prompt tokens that are in the context now."""
    total: int
    """Tokens of the whole prompt."""
    reused: int
    """Tokens of ``done`` that came from the context or the cache, and were not computed."""


@frozen
class TokenEvent:
    """New text of a reply."""

    index: int
    """Number of the first of ``tokens`` in the reply, counted from 0; negative for those of an
    echoed prompt, so that its last one is -1."""
    tokens: tuple[int, ...]
    """Ids; empty where only text is new, which an earlier token began."""
    text: str
    """Whole characters only; empty where a token is a part of one, or may begin a stop text."""
    logprobs: tuple[Logprobs | None, ...] = ()
    """One for each token if the request has ``logprobs``, else empty: natural logarithms. None for
    a token that was generated before its process died, and received after another continued, and
    for those of the prompt."""
    kind: str = "text"
    """``text``; ``thinking`` and ``tool_call`` only if the request separates them; ``prompt`` of
    the first event with ``echo``."""


@frozen
class SpanEvent:
    """A thinking block or a tool call is complete; its deltas came before."""

    kind: str
    """``thinking | tool_call``."""
    content: bytes
    """The exact bytes, markers included."""
    body: bytes
    """The same without the markers."""
    tokens: tuple[int, ...]
    """All tokens that hold a byte of it."""
    is_closed: bool
    """False: the reply ended inside it."""
    signature: bytes
    """Of thinking, by its node: ``verify_thinking`` checks it together with ``body``."""

    @property
    def text(self) -> str:
        """``body`` as text; bytes that are no character are U+FFFD."""
        return self.body.decode("utf-8", "replace")

    def to_dict(self) -> dict[str, Any]:
        """Its part of a completion's JSON object."""
        return {
            "kind": self.kind,
            "text": self.text,
            "closed": self.is_closed,
            "signature": self.signature.hex(),
        }


@frozen
class ToolCallEvent:
    """More of a tool call as a value. The first of a call has its name, the last has ``is_end``."""

    index: int
    """Of the calls of this reply, from 0."""
    id: str
    """Nine letters and digits where the model writes none; a tool's result names it."""
    name: str
    """Of the tool."""
    arguments: str
    """A piece of JSON; all pieces together are an object."""
    is_end: bool = False
    """Nothing more of this call comes."""


@frozen
class ToolCall:
    """A tool call of a finished completion."""

    id: str
    """For the ``tool_call_id`` of the tool's result; empty where it was not read as a value."""
    name: str
    """Of the tool; empty where the call was separated by markers alone."""
    arguments: str
    """A JSON object as text; less than that where ``is_closed`` is False."""
    text: str
    """As the model wrote it."""
    is_closed: bool
    """False: the reply ended inside it, or its arguments are no JSON object."""

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI's API has it, for the history of the next request."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@frozen
class Completion:
    """A finished completion.

    >>> done = node.complete("demo", "Once upon a time", max_tokens=40)     # doctest: +SKIP
    >>> done.text, done.usage.cached_tokens, done.timings.ttft_ms           # doctest: +SKIP
    """

    text: str
    """The reply without thinking and tool calls that were separated; with ``echo`` the prompt comes
    first."""
    tokens: tuple[int, ...]
    """Ids of every generated token, those of thinking and tool calls included; with ``echo`` those
    of the prompt come first."""
    finish_reason: str
    """``stop``: the model or a stop text ended it; ``length``: ``max_tokens`` or the context, see
    ``limit``; ``cancelled``; ``prefilled``: only the prompt was read."""
    finish_key: str | None
    """Hex; pass it as ``parent_key`` with the next turn. ``None`` when nothing was stored."""
    stop_sequence: str | None
    """The stop text that ended it."""
    usage: Usage
    """Token counts: prompt, cached, generated, drafted, accepted."""
    cache: CacheReport
    """What served the prompt: kind of hit, tier, milliseconds; and how exact the reply is."""
    timings: Timings
    """Milliseconds. ``ttft_ms`` is measured by the caller's clock, the rest by the model's."""
    logprobs: tuple[Logprobs | None, ...] | None = None
    """As in ``TokenEvent``, of all tokens; None when they were not asked for."""
    spans: tuple[SpanEvent, ...] = ()
    """Thinking and tool calls in order; no part of ``text``."""
    limit: str | None = None
    """What a reply that ended by ``length`` had reached: ``max_tokens``, or ``context``, which is
    full then."""
    calls: tuple[ToolCallEvent, ...] = ()
    """Tool calls as values, each with all of its arguments; see ``tool_calls``."""
    note: str | None = None
    """Why a part came as ``text``: it is not in the format of the model's chat template."""

    @property
    def thinking(self) -> str:
        """All thinking, if the request separates it."""
        return "".join(span.text for span in self.spans if span.kind == "thinking")

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls in order."""
        spans = [span for span in self.spans if span.kind == "tool_call"]
        if not self.calls:
            return tuple(ToolCall("", "", "", one.text, one.is_closed) for one in spans)
        return tuple(
            ToolCall(call.id, call.name, call.arguments, span.text, span.is_closed)
            for call, span in zip(self.calls, spans, strict=False)
        )

    def to_message(self) -> dict[str, Any]:
        """The reply as a message, for the history of the next request."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.thinking:
            message["reasoning_content"] = self.thinking
        calls = [one.to_dict() for one in self.tool_calls if one.name]
        return {**message, "tool_calls": calls} if calls else message

    @property
    def miss_at(self) -> int | None:
        """Position of the first prompt token that was not stored, or differs from what is stored.

        ``None`` when the whole prompt was held, or when the miss has no position.
        """
        return None if self.cache.miss is None else self.cache.miss.at

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that ``complete --json`` prints."""
        return {
            "text": self.text,
            "tokens": list(self.tokens),
            "finish_reason": self.finish_reason,
            "limit": self.limit,
            "finish_key": self.finish_key,
            "stop_sequence": self.stop_sequence,
            "usage": {
                "prompt_tokens": self.usage.prompt_tokens,
                "cached_tokens": self.usage.cached_tokens,
                "completion_tokens": self.usage.completion_tokens,
                "drafted_tokens": self.usage.drafted_tokens,
                "accepted_tokens": self.usage.accepted_tokens,
            },
            "cache": {
                "hit": self.cache.hit.value,
                "source": self.cache.source,
                "restore_ms": round(self.cache.restore_ms, 3),
                "lookup_ms": round(self.cache.lookup_ms, 3),
                "reused_tokens": self.usage.cached_tokens,
                "miss_reason": self.cache.miss_reason,
                "miss_at": self.miss_at,
                "note": self.cache.note,
                "diverged": self.cache.diverged and self.cache.diverged.to_dict(),
                "exact": self.cache.exact.value,
            },
            "timings": {
                "ttft_ms": round(self.timings.ttft_ms, 3),
                "queue_ms": round(self.timings.queue_ms, 3),
                "prefill_ms": round(self.timings.prefill_ms, 3),
                "decode_ms": round(self.timings.decode_ms, 3),
                "aside_ms": round(self.timings.aside_ms, 3),
                "tokens_per_second": round(self.timings.tokens_per_second, 2),
            },
            **({"spans": [span.to_dict() for span in self.spans]} if self.spans else {}),
            **({"tool_calls": [one.to_dict() for one in self.tool_calls]} if self.calls else {}),
            **({} if self.note is None else {"note": self.note}),
            **({} if self.logprobs is None else {"logprobs": _listed(self.tokens, self.logprobs)}),
        }


def _listed(
    tokens: tuple[int, ...], logprobs: tuple[Logprobs | None, ...]
) -> list[dict[str, Any] | None]:
    return [
        None
        if one is None
        else {
            "token": token,
            "logprob": one.chosen,
            "top_logprobs": [{"token": other, "logprob": value} for other, value in one.top],
        }
        for token, one in zip(tokens, logprobs, strict=True)
    ]


@frozen
class CompletionEvent:
    """The last event of a stream."""

    completion: Completion
    """All that was streamed, and the final report."""


@frozen
class ResumedEvent:
    """A process died under the request; the reply continues, and nothing of it is lost or repeated.

    Only for requests with ``resumed_events``.
    """

    n_tokens: int
    """Tokens that had come before."""
    pause_ms: float
    """From the last event before to the next one, by the caller's clock."""


Event = (
    QueuedEvent
    | LoadEvent
    | PrefillEvent
    | TokenEvent
    | ToolCallEvent
    | SpanEvent
    | ResumedEvent
    | CompletionEvent
)
"""What a stream yields: prompt progress, then text, with whole spans after their text; at the end
one ``CompletionEvent``. Match on the class, and ignore what you do not use:

>>> for event in node.stream("demo", "Once upon a time"):                   # doctest: +SKIP
...     match event:
...         case TokenEvent(text=text):
...             print(text, end="")
...         case CompletionEvent(completion):
...             print(completion.usage)
"""


@frozen
class ModelStatus:
    """A model that is loaded, loading or restarting."""

    id: str
    """As it was given to ``load``."""
    state: str
    """The supervisor's: ``starting | up | restarting | stopping | down``."""
    pid: int | None
    """Its process; None while it has none."""
    incarnation: int
    """How many times it was started, 1 at first."""
    restarts: int
    """How many of those were restarts."""
    details: dict[str, Any]
    """What the model reports of itself, for people; ``{}`` if it did not answer. Path, sizes in
    tokens, counts of requests, cache figures; the keys are not fixed, so decide by the properties
    below."""

    @property
    def phase(self) -> str:
        """``loading | idle | prefilling | generating``, or ``state`` of a model that is not up."""
        return str(self.details.get("phase", self.state))

    @property
    def running(self) -> int:
        """Requests that run in its context."""
        return int(self.details.get("running", 0))

    @property
    def waiting(self) -> int:
        """Requests that have come and wait for a place in its context."""
        return int(self.details.get("waiting", 0))

    @property
    def aside(self) -> int:
        """Requests that have stepped aside: others have their place, and they continue later."""
        return int(self.details.get("aside", 0))

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on how it was loaded where that differs from what was asked for."""
        return tuple(self.details.get("notes", ()))


def after_prompt(prompt: TokenEvent | None, done: Completion) -> Completion:
    """The same behind the prompt, if that was shown."""
    if prompt is None:
        return done
    return replace(
        done,
        text=prompt.text + done.text,
        tokens=prompt.tokens + done.tokens,
        logprobs=(prompt.logprobs + (done.logprobs or ())) or None,
    )


def completion_from(
    done: Completed,
    text: str,
    tokens: tuple[int, ...],
    ttft_ms: float | None,
    logprobs: tuple[Logprobs | None, ...] = (),
    spans: tuple[SpanEvent, ...] = (),
    calls: tuple[ToolCallEvent, ...] = (),
) -> Completion:
    """Join what was streamed with the final report."""
    timings = done.timings
    if ttft_ms is not None:
        timings = replace(timings, ttft_ms=ttft_ms)
    return Completion(
        text=text,
        tokens=tokens,
        finish_reason=done.finish_reason.value,
        limit=None if done.limit is None else done.limit.value,
        finish_key=done.finish_key.hex() if done.finish_key else None,
        stop_sequence=done.stop_sequence,
        usage=done.usage,
        cache=done.cache,
        timings=timings,
        logprobs=logprobs or None,
        spans=spans,
        calls=calls,
        note=done.note,
    )
