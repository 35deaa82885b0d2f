"""The stored responses in a memory file on the shelf: the ledger's next process has them too."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

import msgspec

from runtime.gateway.responses_store import Stored
from runtime.gateway.shelf_log import ShelfLog
from supervision.shelf import ShelfClient

RESPONSES: Final = "gateway/responses"
"""Its name on the shelf."""
_LOG: Final = logging.getLogger("supervision.gateway_ledger")


class ResponsesLog:
    """See ``responses_store.Log``."""

    def __init__(self, shelf: ShelfClient, name: str = RESPONSES) -> None:
        """Read what a predecessor has left into ``found``, and go on with it."""
        self._log = ShelfLog(shelf, name)
        self.found: list[Stored] = []
        for one, raw in self._log.found.items():
            try:
                self.found.append(msgspec.msgpack.decode(raw, type=Stored))
            except msgspec.DecodeError:
                _LOG.warning("the stored response %s is damaged, and dropped", one)
        self._log.found.clear()

    def keep(self, one: Stored) -> None:
        """It is stored from now on."""
        self._log.put(one.id, msgspec.msgpack.encode(one))

    def drop(self, name: str) -> None:
        """It is not."""
        self._log.drop(name)

    def tidy(self, kept: Iterable[Stored], n_bytes: int) -> None:
        """Rewrite the file if most of it counts no more; ``n_bytes``: of ``kept``."""
        self._log.tidy(((one.id, msgspec.msgpack.encode(one)) for one in kept), n_bytes)
