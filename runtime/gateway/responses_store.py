"""Responses that have ended, as long as there is room: whole items, so that a chat can go on.

It is in the memory of the ledger, for all workers, with a log by which its next process has it too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Any, Final, Protocol

import msgspec

from runtime.gateway.accounts import Incarnation
from runtime.gateway.wire.bodies import encode

STORE_BYTES: Final = 64 << 20
UNENDED: Final = ("queued", "in_progress")


class Stored(msgspec.Struct, frozen=True):
    """One response, and what it answers."""

    id: str
    owner: str
    """Name of the key whose request it was; others do not find it."""
    previous: str | None
    """The response that it continues."""
    response: bytes
    """JSON."""
    input: bytes
    """Items of its request, as a JSON list."""
    is_running: bool = False
    """It is generated in the background."""
    number: int = 0
    """Of the worker that generates it."""
    started_ns: int = 0
    """When that has started, by the monotonic clock."""

    @property
    def n_bytes(self) -> int:
        return len(self.response) + len(self.input)

    def as_response(self) -> dict[str, Any]:
        """The object."""
        found: dict[str, Any] = msgspec.json.decode(self.response)
        return found

    def input_items(self) -> list[dict[str, Any]]:
        """What was sent."""
        found: list[dict[str, Any]] = msgspec.json.decode(self.input)
        return found

    def items(self) -> list[dict[str, Any]]:
        """What was sent, and what was answered."""
        return [*self.input_items(), *self.as_response()["output"]]


def stored(
    response: dict[str, Any], sent: list[dict[str, Any]], owner: str, who: Incarnation
) -> Stored:
    """A response to be kept; ``who`` generates it."""
    return Stored(
        response["id"],
        owner,
        response["previous_response_id"],
        encode(response),
        encode(sent),
        response.get("status") in UNENDED,
        who.number,
        who.started_ns,
    )


def ended(one: Stored) -> Stored:
    """A response of a worker that is gone, as it is now."""
    error = {
        "code": "server_error",
        "message": "the process that generated this response has ended; send its request again",
    }
    failed = encode({**one.as_response(), "status": "failed", "error": error})
    return Stored(one.id, one.owner, one.previous, failed, one.input)


class Log(Protocol):
    """Where the store's content outlives its process."""

    def keep(self, one: Stored) -> None:
        """It is stored from now on."""

    def drop(self, name: str) -> None:
        """It is not."""

    def tidy(self, kept: Iterable[Stored], n_bytes: int) -> None:
        """There may be records that count no more."""


class ResponseStore:
    """Keeps the responses that were used last, up to a number of bytes."""

    def __init__(self, max_bytes: int = STORE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._kept: OrderedDict[str, Stored] = OrderedDict()
        self._log: Log | None = None

    def begin_log(self, log: Log, found: Iterable[Stored]) -> None:
        """``found`` is what a predecessor had stored."""
        for one in found:
            self._put(one)
        self._log = log

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def n_bytes(self) -> int:
        return self._n_bytes

    def keep(self, one: Stored) -> None:
        """Keep it; those that were not used for longest make room. One too big is not kept."""
        self._put(one)
        if self._log is not None:
            if one.id in self._kept:
                self._log.keep(one)
            self._log.tidy(self._kept.values(), self._n_bytes)

    def _put(self, one: Stored) -> None:
        self._drop(one.id)
        self._kept[one.id] = one
        self._n_bytes += one.n_bytes
        while self._n_bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))

    def find(self, name: str, owner: str) -> Stored | None:
        """The response with this id, for the key that it belongs to."""
        found = self._kept.get(name)
        if found is None or found.owner != owner:
            return None
        self._kept.move_to_end(name)
        return found

    def chain(self, name: str, owner: str) -> tuple[list[Stored], str | None]:
        """A response and all that it continues, oldest first; and the id that is missing."""
        found: list[Stored] = []
        wanted: str | None = name
        while wanted is not None:
            one = self._kept.get(wanted)
            if one is None or one.owner != owner:
                return [], wanted
            found.append(one)
            wanted = one.previous
        # One that is dropped ends the use of all after it, so none goes before those.
        for one in found:
            self._kept.move_to_end(one.id)
        return found[::-1], None

    def forget(self, name: str, owner: str) -> Stored | None:
        """Drop it; None: it is not there."""
        found = self.find(name, owner)
        if found is not None:
            self._drop(name)
        return found

    def fail_left(self, who: Incarnation, continued: Collection[str]) -> None:
        """What the predecessors of this worker had not ended has failed, unless it goes on here."""
        for one in list(self._kept.values()):
            is_left = one.is_running and one.number == who.number
            if is_left and one.started_ns < who.started_ns and one.id not in continued:
                self.keep(ended(one))

    def _drop(self, name: str) -> None:
        found = self._kept.pop(name, None)
        if found is not None:
            self._n_bytes -= found.n_bytes
            if self._log is not None:
                self._log.drop(name)
