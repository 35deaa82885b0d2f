"""One HTTP connection: uvicorn's protocol with deadlines and limits, which it has none of.

A peer may be silent, drip its header lines or its body, send lines or bodies without end, or read
nothing of an answer. Each of these is noticed here, before the application has a part in it, and
ends the connection with an answer that states why, where one can still be read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from socket import SHUT_RDWR
from typing import Any, ClassVar, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from runtime.gateway.connection import CONNECTION, Arrival, Connection
from runtime.gateway.direct import Writer
from runtime.gateway.tap import Tap
from runtime.gateway.wire.errors import error_response
from runtime.gateway.wire.failure import Failure, Fault
from runtime.settings.gateway import GatewaySettings
from supervision.shelf import ShelfClient

LINGER_S: Final = 3.0
"""How long what a refused peer still sends is read and dropped: closing at once would reset the
connection, and it would not see the answer."""
SETTLE_S: Final = 0.05
SMALL_BODY: Final = 64 << 10
"""Bytes. No more than these are always read, however much others send."""
RAW_PER_BODY: Final = 4
"""Bytes on the wire for each byte of a body, at most: chunks have lines of their own."""
_MIB: Final = 1 << 20


class _Aborted(Exception):
    """Ends the parser's work on this connection."""


class Bodies:
    """The bodies that one worker reads or answers, together."""

    def __init__(self) -> None:
        self.n_bytes = 0


