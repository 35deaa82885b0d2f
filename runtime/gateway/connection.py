"""What an answer needs of the connection it goes to, beside ASGI's ``send`` and ``receive``."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from socket import AF_UNIX, socket
from typing import TYPE_CHECKING, Any, Final

from runtime.gateway.direct import Writer
from runtime.gateway.stream_log import (
    CONNECTIONS,
    STREAMS,
    LoggedHead,
    ReceivedLog,
    StreamLog,
    accepted,
    is_countable,
)
from runtime.gateway.tap import Tap

if TYPE_CHECKING:
    from runtime.gateway.keys import Key
    from runtime.gateway.service import Birth
    from supervision.shelf import ShelfClient

CONNECTION: Final = "llama_actors.connection"
"""Key of the scope under which a connection of our own server is found."""
_SECRET: Final = frozenset({b"authorization", b"x-api-key", b"api-key", b"cookie"})


@dataclass(slots=True)
class Arrival:
    """A connection that comes next, or has come just now."""

    id: str = field(default_factory=lambda: secrets.token_hex(8))
    received: ReceivedLog | None = None
    """None: it cannot be continued by another process."""

    @classmethod
    def prepare(cls, shelf: ShelfClient, worker: int, n_taken: int = 0) -> Arrival:
        """All that can be done before a connection is there which can be continued."""
        found = cls()
        place = f"{CONNECTIONS}{worker}/{found.id}"
        found.received = ReceivedLog.prepare(shelf, place, n_taken)
        return found

    def keep(self, sock: socket) -> None:
        """Put the connection on the shelf, if it can be continued."""
        if self.received is not None and not self.received.keep(sock):
            self.received = None

    def drop(self) -> None:
        """It is not continued."""
        if self.received is not None:
            self.received.drop()
            self.received = None


def logged_head(
    call_id: str, connection_id: str, scope: Any, body: bytes, key: Key, birth: Birth, base: int = 0
) -> LoggedHead:
    """What a log begins with."""
    return LoggedHead(
        call_id=call_id,
        connection_id=connection_id,
        method=scope["method"],
        path=scope["path"],
        query=scope["query_string"],
        headers=[(name, value) for name, value in scope["headers"] if name not in _SECRET],
        body=body,
        key=key,
        answer_id=birth.id,
        created=birth.created,
        seed=birth.seed,
        base=base,
        at=time.time(),
    )


@dataclass(slots=True)
class Connection:
    """One connection of this worker."""

    tap: Tap
    is_paused: Callable[[], bool]
    """Whether more was written than the peer reads at present."""
    shelf: ShelfClient | None = None
    worker: int = 0
    id: str = ""
    writer: Writer | None = None
    """Writes parts of the answer that is given, past ASGI."""
    _finishing: StreamLog | None = None
    """Of the last answer, of which the kernel may not have all yet."""

    @property
    def is_unix(self) -> bool:
        sock: socket | None = self.tap.get_extra_info("socket")
        return sock is not None and sock.family == AF_UNIX

    def _continuable(self) -> socket | None:
        """The socket, if another process can go on with it."""
        sock: socket | None = self.tap.get_extra_info("socket")
        is_plain = self.tap.get_extra_info("sslcontext") is None
        return sock if sock is not None and is_plain and is_countable(sock) else None

    def begin_log(
        self, call_id: str, scope: Any, body: bytes, key: Key, birth: Birth
    ) -> StreamLog | None:
        """Log the answer to a request that has come; None where it cannot be continued."""
        sock = self._continuable()
        if self.shelf is None or sock is None:
            return None
        base = accepted(sock) + self.tap.get_write_buffer_size()
        logged = logged_head(call_id, self.id, scope, body, key, birth, base)
        name = f"{STREAMS}{self.worker}/{call_id}"
        log = StreamLog.begin(self.shelf, name, sock, logged)
        self.tap.log = log
        if self._finishing is not None:  # two logs of one connection cannot both be continued
            self._finishing.drop()
            self._finishing = None
        if log is not None and self.tap.received is not None:
            self.tap.received.clear()  # after the log is there: one of the two has the request
        return log

    def end_log(self, log: StreamLog, *, is_complete: bool) -> None:
        """The answer is over: it is complete, or its client is gone."""
        if self.tap.log is log:
            self.tap.log = None
        if is_complete:
            self._finishing = log
            log.finish(self.tap.transport)
            return
        if self.tap.received is not None:
            self.tap.received.answers()
        log.drop()
