"""Buffers of callers, viewed as plain bytes for the length of one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from native.errors import InvalidParam


@contextmanager
def borrowed(source: Any, name: str, *, writable: bool = False) -> Iterator[memoryview]:
    """View ``source`` as plain bytes for the length of one call.

    The view is released at the end, so that a caller can close its mmap afterwards.
    """
    try:
        view = memoryview(source)
    except TypeError:
        raise InvalidParam(
            name, type(source).__name__, "an object with the buffer protocol"
        ) from None
    with view:
        if not view.contiguous or (writable and view.readonly):
            raise InvalidParam(name, "buffer", "contiguous" + (" and writable" if writable else ""))
        with view.cast("B") as plain:
            yield plain
