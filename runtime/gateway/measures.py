"""What one worker counts of each request that has ended, for the page of metrics."""

from __future__ import annotations

from typing import Final

from runtime.client.results import Completion
from runtime.gateway.trace import ReplyTrace, Trace
from runtime.gateway.wire import families as f
from runtime.gateway.wire.failure import Fault
from runtime.gateway.wire.metrics import Counts
from runtime.gateway.wire.series import OTHER, Series

_S: Final = 1e-3
_NONE: Final = "none"
BY_NODE, BY_WORKER = "node", "worker"
"""Which process had ended: one of the node, or an HTTP worker."""
ABORT, ERROR = "abort", "error"
"""Why a reply has ended that has no end of its own."""


class Measures:
    """Of one worker, since it started."""

    def __init__(self, counts: Counts, *, is_on: bool) -> None:
        """``counts``: by llama-server's names. Not ``is_on``: these alone are counted."""
        self.counts = counts
        self.series = Series()
        self._is_on = is_on
        for cause in (BY_NODE, BY_WORKER):
            self.series.add(f.RESUMES, (cause,), 0)

    def ended(self, trace: Trace) -> None:
        """A request has ended."""
        for reply in trace.replies.values():
            if reply.done is not None:
                self.counts.note(reply.done)
            elif reply.n_prompt or reply.n_generated:
                self.counts.note_cut(reply.n_reused, reply.n_prompt_computed, reply.n_generated)
        if not self._is_on:
            return
        if trace.is_http:
            self._http(trace)
        self._cross(trace)
        for reply in trace.replies.values():
            self._reply(trace, reply)

    def read(self, model: str, n_tokens: int, n_texts: int) -> None:
        """Texts were read for their vectors or scores."""
        self.counts.note_read(n_tokens, n_texts)
        if self._is_on:
            self.series.add(f.PROMPT_TOKENS, (model,), n_tokens)

    def refused(self, status: int) -> None:
        """A connection was refused, or what came on it was no request."""
        if self._is_on:
            self.series.add(f.HTTP, (OTHER, str(status), OTHER))

    def _http(self, trace: Trace) -> None:
        add = self.series.add
        add(f.HTTP, (trace.route or OTHER, str(trace.status), trace.api))
        if trace.error == Fault.NO_KEY.value:
            add(f.NO_KEY)

    def _cross(self, trace: Trace) -> None:
        """What is of a request as a whole."""
        add = self.series.add
        for rule in trace.rules:
            add(f.CANONICAL, (rule,))
        if trace.n_taken:
            add(f.RESUMES, (BY_WORKER,), trace.n_taken)
        n_pauses = sum(len(one.pauses) for one in trace.replies.values())
        if n_pauses:
            add(f.RESUMES, (BY_NODE,), n_pauses)

    def _reply(self, trace: Trace, reply: ReplyTrace) -> None:
        add, observe = self.series.add, self.series.observe
        name = trace.model or OTHER
        model = (name,)
        done = reply.done
        if done is None:
            why = ERROR if trace.error is not None else ABORT
            n_prompt, n_reused, n_generated = reply.n_prompt, reply.n_reused, reply.n_generated
        else:
            why = done.finish_reason
            usage = done.usage
            n_prompt, n_reused = usage.prompt_tokens, usage.cached_tokens
            n_generated = usage.completion_tokens
        add(f.SUCCESS, (name, why))
        add(f.PROMPT_TOKENS, model, n_prompt if done is not None else n_read_of(reply))
        add(f.GENERATED, model, n_generated)
        if reply.first_at is not None and not reply.n_before:
            observe(f.FIRST_TOKEN, model, reply.first_at - trace.began)
        if reply.gaps is not None:
            self.series.observed(f.GAP, model, reply.gaps, reply.gaps_s)
        if done is not None:
            self._ended(trace, reply, done, model)
        if n_prompt:
            add(f.LOOKED_UP, model, n_prompt)
            add(f.FOUND, model, n_reused)

    def _ended(
        self, trace: Trace, reply: ReplyTrace, done: Completion, model: tuple[str, ...]
    ) -> None:
        add, observe = self.series.add, self.series.observe
        timings, cache, usage = done.timings, done.cache, done.usage
        ended_at = trace.ended_at if reply.ended_at is None else reply.ended_at
        if ended_at is not None:
            observe(f.REQUEST, model, ended_at - trace.began)
        observe(f.QUEUE, model, timings.queue_ms * _S)
        observe(f.PREFILL, model, timings.prefill_ms * _S)
        observe(f.DECODE, model, timings.decode_ms * _S)
        observe(f.PROMPT_SIZE, model, usage.prompt_tokens)
        observe(f.REPLY_SIZE, model, usage.completion_tokens)
        if usage.cached_tokens:
            add(f.CACHED, (*model, cache.source), usage.cached_tokens)
            observe(f.RESTORE, (cache.source,), cache.restore_ms * _S)
        if cache.miss is not None:
            part = _NONE if cache.diverged is None else cache.diverged.part.partition("[")[0]
            add(f.MISSES, (cache.miss.reason.value, part))


def n_read_of(reply: ReplyTrace) -> int:
    """Prompt tokens of a reply without an end that were read, or reused."""
    return reply.n_prompt_computed + reply.n_reused
