"""Compiles the grammars of requests on a thread of its own, before the engine has them.

A large one takes milliseconds, a hostile one a second or two until it is refused. Nothing else
waits for it: neither steps of the engine, nor requests without a grammar, nor those whose grammar
is known, which pass at once.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from actors import messages as m
from actors.engine.grammar_text import with_grammar
from actors.messages.errors import InvalidRequest, RequestRefused
from actors.model.job_queue import JobQueue
from native.errors import InvalidParam

if TYPE_CHECKING:
    from native.backend import Backend

CLOSE_WAIT_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class _Job:
    run: m.Run
    since: float


class GrammarService:
    """One thread, one queue. ``send`` takes refusals, ``run`` the requests that are ready.

    ``run`` also takes the cancel of a request, behind it.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        send: Callable[[object, object], None],
        run: Callable[[m.Run | m.CancelRun], None],
    ) -> None:
        self._backend = backend
        self._send = send
        self._run = run
        self._pending: dict[str, m.Run] = {}
        self._cancels: dict[str, m.CancelRun] = {}
        """Of requests that are here."""
        self._lock = threading.Lock()  # of the two above; held for moments
        self._jobs: JobQueue[_Job] = JobQueue(
            "grammars", "grammars", do=self._do, refuse=self._refuse
        )

    # ── called from the mailbox ─────────────────────────────────────────────────────────────────

    def take(self, run: m.Run) -> None:
        """Hand a request on: at once if it has no grammar, or one that was compiled before."""
        if run.request.grammar is None and not run.request.sampling.is_constrained:
            self._run(run)
            return
        with contextlib.suppress(RequestRefused):  # the thread refuses it
            ready = replace(run, request=with_grammar(run.request))
            if self._backend.has_grammar(ready.request.sampling):
                self._run(ready)
                return
        with self._lock:
            self._pending[run.request_id] = run
        self._jobs.put(_Job(run, time.monotonic()))

    def cancel(self, cancel: m.CancelRun) -> bool:
        """Whether the request is here; then its cancel follows it."""
        with self._lock:
            if cancel.request_id not in self._pending:
                return False
            self._cancels[cancel.request_id] = cancel
            return True

    def close(self, reason: m.FailReason, detail: str) -> None:
        """End what is here with this reason. Wait a moment for the job that is under way."""
        self._jobs.close(reason, detail)
        with self._lock:
            left = list(self._pending.values())
        for run in left:
            self._fail(run, RequestRefused(reason, detail))
        self._jobs.wait_ended(CLOSE_WAIT_S)

    # ── the thread ──────────────────────────────────────────────────────────────────────────────

    def _do(self, job: _Job) -> None:
        asked = job.run.request
        ready = with_grammar(asked)
        try:
            self._backend.compile_grammar(ready.sampling)
        except InvalidParam as error:
            option = error.name if asked.grammar is None else asked.grammar.option
            raise InvalidRequest(f"{option} cannot be used: {error.allowed}") from error
        if ready.timeout_s is not None:
            left_s = max(0.0, ready.timeout_s - (time.monotonic() - job.since))
            ready = replace(ready, timeout_s=left_s)
        with self._lock:  # a cancel comes behind it
            here, cancel = self._forget(job.run)
            if here:
                self._run(replace(job.run, request=ready))
            if cancel is not None:
                self._run(cancel)

    def _refuse(self, job: _Job, refused: RequestRefused) -> None:
        self._fail(job.run, refused)

    def _fail(self, run: m.Run, why: RequestRefused) -> None:
        with self._lock:
            here, _ = self._forget(run)
        if here:
            failed = m.CompletionFailed(run.request.ref, why.reason, str(why), why.facts)
            self._send(run.reply_to, failed)
            self._send("inflight", m.RequestEnded(run.request_id))

    def _forget(self, run: m.Run) -> tuple[bool, m.CancelRun | None]:
        """Whether the request was here, and its cancel."""
        here = self._pending.pop(run.request_id, None) is not None
        return here, self._cancels.pop(run.request_id, None)
