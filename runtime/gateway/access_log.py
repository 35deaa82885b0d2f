"""A line in the log for each HTTP request that has ended. Nothing of its texts, path or query."""

from __future__ import annotations

import logging
from typing import Final

from runtime.gateway.trace import ReplyTrace, Trace
from supervision import logs

LOGGER: Final = "supervision.http.access"
EVENT: Final = "http_request"
QUIET: Final = frozenset({"/health", "/v1/health", "/readyz", "/metrics"})
"""Routes that are asked again and again: a line only where they fail."""
_MS: Final = 1e3
_LOG: Final = logging.getLogger(LOGGER)


def log_request(trace: Trace) -> None:
    """Write the line of a request that has ended."""
    if trace.route in QUIET and 200 <= trace.status < 300:
        return
    found = fields(trace)
    logs.event(_LOG, logging.INFO, EVENT, sentence(found), **found)


def fields(trace: Trace) -> dict[str, object]:
    """What the line shows; what is not known, or not of this request, is None."""
    took = 0.0 if trace.ended_at is None else _MS * (trace.ended_at - trace.began)
    found: dict[str, object] = {
        "request_id": trace.id,
        "answer_id": trace.answer_id or None,
        "trace_id": trace.traceparent[3:35] or None,
        "method": trace.method,
        "route": trace.route or None,
        "status": trace.status if trace.is_http else None,
        "api": trace.api,
        "key": trace.key or None,
        "model": trace.model,
        "stream": trace.is_stream or None,
        "background": None if trace.is_http else True,
        "outcome": trace.outcome,
        "error": trace.error,
        "client_gone": trace.outcome == "client_gone" or None,
        "workers_lost": trace.n_taken or None,
        "total_ms": round(took, 1),
    }
    return found | _replies(trace, list(trace.replies.values())) if trace.replies else found


def _replies(trace: Trace, replies: list[ReplyTrace]) -> dict[str, object]:
    """Sums over the replies; times of the first one that has them."""
    done = [one.done for one in replies if one.done is not None]
    first_at = min((one.first_at for one in replies if one.first_at is not None), default=None)
    sources = {one.cache.source for one in done if one.usage.cached_tokens}
    n_pauses = sum(len(one.pauses) for one in replies)
    return {
        "replies": len(replies) if len(replies) > 1 else None,
        "prompt_tokens": sum(one.n_prompt for one in replies),
        "cached_tokens": sum(one.n_reused for one in replies),
        "cache_source": ",".join(sorted(sources)) or None,
        "generated_tokens": sum(
            one.n_generated if one.done is None else one.done.usage.completion_tokens
            for one in replies
        ),
        "queue_ms": round(max(one.timings.queue_ms for one in done), 1) if done else None,
        "first_token_ms": None if first_at is None else round(_MS * (first_at - trace.began), 1),
        "finish": ",".join(sorted({one.finish_reason for one in done})) or None,
        "resumes": n_pauses or None,
    }


def sentence(found: dict[str, object]) -> str:
    """The line's text: method, route and status, then names and values."""
    rest = (
        f"{name}={value}"
        for name, value in found.items()
        if value is not None and name not in ("method", "route", "status")
    )
    head = f"{found['method']} {found['route'] or '-'} {found['status'] or '-'}"
    return f"{head} {' '.join(rest)}"
