"""One decode at a time, which other threads may abort. Runs on the engine thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from native.backend import Backend, Batch
from native.errors import DecodeAborted, NativeError


class StepOverdue(Exception):
    """A decode took longer than a step may, and was aborted."""


class AbortableDecoder:
    """Runs decodes of ``backend``, each for a set of requests.

    ``guard`` is entered around each decode, so that one that does not end is noticed.
    """

    def __init__(self, backend: Backend, guard: Callable[[], AbstractContextManager[None]]) -> None:
        self._backend = backend
        self._guard = guard
        self._lock = threading.Lock()
        self._in_step: frozenset[str] = frozenset()
        self._began: float | None = None
        self._overdue_s = 0.0
        self.cancelled: set[str] = set()
        """Ids of requests that are to end; the engine clears it when they have."""

    def interrupt(self, request_id: str) -> None:
        """From any thread: abort the running decode if it computes this request."""
        with self._lock:
            self.cancelled.add(request_id)
            if request_id in self._in_step:
                self._backend.request_abort()

    def interrupt_all(self) -> None:
        """From any thread: abort the running decode."""
        self._backend.request_abort()

    def interrupt_overdue(self, budget_s: float) -> None:
        """From any thread: abort the running decode if it has run longer than this many seconds."""
        with self._lock:
            took_s = 0.0 if self._began is None else time.monotonic() - self._began
            if took_s > budget_s:
                self._overdue_s = took_s
                self._backend.request_abort()

    def may_begin(self, request_ids: Iterable[str]) -> bool:
        """Announce a decode for these requests; False if one of them was cancelled meanwhile."""
        with self._lock:
            in_step = frozenset(request_ids)
            if in_step & self.cancelled:
                return False
            self._in_step = in_step
            return True

    def run(self, batch: Batch) -> NativeError | StepOverdue | None:
        """Compute the batch; the error, if it failed."""
        self._began = time.monotonic()
        failed: NativeError | None = None
        try:
            with self._guard():
                self._backend.decode(batch)
        except NativeError as error:
            failed = error
        finally:
            with self._lock:
                self._in_step, self._began = frozenset(), None
                overdue_s, self._overdue_s = self._overdue_s, 0.0
                self._backend.clear_abort()
        if isinstance(failed, DecodeAborted) and overdue_s:
            return StepOverdue(f"one step took {overdue_s:.0f} s and was cut short")
        return failed
