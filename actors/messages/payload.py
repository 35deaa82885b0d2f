"""Bytes too big for a message: they stay with the sender; the message states where to read them.

No message carries more than 64 KiB, so that none delays the others. A prompt of 100,000 tokens is
bigger than that, so the sender keeps it in an anonymous memory file and the receiver reads it
through ``/proc``. Only processes of the same user can open it, nothing has to be cleaned up, and
the bytes are freed with the sender's process.
"""

from __future__ import annotations

import os

from supervision.frozen import frozen

INLINE_LIMIT_BYTES = 10 * 1024  # three of them and the rest of a request: below 64 KiB


class PayloadGone(Exception):
    """There are no bytes: the process that held them has ended, or they were never a payload."""


@frozen
class Spilled:
    """Where a payload lies: a path below ``/proc`` that lives as long as its sender keeps it."""

    path: str
    n_bytes: int


Payload = bytes | Spilled


class PayloadKeeper:
    """Holds a spilled payload open for its reader; close it when the request has ended."""

    def __init__(self, data: bytes) -> None:
        self._fd: int | None = None
        self.payload: Payload = data
        if len(data) > INLINE_LIMIT_BYTES:
            self._fd = os.memfd_create("llama-actors-payload", os.MFD_CLOEXEC)
            with os.fdopen(os.dup(self._fd), "wb") as file:
                file.write(data)
            self.payload = Spilled(f"/proc/{os.getpid()}/fd/{self._fd}", len(data))

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def read_payload(payload: Payload) -> bytes:
    """The bytes of ``payload``, wherever they lie; PayloadGone if there are none."""
    if isinstance(payload, bytes):
        return payload
    if not isinstance(payload, Spilled):  # a message is what its sender made of it
        raise PayloadGone(f"a {type(payload).__name__} is no payload")
    try:
        with open(payload.path, "rb") as file:
            data = file.read(payload.n_bytes + 1)
    except OSError as error:
        raise PayloadGone(f"cannot read {payload.path}: {error.strerror}") from error
    if len(data) != payload.n_bytes:
        raise PayloadGone(f"{payload.path} holds {len(data)} bytes, expected {payload.n_bytes}")
    return data
