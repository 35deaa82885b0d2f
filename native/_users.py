"""Counts the threads that use a vocabulary: many at once, and none once it is closed."""

from __future__ import annotations

import threading

from native.errors import BackendClosed


class Users:
    """Entered around each use, from any thread. Only ``close`` waits, until the last use has ended.

    A lock would make the engine wait while another thread tokenises a megabyte of text, and that
    thread wait for a decode. llama.cpp's vocabulary does not change, so it only has to exist.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._closed = False

    def __enter__(self) -> None:
        with self._changed:
            if self._closed:
                raise BackendClosed("the backend was closed")
            self._inside += 1

    def __exit__(self, *exc: object) -> None:
        with self._changed:
            self._inside -= 1
            if not self._inside and self._closed:
                self._changed.notify_all()

    def close(self) -> None:
        """Refuse further uses, and wait for the present ones."""
        with self._changed:
            self._closed = True
            while self._inside:
                self._changed.wait()
