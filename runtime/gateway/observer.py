"""The stream of events that a page reads: requests as they change, and the node once a second."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

from runtime.client.async_stream import AsyncStream
from runtime.client.results import Completion
from runtime.gateway.board import Changes
from runtime.gateway.call import Call
from runtime.gateway.generation import Generation
from runtime.gateway.watch import Watch
from runtime.gateway.wire import sse
from runtime.gateway.wire.bodies import encode
from runtime.gateway.wire.failure import Failure
from runtime.gateway.wire.openai_errors import error_object
from runtime.gateway.wire.wanted import Answer, Head, Wanted

OPEN_S: Final = 900.0
"""A stream ends after this time; its reader opens the next one, and its key is checked again."""
_LOOK_S: Final = 0.5
_PLACE: Final = re.compile(r"([0-9]{1,20})-([0-9]{1,15})")


def place_of(last_event_id: str) -> tuple[int, int]:
    """The ledger's epoch and the number of the last change that a reader has; zeros: none."""
    found = _PLACE.fullmatch(last_event_id.strip())
    return (0, 0) if found is None else (int(found[1]), int(found[2]))


class Events(Generation):
    """Instead of replies: what has happened."""

    def __init__(self, call: Call, watch: Watch, place: tuple[int, int]) -> None:
        """``place``: see ``place_of``."""
        self._call, self._watch = call, watch
        self._epoch, self._last = place[0], place[1] or None
        wanted = Wanted(model="", kind="chat", inputs=(), is_stream=True)
        head = Head(id=call.birth.id, created=call.birth.created, model="")
        super().__init__(
            call.service, wanted, head, _EventsAnswer(), _never_begun, call.own_headers()
        )

    async def _events(self) -> AsyncGenerator[list[tuple[int, Any]]]:
        watch, service = self._watch, self._call.service
        ends_at = time.monotonic() + OPEN_S
        owner = None if self._call.key.is_admin else self._call.key.name
        n_snapshot: tuple[int, int] | None = None
        with watch.page():
            yield [(0, sse.named(b"hello", encode(self._hello())))]
            while time.monotonic() < ends_at and not service.is_draining:
                frames = self._news(owner)
                number = watch.epoch, watch.snapshot_number
                if owner is None and watch.snapshot and number != n_snapshot:
                    n_snapshot = number
                    frames += sse.named(b"snapshot", watch.snapshot)
                if frames:
                    yield [(0, frames)]
                    continue  # more may have come while that was sent
                await watch.changed(_LOOK_S)

    def _hello(self) -> dict[str, Any]:
        """What this reader may see and do."""
        call = self._call
        settings, is_admin = call.service.settings, call.key.is_admin
        return {
            "key": call.key.name,
            "admin": is_admin,
            "prompts": settings.prompts and is_admin,
            "workers": settings.workers,
            "worker": call.service.number,
        }

    def _news(self, owner: str | None) -> bytes:
        """The requests that have changed since the last event; empty: none."""
        watch = self._watch
        if not watch.is_read:
            return b""
        if self._epoch != watch.epoch:
            self._epoch, self._last = watch.epoch, None
        if self._last == watch.board.last:
            return b""
        is_first = self._last is None
        changes = watch.board.since(self._last or 0, owner)
        self._last = changes.last
        if not (is_first or changes.requests or changes.gone):
            return b""
        place = b"id: %d-%d\n" % (watch.epoch, changes.last)
        return place + sse.named(b"requests", _requests(changes))


def _requests(changes: Changes) -> bytes:
    """The data of an event; records are JSON already."""
    records = b",".join(one.body for _, one in changes.requests)
    gone = encode(list(changes.gone))
    is_all = b"true" if changes.is_all else b"false"
    return b'{"all":%s,"requests":[%s],"gone":%s}' % (is_all, records, gone)


class _EventsAnswer(Answer):
    """See ``wanted.Answer``."""

    content_type = sse.CONTENT_TYPE
    failure_ends = True

    def begin(self) -> bytes:
        return b"retry: 1000\n\n"

    def event(self, number: int, event: Any) -> bytes:  # noqa: ARG002 - there is one
        return bytes(event)

    def end(self) -> bytes:
        return b""

    def failed(self, failure: Failure) -> bytes:
        return sse.named(b"error", encode(error_object(failure)))

    def keepalive(self) -> bytes:
        return sse.COMMENT

    def whole(self, done: Sequence[Completion]) -> bytes:  # noqa: ARG002 - it is a stream
        return b""


def _never_begun(number: int) -> AsyncStream:
    raise AssertionError(f"reply {number} of a stream of events")
