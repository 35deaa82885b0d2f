"""Server-sent events as the clients of these APIs read them: one ``data`` line a frame, LF only."""

from __future__ import annotations

from typing import Final

CONTENT_TYPE: Final = "text/event-stream; charset=utf-8"
COMMENT: Final = b":\n\n"
"""Shows that the stream lives; every client skips it."""
DONE: Final = b"data: [DONE]\n\n"


def data(payload: bytes) -> bytes:
    """A frame without a name."""
    return b"data: " + payload + b"\n\n"


def named(name: bytes, payload: bytes) -> bytes:
    """A frame with a name."""
    return b"event: " + name + b"\ndata: " + payload + b"\n\n"
