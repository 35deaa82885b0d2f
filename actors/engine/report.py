"""What callers receive about a request: progress, and its result."""

from __future__ import annotations

from actors import messages as m
from actors.engine.request import Request
from cache.answers import MissReason


def progress(request: Request) -> m.PrefillProgress:
    """How much of its prompt is in the context."""
    line = request.line
    return m.PrefillProgress(request.spec.ref, line.n_kv, line.n_known, line.n_reused)


def result(request: Request, now: float) -> m.Completed | m.Verified:
    """The result of a request that has ended, by the engine's clock in seconds."""
    if request.guessing.candidates is not None:
        return _verified(request, request.guessing.candidates)
    line, guessing = request.line, request.guessing
    return m.Completed(
        ref=request.spec.ref,
        request_id=request.spec.request_id,
        finish_reason=request.reply.finish_reason or m.FinishReason.CANCELLED,
        finish_key=_finish_key(request),
        stop_sequence=request.reply.stream.stopped_by,
        usage=m.Usage(
            line.prompt_end,
            _n_cached(request),
            line.n_reply,
            drafted_tokens=guessing.n_drafted,
            accepted_tokens=guessing.n_accepted,
        ),
        cache=request.turn.first_cache or cache_report(request),
        timings=_timings(request, now),
        limit=request.reply.limit,
        note=request.reply.stream.note,
    )


def _finish_key(request: Request) -> bytes | None:
    """The key that the caller can continue from, if its rows are stored, or will be."""
    cache = request.cache
    known = cache.finish_key if cache.finish_key in cache.stored_keys else None
    return cache.namespace.exchanged(known)


def _n_cached(request: Request) -> int:
    """Tokens that were not computed when it first started; later it finds its own."""
    return request.line.n_reused if request.turn.first_cache is None else request.turn.n_cached


def _verified(request: Request, candidates: list[int]) -> m.Verified:
    """How many of the candidates the model agrees with, and the token that it has instead."""
    line = request.line
    reply = line.tokens[line.prompt_end :]
    n_same = 0
    while n_same < min(len(reply), len(candidates)) and reply[n_same] == candidates[n_same]:
        n_same += 1
    return m.Verified(
        request.spec.ref,
        n_same,
        reply[n_same] if n_same < len(reply) else None,
        request.reply.finish_reason or m.FinishReason.CANCELLED,
        _n_cached(request),
    )


def cache_report(request: Request) -> m.CacheReport:
    """What the cache did for a request when it started."""
    line, cache = request.line, request.cache
    hit = m.HitKind.COLD
    if line.is_sticky:
        hit = m.HitKind.STICKY
    elif line.n_reused:
        hit = m.HitKind.PARTIAL if cache.miss else m.HitKind.EXACT
    notes = [cache.note, request.prompt.note, request.guessing.note]
    return m.CacheReport(
        hit=hit,
        source="live" if line.n_live and cache.source == "none" else cache.source,
        restore_ms=cache.restore_ms,
        miss=cache.miss,
        lookup_ms=cache.lookup_ms,
        note="; ".join(note for note in notes if note is not None) or None,
        exact=request.exact,
        diverged=_diverged(request),
    )


def _diverged(request: Request) -> m.Divergence | None:
    """Which part of a chat differs from an earlier one, if its prompt was not wholly warm."""
    rendered, places, line = request.prompt.rendered, request.prompt.places, request.line
    if rendered is None or places is None or line.n_reused >= line.prompt_end - 1:
        return None
    miss = request.cache.miss
    is_other = miss is not None and miss.reason is MissReason.DIVERGES
    return rendered.diverged(places, line.tokens, miss.at if is_other and miss else None)


def _timings(request: Request, now: float) -> m.Timings:
    clock, line = request.clock, request.line
    cache = request.turn.first_cache or request.cache
    started = clock.started or now
    prefilled = clock.prefilled or now
    finished = clock.finished or now
    before_s = clock.aside_before_first_s
    decode_s = max(0.0, finished - prefilled - (clock.aside_s - before_s))
    n_new = line.n_generated - request.resume.n_tokens
    rate = (n_new - 1) / decode_s if n_new > 1 and decode_s else 0.0
    return m.Timings(
        queue_ms=1e3 * (started - clock.arrived),
        ttft_ms=1e3 * (prefilled - clock.arrived),
        prefill_ms=max(
            0.0, 1e3 * (prefilled - started - before_s) - cache.restore_ms - cache.lookup_ms
        ),
        decode_ms=1e3 * decode_s,
        tokens_per_second=rate,
        aside_ms=1e3 * clock.aside_s,
    )
