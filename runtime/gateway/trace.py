"""What happens to the requests of one worker, as it happens: phases, tokens, pauses, their ends.

The access log, metrics, spans and the page read this. No text of a prompt or of a reply is in it.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from actors.messages.traceparent import checked
from runtime.client.results import (
    Completion,
    CompletionEvent,
    Event,
    LoadEvent,
    PrefillEvent,
    QueuedEvent,
    ResumedEvent,
    TokenEvent,
)
from runtime.gateway.wire.families import GAP_S
from runtime.gateway.wire.records import (
    DECODE,
    DONE,
    PREFILL,
    QUEUED,
    WAITING,
    ReplyRecord,
    RequestRecord,
)
from runtime.gateway.wire.telemetry_names import ASKED, KIND, NAMED, N

if TYPE_CHECKING:
    from runtime.gateway.keys import Key
    from runtime.gateway.wire.wanted import Wanted

MAX_CLIENT: Final = 120
"""Characters of a ``User-Agent`` that are kept."""
MAX_SHOWN_REPLIES: Final = 16
"""Of one request, in its record."""
MAX_PAUSES: Final = 64
_MS: Final = 1e3
_LOG: Final = logging.getLogger("supervision.http")
NOT_SHOWN: Final = frozenset({QueuedEvent, ResumedEvent, LoadEvent})
"""Kinds of events that are asked for the trace alone: no API has them. (A load is shown where a
request asks for its progress.)"""


@dataclass(slots=True)
class ReplyTrace:
    """One reply. Seconds by the monotonic clock."""

    place: int | None = None
    load_share: float | None = None
    """Of the model's file, where the model was loaded for it."""
    n_prompt: int = 0
    n_read: int = 0
    n_reused: int = 0
    n_generated: int = 0
    accepted_at: float | None = None
    first_at: float | None = None
    last_at: float | None = None
    ended_at: float | None = None
    pauses: list[tuple[float, float]] = field(default_factory=list)
    """When each was over, and how many milliseconds it took."""
    done: Completion | None = None
    gaps: list[int] | None = None
    """Seconds from token to token, as counts of buckets (``families.GAP_S``); None: one token."""
    gaps_s: float = 0.0
    """Their sum."""
    n_before: int = 0
    """Tokens that a predecessor had."""

    @property
    def n_computed(self) -> int:
        """Tokens that were computed: read and not reused, and generated."""
        if self.done is not None:
            usage = self.done.usage
            return usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens
        return self.n_prompt_computed + self.n_generated

    @property
    def n_prompt_computed(self) -> int:
        """All of the prompt that is not reused is read at the first token."""
        read = self.n_prompt if self.n_generated else self.n_read
        return read - self.n_reused

    @property
    def phase(self) -> str:
        if self.done is not None:
            return DONE
        if self.n_generated:
            return DECODE
        if self.n_prompt:
            return PREFILL
        return WAITING if self.place is None else QUEUED

    def note(self, event: Event, now: float) -> None:
        """An event came."""
        if type(event) is TokenEvent:
            if event.kind != "prompt":
                self._note_tokens(event, now)
            return
        if type(event) is LoadEvent:  # its model has not got it yet
            self.load_share = event.share
            return
        if self.accepted_at is None:
            self.accepted_at = now
        match event:
            case PrefillEvent(done, total, reused):
                self.n_read, self.n_prompt, self.n_reused = done, total, reused
            case QueuedEvent(place):
                self.place = place
            case ResumedEvent():
                if len(self.pauses) < MAX_PAUSES:
                    self.pauses.append((now, event.pause_ms))
            case CompletionEvent(done):
                self.done = done
                self.ended_at = now
            case _:
                pass

    def _note_tokens(self, event: TokenEvent, now: float) -> None:
        n_new = len(event.tokens)
        if self.last_at is None:
            self.first_at = now
            n_new -= 1  # the first has none before it
            gap = 0.0
        else:
            gap = now - self.last_at
        if n_new > 0:
            self._note_gaps(gap, n_new)
        self.last_at = now
        self.n_generated = event.index + len(event.tokens)

    def _note_gaps(self, gap: float, n_new: int) -> None:
        """So many tokens have come together, this long after the one before them."""
        if self.gaps is None:
            self.gaps = [0] * (len(GAP_S) + 1)
        self.gaps[bisect_left(GAP_S, gap / n_new)] += n_new
        self.gaps_s += gap

    def replay(self, event: Event) -> None:
        """An event came to a predecessor; its time is not known."""
        self.note(event, 0.0)
        self.first_at = self.last_at = self.accepted_at = self.ended_at = self.gaps = None
        self.gaps_s, self.n_before = 0.0, self.n_generated

    def record(self, index: int, began: float) -> ReplyRecord:
        """It as a value; ``began``: when the request came."""

        def since(at: float | None) -> float | None:
            return None if at is None else _MS * (at - began)

        known = ReplyRecord(
            index=index,
            phase=self.phase,
            place=self.place,
            prompt_tokens=self.n_prompt,
            read_tokens=self.n_read,
            cached_tokens=self.n_reused,
            generated_tokens=self.n_generated,
            accepted_at_ms=since(self.accepted_at),
            first_at_ms=since(self.first_at),
            last_at_ms=since(self.last_at),
            pauses=tuple((_MS * (at - began), ms) for at, ms in self.pauses),
        )
        return known if self.done is None else _ended(known, self.done)


