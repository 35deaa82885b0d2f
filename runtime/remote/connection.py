"""Requests to a gateway, each on a connection of its own: whole answers, and streams of events."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlencode

from runtime import errors
from runtime.remote.address import GatewayAddress
from runtime.remote.failures import broken, cut_off, not_ours, refusal
from supervision.frozen import frozen

CONNECT_S: Final = 10.0
SILENT_S: Final = 120.0
"""A stream shows a comment every second or so; one that shows nothing for so long is dead."""
WHOLE_S: Final = 600.0
"""Of an answer that comes as one: work on a large cache takes its time."""
MAX_LINE: Final = 64 << 20
MAX_ERROR: Final = 1 << 20
JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
AGENT: Final = "llama-actors-cli"


@frozen
class _Opened:
    """A connection, and the answer whose head has been read from it."""

    connection: http.client.HTTPConnection
    socket: socket.socket
    answer: http.client.HTTPResponse

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


class Requests:
    """Sends requests to one gateway. Raises the errors of ``runtime.errors``."""

    def __init__(self, address: GatewayAddress) -> None:
        self.address = address

    def get(self, path: str, **query: str | int | None) -> Any:
        """The JSON of an answer; parameters that are None are left out."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._whole("GET", f"{path}?{urlencode(given)}" if given else path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON of an answer."""
        return self._whole("POST", path, body)

    def events(self, path: str, body: Mapping[str, Any]) -> EventStream:
        """The events of an answer, as they come."""
        opened = self._open("POST", path, {**body, "stream": True}, SILENT_S)
        kind = opened.answer.headers.get_content_type()
        if kind != EVENTS:
            opened.close()
            raise not_ours(self.address, f"it sent {kind}, and no events")
        return EventStream(self.address, opened)

    def _whole(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        opened = self._open(method, path, body, WHOLE_S)
        with contextlib.closing(opened), _translated(self.address):
            raw = opened.answer.read()
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            raise not_ours(self.address, "its answer is no JSON") from None

    def _open(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float
    ) -> _Opened:
        """An answer with status 200, its head read."""
        raw = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        connection = _connection(self.address)
        try:
            with _translated(self.address):
                connection.connect()
                taken = connection.sock  # http.client forgets it where the answer ends with it
                taken.settimeout(timeout_s)
                connection.request(method, f"{self.address.prefix}{path}", raw, self._headers())
                answer = connection.getresponse()
                if answer.status != http.HTTPStatus.OK:
                    headers = {name.lower(): value for name, value in answer.getheaders()}
                    said = answer.read(MAX_ERROR)
                    raise refusal(self.address, answer.status, headers, said)
        except BaseException:
            connection.close()
            raise
        return _Opened(connection, taken, answer)

    def _headers(self) -> dict[str, str]:
        found = {"accept": f"{JSON}, {EVENTS}", "content-type": JSON, "user-agent": AGENT}
        if self.address.key:
            found["authorization"] = f"Bearer {self.address.key}"
        return found


class EventStream:
    """Server-sent events: names and data. Iterate; ``close`` tells the gateway to stop."""

    def __init__(
        self,
        address: GatewayAddress,
        opened: _Opened,
    ) -> None:
        self._address = address
        self._opened = opened

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Until the answer's end; an event that is cut off is left out."""
        name, data = "", b""
        with _translated(self._address):
            while line := self._opened.answer.readline(MAX_LINE + 1):
                if len(line) > MAX_LINE:
                    raise not_ours(self._address, f"a line of more than {MAX_LINE} bytes")
                text = line.rstrip(b"\r\n")
                if not text and data:
                    yield name, self._value(data)
                    name, data = "", b""
                elif text.startswith(b"event: "):
                    name = text[7:].decode("utf-8", "replace")
                elif text.startswith(b"data: "):
                    data += text[6:]

    def _value(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise not_ours(self._address, "an event is no JSON") from None

    def cut_off(self) -> errors.GatewayUnreachable:
        """The error of a stream that has ended before its last event."""
        return errors.GatewayUnreachable(cut_off(self._address))

    def stop(self) -> None:
        """End the connection from another thread than the one that reads."""
        with contextlib.suppress(OSError):
            self._opened.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection; the gateway cancels what it has begun for it."""
        self.stop()
        self._opened.close()


@contextlib.contextmanager
def _translated(address: GatewayAddress) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise broken(address, error) from error


def _connection(address: GatewayAddress) -> http.client.HTTPConnection:
    if address.socket:
        return _UnixConnection(address.socket)
    if not address.has_tls:
        return http.client.HTTPConnection(address.host, address.port, timeout=CONNECT_S)
    import ssl  # here: it takes milliseconds, and most gateways have no certificate

    try:
        context = ssl.create_default_context(
            cafile=None if address.ca_file is None else str(address.ca_file)
        )
    except OSError as error:
        raise errors.ConfigError(
            "--ca", f"{address.ca_file} holds no certificates in PEM: {error.strerror or error}"
        ) from error
    return http.client.HTTPSConnection(
        address.host, address.port, timeout=CONNECT_S, context=context
    )


class _UnixConnection(http.client.HTTPConnection):
    """The same by a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=CONNECT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_S)
        self.sock.connect(self._path)
