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

    A decode of background requests alone is aborted for an interactive one that comes, where that
    saves more than it loses: while less than half of it is done, by what such a decode took last.
    """

    def __init__(self, backend: Backend, guard: Callable[[], AbstractContextManager[None]]) -> None:
        self._backend = backend
        self._guard = guard
        self._can_cut = backend.info.can_cut
        self._can_step_back = backend.info.can_step_back
        """What an abort leaves half done has to be removed; else all is computed again."""
        self._lock = threading.Lock()
        self._in_step: frozenset[str] = frozenset()
        self._began: float | None = None
        self._overdue_s = 0.0
        self._gives_way_s = 0.0
        """Of the announced decode, the seconds in which it is aborted for an interactive request.
        """
        self._is_asked = False
        self._took_s: dict[int, float] = {}
        """Of the last decode of each size; sizes are powers of two."""
        self.aborted_for_others = 0
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

    def give_way(self) -> None:
        """From any thread: an interactive request is in the queue."""
        with self._lock:
            self._is_asked = True
            began = self._began
            if began is not None and time.monotonic() - began < self._gives_way_s:
                self.aborted_for_others += 1
                self._gives_way_s = 0.0  # once: several may come
                self._backend.request_abort()

    def looked(self) -> None:
        """The queue is about to be read: what is in it has its turn."""
        self._is_asked = False

    def may_begin(self, request_ids: Iterable[str], n_rows: int, *, gives_way: bool) -> bool:
        """Announce a decode for these requests.

        False if one of them was cancelled meanwhile; or if an interactive request has come, and the
        decode ``gives_way`` to those.
        """
        with self._lock:
            in_step = frozenset(request_ids)
            if in_step & self.cancelled or (gives_way and self._is_asked):
                return False
            self._in_step = in_step
            took_s = self._took_s.get(n_rows.bit_length(), 0.0)
            one_each = n_rows == len(in_step)
            can_abort = self._can_cut or (self._can_step_back and one_each)
            self._gives_way_s = took_s / 2 if gives_way and can_abort else 0.0
            return True

    def run(self, batch: Batch) -> NativeError | StepOverdue | None:
        """Compute the batch; the error, if it failed."""
        began = self._began = time.monotonic()
        failed: NativeError | None = None
        try:
            with self._guard():
                self._backend.decode(batch)
            self._took_s[len(batch).bit_length()] = time.monotonic() - began
        except NativeError as error:
            failed = error
        finally:
            with self._lock:
                self._in_step, self._began, self._gives_way_s = frozenset(), None, 0.0
                overdue_s, self._overdue_s = self._overdue_s, 0.0
                self._backend.clear_abort()
        if isinstance(failed, DecodeAborted) and overdue_s:
            return StepOverdue(f"one step took {overdue_s:.0f} s and was cut short")
        return failed