class GuardedProtocol(HttpToolsProtocol):
    """See the module. What is of a worker is set on a subclass."""

    settings: GatewaySettings = GatewaySettings()
    per_address: ClassVar[Counter[str]] = Counter()
    bodies: ClassVar[Bodies] = Bodies()
    shelf: ShelfClient | None = None
    worker: int = 0
    refused: Callable[[int], None] = staticmethod(lambda _: None)
    """Called with the status of each answer that is given here."""

    def __init__(self, *args: Any, arrival: Arrival | None = None, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._arrival = arrival or Arrival("", None)
        self._deadline: asyncio.TimerHandle | None = None
        self._settling: asyncio.TimerHandle | None = None
        self._in_head = False
        self._n_head = 0
        self._n_body = 0
        self._n_counted = 0
        """Of this body, in ``bodies``."""
        self._n_held = 0
        """Of all bodies of this connection: two requests may come at once."""
        self._n_raw = 0
        self._n_trailers = 0
        self._refusal: tuple[int, str, str] | None = None
        self._is_lingering = False
        self._is_left = False
        self._address = ""
        self._received = self._arrival.received

    # ── the connection ──────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        tap = self._tap = Tap(transport, self.settings.stalled_s)
        super().connection_made(cast(asyncio.Transport, tap))
        tap.received, tap.lingers = self._received, self._lingers
        self._connection = Connection(
            tap,
            self._is_paused,
            self.shelf,
            self.worker,
            self._arrival.id,
            Writer(self._is_open, self._write_part),
        )
        self._address = self.client[0] if self.client else ""
        self.per_address[self._address] += 1
        settings = self.settings
        if len(self.connections) > settings.max_connections:
            self._refuse(503, "overloaded", "this gateway has no more connections; try again later")
        elif (
            self._address
            and settings.keys_file is not None
            and self.per_address[self._address] > settings.max_per_address
        ):
            self._refuse(
                503, "overloaded", f"more than {settings.max_per_address} connections from there"
            )
        else:
            self._within(settings.idle_s, "no request came")

    def shutdown(self) -> None:
        """The server stops. A connection without an answer is left on the shelf to the next one.

        If it were closed, a request that is on its way would be lost. There is no next one where
        the launcher stops too, which closes all that is left there.
        """
        is_busy = self._running() is not None or self.transport.get_write_buffer_size()
        if self._received is None or is_busy or self._is_lingering:
            super().shutdown()
            return
        self._is_left = True
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        self._stop_settling()
        self._tap.lost()
        self._is_lingering = True
        self._release()
        left = self.per_address[self._address] - 1
        if left > 0:
            self.per_address[self._address] = left
        else:
            self.per_address.pop(self._address, None)
        if self._is_left:
            if self._received is not None:
                self._received.close()
        else:
            with contextlib.suppress(OSError):  # the shelf may still have it open
                self._tap.get_extra_info("socket").shutdown(SHUT_RDWR)
            if self._received is not None:
                self._received.drop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_lingering:
            return
        cycle = self._running()
        if cycle is not None and not cycle.more_body:
            # A request that does not wait for the answer to the last one. No client needs that, and
            # it has no part in this answer: its client sends it again on another connection.
            cycle.keep_alive = False
            if self._received is not None:
                self._received.drop()
            return
        if self._received is not None:
            self._received.add(data)
        if not self._in_head and cycle is None:
            self._stop_settling()
            self._begin_head()
        self._n_raw += len(data)
        if not self._in_head and self._n_raw > RAW_PER_BODY * self.settings.max_body + _MIB:
            self._refuse(413, "too_large", self._body_too_big())
            return
        super().data_received(data)
        if self._in_head and self._refusal is None:
            self._n_head += len(data)
            if self._n_head > self.settings.max_header_bytes:
                self._refuse_head()

    def feed(self, data: bytes) -> None:
        """Read what had come on this connection before it came here; it is logged already."""
        received, self._received = self._received, None
        self.data_received(data)
        self._received = received

    def _is_paused(self) -> bool:
        return self.flow.write_paused

    def _is_open(self) -> bool:
        """Whether a part of an answer can be written now, as uvicorn's ``send`` would do it."""
        cycle: RequestResponseCycle | None = self.cycle
        return (
            cycle is not None
            and cycle.chunked_encoding is True
            and not (cycle.response_complete or cycle.disconnected or self.flow.write_paused)
        )

    def _write_part(self, body: bytes) -> None:
        self._tap.write(b"%x\r\n%b\r\n" % (len(body), body))

    def _running(self) -> RequestResponseCycle | None:
        """The request that is read or answered now."""
        cycle: RequestResponseCycle | None = self.cycle
        return None if cycle is None or cycle.response_complete else cycle

    def _within(self, seconds: float, why: str) -> None:
        """End the connection unless ``_stop_deadline`` is called before."""
        self._stop_deadline()
        self._deadline = self.loop.call_later(seconds, self._too_late, why)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self, why: str) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        cycle = self._running()
        if self._in_head or (cycle is not None and cycle.more_body):
            self._refuse(408, "timeout", f"{why} in time")
        else:
            self.transport.close()

    # ── the head ────────────────────────────────────────────────────────────────────────────────

    def _begin_head(self) -> None:
        self._in_head, self._n_head, self._n_body = True, 0, 0
        self._n_raw = self._n_trailers = self._n_counted = 0
        self._within(self.settings.head_s, "the header lines did not come")

    def on_message_begin(self) -> None:
        if not self._in_head:
            self._begin_head()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.settings.max_header_bytes:
            self._abort(431, "invalid", "the path is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:  # after the body; nothing here reads it
            self._n_trailers += 1
            if self._n_trailers > self.settings.max_headers:
                self._abort(400, "invalid", "too many lines after the body")
            return
        super().on_header(name, value)
        if len(self.headers) > self.settings.max_headers:
            most = self.settings.max_headers
            self._abort(431, "invalid", f"more than {most} header lines; at most {most} are read")

    def on_headers_complete(self) -> None:
        self._in_head = False
        names = [name for name, _ in self.headers]
        lengths = [value for name, value in self.headers if name == b"content-length"]
        if (b"transfer-encoding" in names and lengths) or len(lengths) > 1:
            self._abort(400, "invalid", "the length of the body is given twice")
        if sum(len(name) + len(value) + 4 for name, value in self.headers) > (
            self.settings.max_header_bytes
        ):
            self._abort(431, "invalid", self._head_too_big())
        n_body = int(lengths[0]) if lengths and lengths[0].isdigit() else 0
        if n_body > self.settings.max_body:
            self._abort(413, "too_large", self._body_too_big())
        self._check_room(n_body)
        self._within(self.settings.body_s + n_body / _MIB, "the body did not come")
        cast(dict[str, Any], self.scope)[CONNECTION] = self._connection
        super().on_headers_complete()

    def _refuse_head(self) -> None:
        self._refuse(431, "invalid", self._head_too_big())

    def _head_too_big(self) -> str:
        return f"the header lines have more than {self.settings.max_header_bytes} bytes"

    # ── the body ────────────────────────────────────────────────────────────────────────────────

    def on_body(self, body: bytes) -> None:
        self._n_body += len(body)
        if self._n_body > self.settings.max_body:
            self._abort(413, "too_large", self._body_too_big())
        if self._n_body > SMALL_BODY:
            self._check_room(self._n_body)
            n_new = self._n_body - self._n_counted
            self.bodies.n_bytes += n_new
            self._n_held += n_new
            self._n_counted = self._n_body
        super().on_body(body)

    def _check_room(self, n_body: int) -> None:
        """Refused where so many bytes of this body are too much beside those of others."""
        n_all = self.bodies.n_bytes - self._n_counted + n_body
        if n_body > SMALL_BODY and n_all > self.settings.max_bodies:
            self._abort(
                503, "overloaded", "the bodies of other requests leave no room; try again later"
            )

    def _release(self) -> None:
        """What has come on this connection is not needed any more."""
        self.bodies.n_bytes -= self._n_held
        self._n_held = 0

    def on_message_complete(self) -> None:
        self._stop_deadline()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if not self.pipeline:
            self._release()
        if self._is_lingering or self._lingers():
            return
        self._settle()
        super().on_response_complete()

    def _settle(self) -> None:
        """What has come is answered once the kernel has the answer."""
        self._settling = None
        if self._received is None:
            return
        if self.transport.get_write_buffer_size():
            self._settling = self.loop.call_later(SETTLE_S, self._settle)
        else:
            self._received.clear()

    def _stop_settling(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None

    def _body_too_big(self) -> str:
        return f"the body has more than {self.settings.max_body} bytes, which is the most"

    def _lingers(self) -> bool:
        """Whether a body still comes that nothing reads any more; it is read and dropped."""
        cycle: RequestResponseCycle | None = self.cycle
        is_unread = cycle is not None and cycle.response_complete and cycle.more_body
        if self._is_lingering or not is_unread:
            return False
        self._linger()
        return True

    def _linger(self) -> None:
        self._stop_deadline()
        self._is_lingering = True
        if self._received is not None:
            self._received.drop()  # nothing of this connection is to be continued
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self._close)

    # ── refusals ────────────────────────────────────────────────────────────────────────────────

    def _abort(self, status: int, fault: str, message: str) -> None:
        """From inside the parser."""
        self._refusal = (status, fault, message)
        raise _Aborted(message)

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP, or ``_abort`` was called."""
        self._refuse(*(self._refusal or (400, "invalid", msg)))

    def _refuse(self, status: int, fault: str, message: str) -> None:
        """Answer, unless an answer has begun; then read on for a moment, and close."""
        self._in_head = False
        self._release()
        cycle = self._running()
        if cycle is not None:
            has_begun = cycle.response_started
            cycle.disconnected = True  # the application receives that its client is gone
            cycle.message_event.set()
            if has_begun:
                self._stop_deadline()
                self._is_lingering = True
                self.transport.abort()
                return
        path = getattr(self, "url", b"").decode("latin-1")
        failure = Failure(Fault(fault) if fault != "timeout" else Fault.INVALID, message)
        self.transport.write(error_response(status, failure, path))
        self.refused(status)
        self._linger()

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