def _ended(known: ReplyRecord, done: Completion) -> ReplyRecord:
    usage, timings, cache = done.usage, done.timings, done.cache
    return replace(
        known,
        prompt_tokens=usage.prompt_tokens,
        read_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        generated_tokens=usage.completion_tokens,
        finish_reason=done.finish_reason,
        queue_ms=timings.queue_ms,
        lookup_ms=cache.lookup_ms,
        restore_ms=cache.restore_ms,
        prefill_ms=timings.prefill_ms,
        decode_ms=timings.decode_ms,
        aside_ms=timings.aside_ms,
        drafted_tokens=usage.drafted_tokens,
        draft_hits=usage.accepted_tokens,
        hit=cache.hit.value,
        source=cache.source,
        miss_reason=None if cache.miss is None else cache.miss.reason.value,
        part=None if cache.diverged is None else cache.diverged.part.partition("[")[0],
        miss_at=done.miss_at,
        **_diverged(done),
    )


def _diverged(done: Completion) -> dict[str, Any]:
    found = done.cache.diverged
    if found is None:
        return {}
    return {
        "diverged": found.part,
        "diverged_token": found.prompt_token,
        "lost_tokens": found.lost_tokens,
    }


class Trace:
    """One request."""

    def __init__(
        self,
        request_id: str,
        *,
        method: str,
        route: str,
        api: str,
        client: str,
        worker: int = 0,
    ) -> None:
        self.id = request_id
        self.method, self.route, self.api = method, route, api
        self.client = client[:MAX_CLIENT]
        self.worker = worker
        self.at = time.time()
        self.began = time.monotonic()
        self.ended_at: float | None = None
        self.key = ""
        self.answer_id = ""
        self.model: str | None = None
        self.is_stream = False
        self.status = 0
        self.outcome: str | None = None
        self.error: str | None = None
        self.n_taken = 0
        self.rules: tuple[str, ...] = ()
        self.parent = self.tracestate = ""
        """As its client has sent them."""
        self.traceparent = ""
        """What the node's processes get to know of it; empty: it is a part of no trace."""
        self.asked: Mapping[str, object] = {}
        """Numbers that its body named, and whether it is a chat: what a span shows."""
        self.is_http = True
        """False: a response in the background, whose HTTP request is another."""
        self.replies: dict[int, ReplyTrace] = {}

    def begun_at(self, at: float) -> None:
        """It came at this Unix time, to another worker."""
        self.began -= max(0.0, self.at - at)
        self.at = at

    def part_of(self, headers: Mapping[bytes, bytes]) -> None:
        """The trace that its client names, by the headers of W3C's Trace Context."""
        self.parent = checked(headers.get(b"traceparent", b"").decode("latin-1"))
        if self.parent:
            self.tracestate = headers.get(b"tracestate", b"").decode("latin-1")
            self.traceparent = self.parent

    def asks(self, wanted: Wanted, model: str) -> None:
        """What its body asks for, and of which model."""
        self.model, self.rules = model, tuple(wanted.rules)
        self.asked = {
            KIND: wanted.kind,
            NAMED: wanted.model,
            N: wanted.n,
            **{name: wanted.options[name] for name in ASKED if name in wanted.options},
        }

    def called_by(self, key: Key) -> None:
        """Whose request it is."""
        self.key = key.name

    def note(self, number: int, event: Event) -> None:
        """An event of the reply with this number came."""
        reply = self.replies.get(number) or self._new(number)
        reply.note(event, time.monotonic())

    def note_all(self, batch: Iterable[tuple[int, Event]]) -> None:
        """Events that have come together, with the numbers of their replies."""
        now = time.monotonic()
        replies = self.replies
        for number, event in batch:
            (replies.get(number) or self._new(number)).note(event, now)

    def replay(self, number: int, event: Event) -> None:
        """The same of an event that a predecessor had."""
        (self.replies.get(number) or self._new(number)).replay(event)

    def _new(self, number: int) -> ReplyTrace:
        self.replies[number] = found = ReplyTrace()
        return found

    @property
    def n_computed(self) -> int:
        """Tokens that were computed for its replies."""
        return sum(one.n_computed for one in self.replies.values())

    def end(self, outcome: str) -> None:
        """It is over."""
        self.outcome = outcome
        self.ended_at = time.monotonic()

    def record(self) -> RequestRecord:
        """It as a value, as far as it is."""
        took = (time.monotonic() if self.ended_at is None else self.ended_at) - self.began
        shown = sorted(self.replies.items())[:MAX_SHOWN_REPLIES]
        return RequestRecord(
            id=self.id,
            at=self.at,
            worker=self.worker,
            method=self.method,
            route=self.route,
            api=self.api,
            key=self.key,
            client=self.client,
            took_ms=_MS * took,
            answer_id=self.answer_id,
            model=self.model,
            is_stream=self.is_stream,
            status=self.status,
            outcome=self.outcome,
            error=self.error,
            n_taken=self.n_taken,
            rules=self.rules,
            replies=tuple(one.record(number, self.began) for number, one in shown),
        )


class Traces:
    """The requests of one worker that run; each that ends is handed to what reads it."""

    def __init__(self) -> None:
        self.running: dict[str, Trace] = {}
        self.on_reply: list[Callable[[Trace], None]] = []
        """Called with each request that a model is about to be asked for."""
        self.on_end: list[Callable[[Trace], None]] = []
        """Called with each request that has ended."""

    def begin(self, trace: Trace) -> None:
        """A request has come."""
        self.running[trace.id] = trace

    def asks(self, trace: Trace) -> None:
        """A model is about to be asked for it."""
        for read in self.on_reply:
            _safely(read, trace)

    def end(self, trace: Trace, outcome: str) -> None:
        """It is over. Only the first end counts."""
        if self.running.pop(trace.id, None) is None:
            return
        trace.end(outcome)
        for read in self.on_end:
            _safely(read, trace)


def _safely(read: Callable[[Trace], None], trace: Trace) -> None:
    try:
        read(trace)
    except Exception:  # noqa: BLE001 - what watches a request does not end it
        _LOG.exception("what reads the traces of requests failed (%s)", trace.id)
