"""What callers get: typed results and events, and their one JSON form."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from supervision.frozen import frozen

if TYPE_CHECKING:
    from actors.messages import CacheReport, Completed, Timings, Usage
    from native.backend import Logprobs


@frozen
class PrefillEvent:
    """The prompt is being read: ``done`` of ``total`` tokens, ``reused`` of them from the cache."""

    done: int
    total: int
    reused: int


@frozen
class TokenEvent:
    """New text, whole characters only. ``index`` numbers the first of ``tokens``."""

    index: int
    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[Logprobs | None, ...] = ()
    """One for each token where ``n_logprobs`` asked for them; None for a token that was generated
    before its process died, and not heard of until another went on."""
    kind: str = "text"
    """``text | thinking | tool_call``; the others only for requests that ask for them."""


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
    """Of a thought, by its node; hand it back with ``body``, and the node can tell that it is its
    own."""

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a completion's JSON object."""
        return {
            "kind": self.kind,
            "text": self.text,
            "closed": self.is_closed,
            "signature": self.signature.hex(),
        }


@frozen
class Completion:
    """A finished completion."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    """``stop | length | cancelled | prefilled``."""
    finish_key: str | None
    """Hex; pass it as ``parent_key`` with the next turn. ``None`` when nothing was stored."""
    stop_sequence: str | None
    usage: Usage
    cache: CacheReport
    timings: Timings
    """``ttft_ms`` is measured here, by the caller's clock; the rest by the model's."""
    logprobs: tuple[Logprobs | None, ...] | None = None
    """As in ``TokenEvent``, of all tokens; None when they were not asked for."""
    spans: tuple[SpanEvent, ...] = ()
    """Thinking and tool calls, which are no part of ``text``."""

    @property
    def thinking(self) -> str:
        """All that it thought, where that was to be told apart."""
        return "".join(span.text for span in self.spans if span.kind == "thinking")

    @property
    def tool_calls(self) -> tuple[SpanEvent, ...]:
        """Its tool calls, in order; ``text`` is what stands between the markers of each."""
        return tuple(span for span in self.spans if span.kind == "tool_call")

    @property
    def miss_at(self) -> int | None:
        """Position of the first prompt token that was not stored, or differs from what is.

        ``None`` when the whole prompt was held, or when the reason is no position.
        """
        return None if self.cache.miss is None else self.cache.miss.at

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that ``complete --json`` prints."""
        return {
            "text": self.text,
            "tokens": list(self.tokens),
            "finish_reason": self.finish_reason,
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
            },
            "timings": {
                "ttft_ms": round(self.timings.ttft_ms, 3),
                "queue_ms": round(self.timings.queue_ms, 3),
                "prefill_ms": round(self.timings.prefill_ms, 3),
                "decode_ms": round(self.timings.decode_ms, 3),
                "tokens_per_second": round(self.timings.tokens_per_second, 2),
            },
            **({"spans": [span.to_dict() for span in self.spans]} if self.spans else {}),
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


@frozen
class ResumedEvent:
    """A process died under the request, and the reply goes on after ``n_tokens`` as if none had."""

    n_tokens: int
    pause_ms: float
    """From the last event before to what is new now, by the caller's clock."""


Event = PrefillEvent | TokenEvent | SpanEvent | ResumedEvent | CompletionEvent


@frozen
class ModelStatus:
    """A loaded (or loading) model."""

    id: str
    state: str
    """``starting | up | restarting | …`` as the supervisor sees it."""
    pid: int | None
    incarnation: int
    restarts: int
    details: dict[str, Any]
    """What the model itself reports: path, n_ctx, running, waiting, progress and more."""

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
        """Requests that wait for a place in its context."""
        return int(self.details.get("waiting", 0))

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on how it was loaded, where that is not as one may think; mostly none."""
        return tuple(self.details.get("notes", ()))


def completion_from(
    done: Completed,
    text: str,
    tokens: tuple[int, ...],
    ttft_ms: float | None,
    logprobs: tuple[Logprobs | None, ...] = (),
    spans: tuple[SpanEvent, ...] = (),
) -> Completion:
    """Join what was streamed with the final report."""
    timings = done.timings
    if ttft_ms is not None:
        timings = replace(timings, ttft_ms=ttft_ms)
    return Completion(
        text=text,
        tokens=tokens,
        finish_reason=done.finish_reason.value,
        finish_key=done.finish_key.hex() if done.finish_key else None,
        stop_sequence=done.stop_sequence,
        usage=done.usage,
        cache=done.cache,
        timings=timings,
        logprobs=logprobs or None,
        spans=spans,
    )
