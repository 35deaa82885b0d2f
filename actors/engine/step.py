"""One step of an engine: a batch of the next tokens of all requests, computed and sampled.

A failed step is attributed to the request that caused it (``engine.fault_isolation``); a context
that cannot be relied on any more is replaced in place. Runs on the engine thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from actors import messages as m
from actors.engine.abortable_decode import AbortableDecoder, StepOverdue
from actors.engine.batch_plan import Budget, Demand, Slice, plan_step
from actors.engine.exactness import is_computed_singly, rows_needed, rows_of_step
from actors.engine.fault_isolation import FaultIsolation
from actors.engine.lifecycle import Lifecycle
from actors.engine.live_sequences import LiveSequences
from actors.engine.report import progress
from actors.engine.request import Request
from actors.engine.room import Room
from actors.engine.room_policy import Part, must_rest, rested
from actors.engine.speculative_decoding import SpeculativeDecoder
from actors.kv.cache_client import CacheClient
from native.backend import Backend, Batch, Rows
from native.errors import DecodeAborted, DecodeFailed, NativeError, NoKvSpace, NoTokenLeft

PREFILL_SHARE_TOKENS: Final = 128
"""Of a step, while other requests generate."""
BACKGROUND_SHARE_TOKENS: Final = 32
"""The same for prompts of background requests while interactive ones generate."""


class StepRunner:
    """Runs the steps of one engine."""

    def __init__(
        self,
        backend: Backend,
        decoder: AbortableDecoder,
        live: LiveSequences,
        cache: CacheClient,
        guesses: SpeculativeDecoder,
        requests: Lifecycle,
        room: Room,
        send: Callable[[object, object], None],
    ) -> None:
        self._backend = backend
        self._decoder = decoder
        self._live = live
        self._cache = cache
        self._guesses = guesses
        self._requests = requests
        self._room = room
        self._send = send
        self._batch = Batch()
        self._isolation = FaultIsolation[Request]()
        self._must_rebuild = False
        self._after_alone = False
        self._n_rested = 0
        self.tokens_generated = 0
        self.contexts_rebuilt = 0

    def ready(self) -> list[Request]:
        """The requests that the next step is for."""
        running = self._requests.running
        ready = [request for request in running if request.is_ready]
        if not any(request.turn.is_background for request in ready):
            return ready
        urgent = _asked_for(running)
        parts = [Part(one not in urgent, one.is_reading) for one in running]
        if not must_rest(parts, self._n_rested):
            return ready
        return [request for request in ready if request in urgent]

    def run(self) -> bool:
        """One step of all requests that are ready; whether there were any."""
        ready = self.ready()
        n_ready = sum(request.is_ready for request in self._requests.running)
        self._n_rested = rested(self._n_rested, len(ready), n_ready)
        for request in [one for one in ready if not one.line.n_pending]:
            ready.remove(request)
            self._begin_at_once(request)
        if ready:
            self._isolation.keep(self._requests.running)
            self._step(self._isolation.choose(ready))
        return bool(ready)

    def _step(self, ready: Sequence[Request]) -> None:
        needed = [self._rows_needed(request) for request in ready]
        demands = [self._demand(*one) for one in zip(ready, needed, strict=True)]
        choose = partial(self._guesses.choose, ready)
        plan = plan_step(demands, self._budget(ready), choose, after_alone=self._after_alone)
        if any(part.n_tokens > 1 for part in plan):
            for request in self._requests.running:  # nothing waits behind a long step
                self._requests.deliver(request)
        rows = self._fill(plan, ready)
        how = self._batch.rows = rows_of_step(needed[part.index] for part in plan)
        self._after_alone = how == "alone"
        began = time.perf_counter()
        if not self._decode(rows):
            return
        seconds = time.perf_counter() - began
        n_rows, now = len(self._batch), time.monotonic()
        self._cache.record_step(n_rows, seconds, singly=is_computed_singly(how, n_rows))
        if not self._after_alone:
            self._guesses.record_step(n_rows, seconds)
        self._live.stepped(1, now)
        for part, (request, row) in zip(plan, rows, strict=True):
            request.line.decoded(part.n_tokens)
            request.turn.had_rows(part.n_tokens, now)
            self._cache.reached(request.cache)
            if row is None:
                self._send(request.spec.reply_to, progress(request))
            elif request.is_prefill_only:
                self._keep_logits(request, row)
                self._send(request.spec.reply_to, progress(request))
                self._end_prefill(request)
            else:
                self._sample(request, row)
        if self._must_rebuild:
            self._rebuild()

    def _budget(self, ready: Sequence[Request]) -> Budget:
        readers = [one.turn.is_background for one in ready if not one.line.is_generating]
        is_disturbed = any(one.line.is_generating and not one.turn.is_background for one in ready)
        is_slow = bool(readers) and all(readers) and is_disturbed
        share = BACKGROUND_SHARE_TOKENS if is_slow else PREFILL_SHARE_TOKENS
        return Budget(self._backend.info.n_batch, share)

    def _rows_needed(self, request: Request) -> Rows:
        line = request.line
        return rows_needed(
            request.exact, n_kv=line.n_kv, n_prompt=line.n_prompt, n_tokens=len(line.tokens)
        )

    def _demand(self, request: Request, needed: Rows) -> Demand:
        line = request.line
        stop = self._cache.next_stop(request.cache)
        if line.n_kv < line.n_prompt < len(line.tokens):
            # The rows of prompt and reply are computed in different ways.
            stop = line.n_prompt if stop is None else min(stop, line.n_prompt)
        return Demand(
            line.n_pending,
            line.is_generating,
            needed == "alone",
            None if stop is None else stop - line.n_kv,
            self._guesses.prepare(request),
        )

    def _fill(
        self, plan: Sequence[Slice], ready: Sequence[Request]
    ) -> list[tuple[Request, int | None]]:
        """Make the batch of a plan: each request, and the row that its next token is drawn from."""
        self._batch.clear()
        rows: list[tuple[Request, int | None]] = []
        for part in plan:
            request = ready[part.index]
            line = request.line
            tokens = line.tokens[line.n_kv : line.n_kv + part.n_tokens]
            row = self._batch.extend_prefill(tokens, line.n_kv, line.kv_seq, part.reaches_end)
            rows.append((request, row if part.reaches_end else None))
            self._guesses.fill(self._batch, request, part)
        return rows

    def _decode(self, rows: list[tuple[Request, int | None]]) -> bool:
        ids = [request.spec.request_id for request, _ in rows]
        gives_way = all(request.turn.is_background for request, _ in rows)
        if not self._decoder.may_begin(ids, len(self._batch), gives_way=gives_way):
            self._requests.drop_cancelled()
            return False
        error = self._decoder.run(self._batch)
        ran = [request for request, _ in rows]
        if error is None:
            self._isolation.clear(ran)
            return True
        self._roll_back(ran)
        match error:
            case DecodeAborted():
                self._requests.drop_cancelled()
            case NoKvSpace():
                # Cells are counted, so this is a bug or a backend that needs more than it reports;
                # idle sequences are dropped, then a request steps aside; one alone fails.
                if not self._live.drop_idle() and not self._room.give_up_cells():
                    facts = self._requests.waiting.pace.facts(time.monotonic())
                    self._requests.fail(ran[-1], m.FailReason.OVERLOADED, str(error), facts)
            case _:
                for request in self._isolation.suspect(ran):
                    self._requests.fail(request, m.FailReason.ENGINE_ERROR, str(error))
                if isinstance(error, DecodeFailed | StepOverdue):
                    self._rebuild()
        return False

    def _rebuild(self) -> None:
        """Replace the context. Callers are not notified; their replies are only delayed.

        If even that fails the process ends, and its supervisor restarts it.
        """
        self._must_rebuild = False
        self._backend.rebuild()
        self.contexts_rebuilt += 1
        running = self._requests.running
        self._live.forget_all(running)
        for request in running:
            if request.is_finished or request.cache.is_waiting:
                continue
            now = time.monotonic()
            self._live.settle(request, running, now)
            if request.following is None:
                self._cache.look_up(request.cache, now)

    def _roll_back(self, requests: Sequence[Request]) -> None:
        for request in requests:
            line = request.line
            if not self._backend.seq_remove(line.kv_seq, line.n_kv, -1):
                # Memory that cannot be cut went further, and how far is not known: start again.
                self._backend.seq_remove(line.kv_seq, 0, -1)
                line.emptied()

    def _begin_at_once(self, request: Request) -> None:
        """The whole prompt is in the context and its logits are known: no decode is needed."""
        if request.is_prefill_only:
            self._end_prefill(request)
            return
        line, logits = request.line, request.cache.take_first_logits()
        token: int | None = None
        if logits is not None:
            try:
                token = request.reply.sample_known(self._backend, logits, line.n_generated)
            except NativeError:
                logits = None
        if token is None or logits is None:  # not a distribution: compute the last token again
            line.cut(line.n_kv - 1)
            self._backend.seq_remove(line.kv_seq, line.n_kv, -1)
            return
        request.cache.keep_tip_logits(logits)
        self._accept(request, token)

    def _end_prefill(self, request: Request) -> None:
        """The prompt is in the context, and nothing more was asked for."""
        now = time.monotonic()
        request.clock.prompt_done(now)
        request.finish(m.FinishReason.PREFILLED, now)
        self._requests.finish(request)

    def _sample(self, request: Request, row: int) -> None:
        line = request.line
        if request.resume.ends_as is not None:
            request.finish(request.resume.ends_as, time.monotonic())
            self._requests.finish(request)
            return
        for at in self._guesses.rows(request, row):
            try:
                token = request.reply.sample(self._backend, at, line.n_generated)
            except NativeError as error:
                self._fail_sampling(request, error)
                return
            self._isolation.found_good_numbers()
            if not line.n_generated:
                self._keep_logits(request, at)
            self._accept(request, token)

    def _fail_sampling(self, request: Request, error: NativeError) -> None:
        """No token can be chosen for this request; the others of its step are not touched."""
        asked_for_it = isinstance(error, NoTokenLeft)
        reason = m.FailReason.INVALID_REQUEST if asked_for_it else m.FailReason.ENGINE_ERROR
        self._requests.fail(request, reason, str(error))
        if isinstance(error, DecodeFailed) and self._isolation.found_bad_numbers():
            self._must_rebuild = True  # once the others of this step have their tokens

    def _keep_logits(self, request: Request, row: int) -> None:
        """Those of the prompt's last position: an exact repeat then needs no decode."""
        self._cache.keep_logits(request.cache, partial(self._backend.logits, row))

    def _accept(self, request: Request, token: int) -> None:
        now = time.monotonic()
        first = not request.line.n_generated
        request.reply.hold(request.accept(token, self._backend, now))
        self.tokens_generated += 1
        self._requests.deliver_if_due(request, now, first=first)
        if request.is_finished:
            self._guesses.trim(request)
            self._requests.finish(request)
        elif first:
            self._cache.save_prompt(request.cache, now)
        else:
            self._cache.save_block(request.cache, now)


def _asked_for(running: Sequence[Request]) -> list[Request]:
    """Interactive requests, and the background ones that an interactive one follows."""
    urgent = [request for request in running if not request.turn.is_background]
    for request in urgent:  # which grows while it is read
        leader = request.following
        if leader is not None and leader not in urgent:
            urgent.append(leader)
    return urgent
