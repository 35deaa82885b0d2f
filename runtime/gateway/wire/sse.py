"""Server-sent events as the clients of these APIs read them: one ``data`` line a frame, LF only."""

from __future__ import annotations

from typing import Final

CONTENT_TYPE: Final = "text/event-stream; charset=utf-8"
COMMENT: Final = b":\n\n"
"""Shows that the stream lives; every client skips it."""
COMMENT_LINE: Final = b":\n"
"""The same in a stream whose frames have ids: there openai-python takes an empty line for the end
of a frame, though no field came before it, and fails to read its data."""
DONE: Final = b"data: [DONE]\n\n"


def data(payload: bytes) -> bytes:
    """A frame without a name."""
    return b"data: " + payload + b"\n\n"


def named(name: bytes, payload: bytes, number: int | None = None) -> bytes:
    """A frame with a name; ``number`` is where a client that lost the connection goes on."""
    place = b"" if number is None else b"id: %d\n" % number
    return b"event: " + name + b"\n" + place + b"data: " + payload + b"\n\n"
