"""A transport that shows a log every byte before it is written."""

from __future__ import annotations

import asyncio
from typing import Any

from runtime.gateway.stream_log import ReceivedLog, StreamLog


class Tap:
    """In place of the transport of a connection; all but ``write`` is the transport's own."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self._write = transport.write
        self.log: StreamLog | None = None
        self.received: ReceivedLog | None = None

    def write(self, data: bytes) -> None:
        if self.log is not None:
            self.log.wrote(data)
        elif self.received is not None:
            self.received.answers()
        self._write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)
