"""What an answer needs of the connection it goes to, beside ASGI's ``send`` and ``receive``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from socket import socket
from typing import TYPE_CHECKING, Any, Final

from runtime.gateway.stream_log import STREAMS, LoggedHead, StreamLog, accepted, is_countable
from runtime.gateway.tap import Tap

if TYPE_CHECKING:
    from runtime.gateway.keys import Key
    from runtime.gateway.service import Birth
    from supervision.shelf import ShelfClient

CONNECTION: Final = "llama_actors.connection"
"""Key of the scope under which a connection of our own server is found."""
_SECRET: Final = frozenset({b"authorization", b"x-api-key", b"api-key", b"cookie"})


@dataclass(slots=True)
class Connection:
    """One connection of this worker."""

    tap: Tap
    is_paused: Callable[[], bool]
    """Whether more was written than the peer reads at present."""
    shelf: ShelfClient | None = None
    worker: int = 0

    def begin_log(
        self, call_id: str, scope: Any, body: bytes, key: Key, birth: Birth
    ) -> StreamLog | None:
        """Log the answer to a request that has come; None where it cannot be continued."""
        sock: socket | None = self.tap.get_extra_info("socket")
        is_plain = self.tap.get_extra_info("sslcontext") is None
        if self.shelf is None or sock is None or not is_plain or not is_countable(sock):
            return None
        logged = LoggedHead(
            call_id=call_id,
            method=scope["method"],
            path=scope["path"],
            query=scope["query_string"],
            headers=[(name, value) for name, value in scope["headers"] if name not in _SECRET],
            body=body,
            key=key,
            answer_id=birth.id,
            created=birth.created,
            seed=birth.seed,
            base=accepted(sock) + self.tap.get_write_buffer_size(),
            at=time.time(),
        )
        name = f"{STREAMS}{self.worker}/{call_id}"
        log = StreamLog.begin(self.shelf, name, sock, logged)
        self.tap.log = log
        return log

    def end_log(self, log: StreamLog, *, is_complete: bool) -> None:
        """The answer is over: it is complete, or its client is gone."""
        if self.tap.log is log:
            self.tap.log = None
        if is_complete:
            log.finish(self.tap.transport)
        else:
            log.drop()
