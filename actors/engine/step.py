"""One step of an engine: a batch of everybody's next tokens, computed, sampled and accepted.

A failed step is attributed to the request that caused it (``engine.fault_isolation``); a context
that is not to be trusted any more is replaced in place. Runs on the engine thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from actors import messages as m
from actors.engine import resume
from actors.engine.abortable_decode import Decoder, StepOverdue
from actors.engine.batch_plan import plan_step
from actors.engine.fault_isolation import Isolation
from actors.engine.lifecycle import Endings
from actors.engine.live_sequences import LiveSequences
from actors.engine.request import Request
from actors.engine.speculative_decoding import Guesses
from actors.kv.cache_client import CacheDialogue
from actors.kv.prompt_logits import logits_memory
from native.backend import Backend, Batch
from native.errors import DecodeAborted, DecodeFailed, NativeError, NoKvSpace, NoTokenLeft

PREFILL_SHARE_TOKENS = 128  # of a step, while other requests generate


class Stepper:
    """Runs the steps of one engine."""

    def __init__(
        self,
        backend: Backend,
        decoder: Decoder,
        live: LiveSequences,
        cache: CacheDialogue,
        guesses: Guesses,
        endings: Endings,
        send: Callable[[object, object], None],
    ) -> None:
        self._backend = backend
        self._decoder = decoder
        self._live = live
        self._cache = cache
        self._guesses = guesses
        self._endings = endings
        self._send = send
        self._batch = Batch()
        self._isolation = Isolation[Request]()
        self._must_rebuild = False
        self.known_logits = logits_memory(cache.logits_memory_bytes)
        self.tokens_generated = 0
        self.contexts_rebuilt = 0

    def run(self) -> bool:
        """One step of all who are ready; whether anybody was."""
        ready = [request for request in self._endings.running if request.is_ready]
        for request in [one for one in ready if not one.n_pending]:
            ready.remove(request)
            self._begin_at_once(request)
        if ready:
            self._isolation.keep(self._endings.running)
            self._step(self._isolation.choose(ready))
        return bool(ready)

    def _step(self, ready: list[Request]) -> None:
        info = self._backend.info
        ready, n_batch = resume.in_small_steps(ready, info.n_batch)
        plan = plan_step(ready, n_batch=n_batch, prefill_share=PREFILL_SHARE_TOKENS)
        plan = [self._cache.cut_at_stop(ready[part.index], part) for part in plan]
        plan = [resume.cut_at_reply(ready[part.index], part) for part in plan]
        plan = self._guesses.add_to(plan, ready, most=PREFILL_SHARE_TOKENS)
        if any(part.n_tokens > 1 for part in plan):
            for request in self._endings.running:  # nothing waits behind a long step
                self._endings.deliver(request)
        self._batch.clear()
        rows: list[tuple[Request, int | None]] = []
        for part in plan:
            request = ready[part.index]
            tokens = request.tokens[request.n_kv : request.n_kv + part.n_tokens]
            row = self._batch.extend_prefill(tokens, request.n_kv, request.kv_seq, part.reaches_end)
            rows.append((request, row if part.reaches_end else None))
            self._guesses.fill(self._batch, request, part)
        began = time.perf_counter()
        if not self._decode(rows):
            return
        self._cache.saw_step(len(self._batch), time.perf_counter() - began)
        self._guesses.saw_step(len(self._batch), time.perf_counter() - began)
        self._live.stepped()
        for part, (request, row) in zip(plan, rows, strict=True):
            request.n_kv += part.n_tokens
            self._cache.reached(request)
            if row is None:
                self._send(request.reply_to, request.progress())
            elif request.is_prefill_only:
                self._keep_logits(request, row)
                self._end_prefill(request)
            else:
                self._sample(request, row)
        if self._must_rebuild:
            self._rebuild()

    def _decode(self, rows: list[tuple[Request, int | None]]) -> bool:
        if not self._decoder.may_begin(request.request_id for request, _ in rows):
            self._endings.drop_cancelled()
            return False
        error = self._decoder.run(self._batch)
        ran = [request for request, _ in rows]
        if error is None:
            self._isolation.acquit(ran)
            return True
        self._roll_back(rows)
        match error:
            case DecodeAborted():
                self._endings.drop_cancelled()
            case NoKvSpace():
                # Admission counts cells, so this is a bug or a backend that needs more than it
                # says; idle sequences give way, then the youngest request; the others go on.
                if not self._live.drop_idle():
                    self._endings.fail(rows[-1][0], m.FailReason.OVERLOADED, str(error))
            case _:
                for request in self._isolation.accuse(ran):
                    self._endings.fail(request, m.FailReason.ENGINE_ERROR, str(error))
                if isinstance(error, DecodeFailed | StepOverdue):
                    self._rebuild()
        return False

    def _rebuild(self) -> None:
        """Go on in a new context: the old one is not to be trusted. Nobody is told, only later.

        If even that fails the process ends, and its supervisor takes it from there.
        """
        self._must_rebuild = False
        self._backend.rebuild()
        self.contexts_rebuilt += 1
        self._live.forget_all(self._endings.running)
        for request in self._endings.running:
            if request.is_finished or request.awaited_ref is not None:
                continue
            self._live.settle(request, self._endings.running)
            if request.following is None:
                self._cache.look_up(request)

    def _roll_back(self, rows: list[tuple[Request, int | None]]) -> None:
        for request, _ in rows:
            if not self._backend.seq_remove(request.kv_seq, request.n_kv, -1):
                # A memory that cannot be cut went further, nobody knows how far: from the start.
                self._backend.seq_remove(request.kv_seq, 0, -1)
                request.n_kv = 0

    def _begin_at_once(self, request: Request) -> None:
        """The whole prompt is in the context and its logits are known: no decode is needed."""
        if request.is_prefill_only:
            self._end_prefill(request)
            return
        logits, request.first_logits = request.first_logits, None
        try:
            token = request.sample_known(logits, self._backend) if logits is not None else None
        except NativeError:
            token = None
        if token is None:  # not a distribution: compute the last token again instead
            request.n_kv -= 1
            request.n_reused = min(request.n_reused, request.n_kv)
            request.n_live = min(request.n_live, request.n_kv)
            self._backend.seq_remove(request.kv_seq, request.n_kv, -1)
            return
        request.tip_logits = logits
        self._accept(request, token)

    def _end_prefill(self, request: Request) -> None:
        """The prompt is in the context, and nothing more was asked for."""
        request.prefilled = time.monotonic()
        request.finish(m.FinishReason.PREFILLED, request.prefilled)
        self._send(request.reply_to, request.progress())
        self._endings.finish(request)

    def _sample(self, request: Request, row: int) -> None:
        if request.ends_as is not None:
            request.finish(request.ends_as, time.monotonic())
            self._endings.finish(request)
            return
        for at in self._guesses.rows(request, row):
            try:
                token = request.sample(self._backend, at)
            except NativeError as error:
                self._blame(request, error)
                return
            self._isolation.found_good_numbers()
            if not request.n_generated:
                self._keep_logits(request, at)
            self._accept(request, token)

    def _blame(self, request: Request, error: NativeError) -> None:
        """No token can be chosen for this request; the others of its step are not touched."""
        asked_for_it = isinstance(error, NoTokenLeft)
        reason = m.FailReason.INVALID_REQUEST if asked_for_it else m.FailReason.ENGINE_ERROR
        self._endings.fail(request, reason, str(error))
        if isinstance(error, DecodeFailed) and self._isolation.found_bad_numbers():
            self._must_rebuild = True  # once the others of this step have their tokens

    def _keep_logits(self, request: Request, row: int) -> None:
        """Those of the prompt's last position: an exact repeat then needs no decode."""
        if self._backend.info.can_cut:
            request.tip_logits = self._backend.logits(row)
            self.known_logits.put(self._cache.prompt_key(request), request.tip_logits)

    def _accept(self, request: Request, token: int) -> None:
        now = time.monotonic()
        first = not request.n_generated
        request.hold(request.accept(token, self._backend, now))
        self.tokens_generated += 1
        self._endings.deliver_if_due(request, now, first=first)
        if request.is_finished:
            self._guesses.trim(request)
            self._endings.finish(request)
        elif first:
            self._cache.save(request, request.prompt_save_reason, request.n_prompt)
        else:
            self._cache.save_block(request)
