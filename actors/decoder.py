"""One decode at a time, which other threads may cut short. Runs on the engine thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from native.backend import Backend, Batch
from native.errors import NativeError


class Decoder:
    """Runs decodes of ``backend`` and knows for which requests the present one works.

    ``guard`` is entered around each decode: who watches may mind one that does not end.
    """

    def __init__(self, backend: Backend, guard: Callable[[], AbstractContextManager[None]]) -> None:
        self._backend = backend
        self._guard = guard
        self._lock = threading.Lock()
        self._in_step: frozenset[str] = frozenset()
        self.cancelled: set[str] = set()
        """Ids of requests that are to end; the engine clears it when they have."""

    def interrupt(self, request_id: str) -> None:
        """Any thread: cut short the running decode if it works for this request."""
        with self._lock:
            self.cancelled.add(request_id)
            if request_id in self._in_step:
                self._backend.request_abort()

    def interrupt_all(self) -> None:
        """Any thread: cut short the running decode."""
        self._backend.request_abort()

    def may_begin(self, request_ids: Iterable[str]) -> bool:
        """Announce a decode for these requests; False if one of them was cancelled meanwhile."""
        with self._lock:
            in_step = frozenset(request_ids)
            if in_step & self.cancelled:
                return False
            self._in_step = in_step
            return True

    def run(self, batch: Batch) -> NativeError | None:
        """Compute the batch; what went wrong, if anything did."""
        try:
            with self._guard():
                self._backend.decode(batch)
        except NativeError as error:
            return error
        finally:
            with self._lock:
                self._in_step = frozenset()
                self._backend.clear_abort()
        return None
