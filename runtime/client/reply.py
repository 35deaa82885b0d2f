"""One request and its reply, over all attempts at it: what is sent, and what comes of it.

A request is sent to ``inflight``. When that process, or the whole node, ends before the reply is
complete, the request is sent again with the tokens that have come so far, and the reply continues
there. What is generated twice is returned once (``Received``).

``Reply`` has no thread and no loop of its own: it waits only for its ``Transport``.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from actors import messages as m
from actors.messages.payload import PayloadKeeper
from cache import tokens as token_bytes
from runtime import errors
from runtime.client.failures import connection_failure, failure
from runtime.client.models import Models
from runtime.client.received import PartMissing, Received
from runtime.client.request_options import PreparedRequest
from runtime.client.results import (
    CompletionEvent,
    Event,
    LoadEvent,
    PrefillEvent,
    QueuedEvent,
    ResumedEvent,
    TokenEvent,
    after_prompt,
    completion_from,
)
from runtime.client.time_limits import (
    CANCEL_S,
    GRACE_S,
    HEAL_TIMEOUT_S,
    LOST_TIMEOUT_S,
    WITHDRAW_S,
    left_s,
    until,
)
from runtime.client.transport import Replies, Transport
from supervision import forks
from supervision.errors import NodeRestarted, SupervisionError, TargetDown
from supervision.messages import new_ref

if TYPE_CHECKING:
    from runtime.client.diverted import TokenSink


class Reply:
    """Yields the events of one request; the last one is a ``CompletionEvent``."""

    def __init__(
        self,
        transport: Transport,
        models: Models,
        prepared: PreparedRequest,
        read_prompt: Callable[[float | None], Awaitable[TokenEvent]] | None = None,
    ) -> None:
        """Sends nothing; the first ``next`` does.

        ``read_prompt`` returns the prompt as the first event, if it is to be one; it is called with
        the deadline on the monotonic clock.
        """
        self._transport = transport
        self._models = models
        self._request = prepared.request
        self._prompt = prepared.prompt
        self._grammar = prepared.grammar
        self._shows_resumed = prepared.resumed_events
        self._read_prompt = read_prompt
        self._shown_prompt: TokenEvent | None = None
        self._progress = Progress()
        self._events: deque[Event] = deque()
        self._is_over = False
        self._begun_in: forks.Mark | None = None
        self._ends_at: float | None = None
        self._waits_until: float | None = None
        self._heals_until: float | None = None
        self._n_before = 0
        self._is_restored = False
        self._prompt_keeper: PayloadKeeper | None = None
        self._grammar_keeper: PayloadKeeper | None = None
        self._tokens_keeper: PayloadKeeper | None = None
        self._replies: Replies | None = None
        self._lost: PartMissing | None = None
        """What ``ready`` has met; it ends the attempt at the next step."""
        self._accepted: str | None = None
        """The request's id, while a node has it."""
        self.on_accepted: Callable[[str], None] = lambda _: None
        """Called with the request's id of each attempt."""

    # ── the caller's side ───────────────────────────────────────────────────────────────────────

    async def next(self) -> Event | None:
        """The next event, None after the last one; an exception ends the reply."""
        self.require_own()
        while not self._events:
            if self._is_over:
                return None
            try:
                await self._step()
            except BaseException:
                self.leave()
                raise
        return self._events.popleft()

    def ready(self) -> list[Event]:
        """What has come besides the event that ``next`` returned, as far as that is tokens."""
        if self._replies is not None and not self._is_over and self._lost is None:
            try:
                for message in self._replies.ready(m.TokensDelivered):
                    self._take_tokens(message)
            except PartMissing as error:
                self._lost = error
        found = []
        while self._events and not isinstance(self._events[0], CompletionEvent):
            found.append(self._events.popleft())
        return found

    def divert(self, sink: TokenSink) -> None:
        """Show tokens by ``sink`` while the next ``next`` waits; see ``diverted``."""
        from runtime.client.diverted import DivertedTokens  # here: a command has no use of it

        if self._replies is not None and self._lost is None and not self._events:
            self._replies.divert(DivertedTokens(self._progress, sink))

    def restore(self, events: Iterable[Event]) -> None:
        """Continue after these events, which an earlier reader of the same reply has received.

        Before the first ``next``. The request of that reader may still run; it is waited for.
        """
        self._is_restored = True
        for event in events:
            if isinstance(event, TokenEvent) and event.kind == "prompt":
                self._shown_prompt = event
            self._progress.received.restore(event)

    def start_clock(self) -> float | None:
        """The deadline on the monotonic clock, which begins with the first call; None without."""
        if self._ends_at is None and self._request.timeout_s is not None:
            self._ends_at = time.monotonic() + self._request.timeout_s
            self._waits_until = self._ends_at + GRACE_S
        return self._ends_at

    def leave(self) -> None:
        """Read no more; what still runs is cancelled. Does nothing at the end, or in a fork."""
        if not self.is_own:
            return
        self._is_over = True
        self._withdraw()
        for keeper in (self._prompt_keeper, self._grammar_keeper, self._tokens_keeper):
            if keeper is not None:
                keeper.close()

    @property
    def is_own(self) -> bool:
        """Whether it was begun in this process, or not yet; a copy in a forked child was not."""
        return self._begun_in is None or forks.is_here(self._begun_in)

    def require_own(self) -> None:
        """Raises ForkedProcess in a process that was forked after it was begun."""
        if self._begun_in is not None and not forks.is_here(self._begun_in):
            raise errors.ForkedProcess(
                f"this stream was begun in process {self._begun_in[0]}, from which this one was "
                "forked; send the request again in this process"
            )

    # ── attempts ────────────────────────────────────────────────────────────────────────────────

    async def _step(self) -> None:
        """Take one message of the node, or recover from what ended an attempt."""
        if self._read_prompt is not None and self._shown_prompt is None:
            self._begun_in = self._begun_in or forks.here()
            self._shown_prompt = await self._read_prompt(self.start_clock())
            self._events.append(self._shown_prompt)
            return
        try:
            if self._lost is not None:
                lost, self._lost = self._lost, None
                raise lost
            if self._replies is None:
                await self._keep_grammar()
                self._replies = self._send()
            self._take(await self._replies.next())
        except (
            errors.ModelUnknown,
            errors.SessionBusy,
            NodeRestarted,
            TargetDown,
            PartMissing,
        ) as error:
            self._withdraw()
            await self._recover(error)
        except SupervisionError as error:
            with self._in_time():
                raise connection_failure(error, self._transport.record.port) from error

    async def _keep_grammar(self) -> None:
        """Convert a schema, once; a large one on another thread, where there is a loop."""
        source = self._grammar
        if source is not None and self._grammar_keeper is None:
            rules = source.rules() if source.is_quick else await self._transport.run(source.rules)
            self._grammar_keeper = PayloadKeeper(rules)
            grammar = m.Grammar(self._grammar_keeper.payload, source.option)
            self._request = replace(self._request, grammar=grammar)

    def _send(self) -> Replies:
        """Prepare the next attempt: what is left to do, in what is left of the time."""
        self._begun_in = self._begun_in or forks.here()
        ends_at = self.start_clock()
        received = self._progress.received
        self._n_before = len(received)
        if self._prompt_keeper is None:
            self._prompt_keeper = PayloadKeeper(self._prompt)
        if self._tokens_keeper is not None:
            self._tokens_keeper.close()
        self._tokens_keeper = PayloadKeeper(token_bytes.pack(received.tokens))
        request = replace(
            self._request,
            ref=new_ref(),
            prompt=m.with_payload(self._request.prompt, self._prompt_keeper.payload),
            delivered=self._tokens_keeper.payload,
            timeout_s=left_s(ends_at),
        )
        return self._transport.stream(
            "inflight",
            request,
            idle_timeout_s=LOST_TIMEOUT_S,
            ends_at=self._waits_until,
            any_sign=True,
            on_full=self._cancel_unread,
        )

    def _withdraw(self) -> None:
        """End the attempt. An inflight that does not have the request any more asks all models."""
        replies, self._replies = self._replies, None
        accepted, self._accepted = self._accepted, None
        if replies is not None:
            replies.close(None if accepted else self._cancel_late)
        if accepted is not None:
            self._cancel(accepted, WITHDRAW_S, awaits_end=False)

    def _cancel_late(self, message: object) -> None:
        """It was left before it was accepted."""
        if isinstance(message, m.Accepted):
            self._cancel(message.request_id, WITHDRAW_S, awaits_end=False)

    def _cancel_unread(self) -> None:
        if self._accepted is not None:
            self._cancel(self._accepted, CANCEL_S, awaits_end=True)

    def _cancel(self, request_id: str, timeout_s: float, *, awaits_end: bool) -> None:
        cancel = m.Cancel(request_id, awaits_end)
        with contextlib.suppress(SupervisionError):  # then it ended with its node
            self._transport.notify("inflight", cancel, timeout_s=timeout_s)

    # ── messages ────────────────────────────────────────────────────────────────────────────────

    def _take(self, message: object) -> None:
        if isinstance(message, m.TokensDelivered):
            self._take_tokens(message)
        else:
            self._events.extend(self._events_of(message))

    def _take_tokens(self, message: m.TokensDelivered) -> None:
        event = self._progress.received.take(message)
        if event is not None:
            self._events.extend(self._resumed(event.index))
            self._events.append(event)

    def _resumed(self, n_tokens: int) -> tuple[ResumedEvent, ...]:
        """Something new came after so many tokens: whether a pause has ended, if that is shown."""
        event = self._progress.has_new(n_tokens)
        return () if event is None or not self._shows_resumed else (event,)

    def _events_of(self, message: object) -> Iterator[Event]:
        progress = self._progress
        part = progress.received.take_part(message)
        if part is not None:
            yield part
        match message:
            case m.PrefillProgress(_, done, total, reused):
                if not progress.received:  # else it reads a reply that has begun already
                    progress.touch()
                    yield PrefillEvent(done, total, reused)
            case m.Queued(_, place):
                if not progress.received:  # else another process continues it, in its turn
                    progress.touch()
                    yield QueuedEvent(place)
            case m.Accepted():
                self._accepted = message.request_id
                self.on_accepted(message.request_id)
            case m.Resumed():
                progress.interrupt()
            case m.Completed():
                self._end()
                received = progress.received
                yield from self._resumed(len(received))
                whole = completion_from(
                    message,
                    received.text,
                    received.tokens,
                    progress.ttft_ms,
                    received.logprobs,
                    received.spans,
                    received.calls,
                )
                yield CompletionEvent(after_prompt(self._shown_prompt, whole))
            case m.CompletionFailed(_, reason, detail, facts):
                self._accepted = None
                raise failure(self._request.model, reason, detail, facts)
            # Last: its module is big, and most replies do without.
            case m.ModelLoading(_, share):
                if not progress.received:
                    progress.touch()
                    yield LoadEvent(share)
            case _:
                pass  # a message of a newer node, which this reply is complete without

    def _end(self) -> None:
        """The reply is complete: there is nothing to cancel."""
        self._accepted = None
        self.leave()

    # ── recovery ────────────────────────────────────────────────────────────────────────────────

    async def _recover(self, error: Exception) -> None:
        """Wait until the request can be sent again, or raise what the caller gets."""
        is_first, now = self._heals_until is None, time.monotonic()
        if self._heals_until is None or len(self._progress.received) > self._n_before:
            self._heals_until = until(HEAL_TIMEOUT_S, self._waits_until)
        with self._in_time():
            await self._heal(error, self._heals_until, is_first=is_first, now=now)

    async def _heal(
        self, error: Exception, heals_until: float, *, is_first: bool, now: float
    ) -> None:
        model = self._request.model
        is_over = now > heals_until
        match error:
            case errors.ModelUnknown():
                if not is_over and await self._models.is_wanted(model, heals_until):
                    await self._models.wait_until_up(model, heals_until)
                elif is_over or not await self._models.load_embedded_at_use(
                    model, self._waits_until
                ):
                    raise error
            case errors.SessionBusy():
                if (is_first and not self._is_restored) or is_over:
                    raise error
                await self._transport.pause(0.005)  # for the attempt before, which is cancelled
            case _ if is_over:
                raise errors.ModelDown(model, f"{error}; tried again for {HEAL_TIMEOUT_S:.0f} s")
            case _:
                pass  # the next attempt waits for the process that it is sent to

    @contextlib.contextmanager
    def _in_time(self) -> Iterator[None]:
        """What fails after the caller's deadline is a ``DeadlineExceeded``."""
        try:
            yield
        except (errors.NoReply, errors.ModelDown, errors.SessionBusy) as error:
            if self._waits_until is None or time.monotonic() < self._waits_until:
                raise
            raise errors.DeadlineExceeded(
                f"no answer within timeout_s = {self._request.timeout_s:g} seconds, nor within "
                f"{GRACE_S:g} s after them ({error}); the node is busy, stopped or healing"
            ) from error


class Progress:
    """How far a request is, over all attempts at it, by this caller's clock."""

    def __init__(self) -> None:
        self.received = Received()
        self.ttft_ms: float | None = None
        """Milliseconds to the first token; None before it."""
        self._began = self._touched_at = time.perf_counter()
        self.is_interrupted = False
        """Whether the next new event ends a pause."""

    def touch(self) -> None:
        """Something came."""
        self._touched_at = time.perf_counter()

    def interrupt(self) -> None:
        """A process ended under the request; the next new event ends a pause."""
        self.is_interrupted = True

    def has_new(self, n_tokens: int) -> ResumedEvent | None:
        """Something new came, after ``n_tokens``; whether it has ended a pause."""
        before, self._touched_at = self._touched_at, time.perf_counter()
        if self.ttft_ms is None and self.received:
            self.ttft_ms = 1e3 * (self._touched_at - self._began)
        if not self.is_interrupted:
            return None
        self.is_interrupted = False
        return ResumedEvent(n_tokens, 1e3 * (self._touched_at - before))
