"""Events and completions as JSON, and back: what the gateway's own API sends to our own clients.

Bytes are base64, enums their values, tuples lists; a logarithm of minus infinity is ``null``.
A reader ignores fields and kinds of events that it does not know.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final, TypeVar

import msgspec

from actors.messages.completion import CacheReport, Divergence, HitKind, Timings, Usage
from actors.messages.exact import Exact
from cache.answers import Miss, MissReason
from native.backend import Logprobs
from runtime.client.results import (
    Completion,
    CompletionEvent,
    Event,
    PrefillEvent,
    SpanEvent,
    TokenEvent,
    ToolCallEvent,
)

T = TypeVar("T")

NAMES: Final[dict[type, bytes]] = {
    PrefillEvent: b"prefill",
    TokenEvent: b"token",
    ToolCallEvent: b"call",
    SpanEvent: b"span",
    CompletionEvent: b"completion",
}
"""Of the events that are sent."""


def event_json(number: int, event: Event) -> bytes:
    """An event of the reply with this number: its fields, and ``reply``."""
    return b'{"reply":%d,' % number + msgspec.json.encode(event)[1:]


def event_of(name: str, plain: Mapping[str, Any]) -> Event | None:
    """The event that ``event_json`` has written; None for a kind that is not known.

    Raises KeyError, TypeError or ValueError where it was written by something else.
    """
    match name:
        case "prefill":
            return _made(PrefillEvent, plain)
        case "token":
            logprobs = _logprobs(plain["logprobs"])
            return _made(TokenEvent, plain, tokens=tuple(plain["tokens"]), logprobs=logprobs)
        case "call":
            return _made(ToolCallEvent, plain)
        case "span":
            return _span(plain)
        case "completion":
            return CompletionEvent(completion_of(plain["completion"]))
        case _:
            return None


def completion_of(plain: Mapping[str, Any]) -> Completion:
    """The same of a whole completion."""
    logprobs = plain["logprobs"]
    return _made(
        Completion,
        plain,
        tokens=tuple(plain["tokens"]),
        usage=_made(Usage, plain["usage"]),
        cache=_cache(plain["cache"]),
        timings=_made(Timings, plain["timings"]),
        logprobs=None if logprobs is None else _logprobs(logprobs),
        spans=tuple(map(_span, plain["spans"])),
        calls=tuple(_made(ToolCallEvent, one) for one in plain["calls"]),
    )


def _cache(plain: Mapping[str, Any]) -> CacheReport:
    miss, diverged = plain["miss"], plain["diverged"]
    return _made(
        CacheReport,
        plain,
        hit=HitKind(plain["hit"]),
        miss=None if miss is None else _made(Miss, miss, reason=MissReason(miss["reason"])),
        exact=Exact(plain["exact"]),
        diverged=None if diverged is None else _made(Divergence, diverged),
    )


def _span(plain: Mapping[str, Any]) -> SpanEvent:
    texts = {name: base64.b64decode(plain[name]) for name in ("content", "body", "signature")}
    return _made(SpanEvent, plain, tokens=tuple(plain["tokens"]), **texts)


def _logprobs(plain: list[Any]) -> tuple[Logprobs | None, ...]:
    return tuple(
        None
        if one is None
        else Logprobs(_number(one["chosen"]), tuple((t, _number(n)) for t, n in one["top"]))
        for one in plain
    )


def _number(value: float | None) -> float:
    return float("-inf") if value is None else value


def _made(kind: type[T], plain: Mapping[str, Any], **converted: Any) -> T:
    known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: plain[name] for name in plain if name in known} | converted)
