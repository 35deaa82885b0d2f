"""Who uses a vocabulary just now: many at once, and none any more once it is closed."""

from __future__ import annotations

import threading

from native.errors import BackendClosed


class Users:
    """Entered around each use, from any thread. Nobody waits but ``close``, for the last of them.

    A lock would make the engine wait for somebody's megabyte of text, and that somebody for a
    decode; llama.cpp's vocabulary does not change, so only its end has to be kept out.
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
        """Let nobody in any more, and wait for those inside."""
        with self._changed:
            self._closed = True
            while self._inside:
                self._changed.wait()
