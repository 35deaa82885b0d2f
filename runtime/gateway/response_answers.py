"""A response as the answer of a request: as it is generated, or read from the log of its run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from runtime.client.results import Completion, Event
from runtime.gateway.frame_log import FrameLog
from runtime.gateway.generation import BrokenStream, Generation
from runtime.gateway.response_runs import ResponseRun
from runtime.gateway.wire import sse
from runtime.gateway.wire.bodies import encode
from runtime.gateway.wire.failure import Failure
from runtime.gateway.wire.wanted import Answer, Head, Wanted

if TYPE_CHECKING:
    from runtime.gateway.call import Call
    from runtime.gateway.time_limit import ReplyStream


class Foreground(Answer):
    """The answer to a request for a response that its client waits for; see ``wanted.Answer``.

    It is logged as those in the background are, so that it can be read again.
    """

    content_type = sse.CONTENT_TYPE
    needs_events = True
    failure_ends = True

    def __init__(self, run: ResponseRun, begun: Callable[[], None]) -> None:
        """``begun`` is called when the response has an id that its client knows."""
        self._run = run
        self._begun = begun
        self._is_known = False

    def begin(self) -> bytes:
        self._know()
        return self._run.show(self._run.answer.begin())

    def event(self, number: int, event: Event) -> bytes:  # noqa: ARG002 - there is one reply
        return self._run.show(self._run.answer.event(event))

    def end(self) -> bytes:
        return self._run.finish(self._run.answer.end())

    def failed(self, failure: Failure) -> bytes:
        return self._run.finish(self._run.answer.failed(failure))

    def keepalive(self) -> bytes:
        return sse.COMMENT_LINE

    def whole(self, done: Sequence[Completion]) -> bytes:  # noqa: ARG002 - it has read the events
        self._know()
        self._run.finish(self._run.answer.end())
        return encode(self._run.answer.response())

    def _know(self) -> None:
        if not self._is_known:
            self._is_known = True
            self._begun()


class Readable(Protocol):
    """A response as its readers see it."""

    log: FrameLog

    @property
    def is_over(self) -> bool:
        """Whether the log has all."""

    async def changed(self) -> None:
        """Wait until the log has more, or all."""


class Follower(Answer):
    """Shows a run from its log as the answer of one request; see ``wanted.Answer``."""

    content_type = sse.CONTENT_TYPE

    def __init__(self, run: Readable, after: int = -1) -> None:
        """Frames from the one after ``after``."""
        self._run = run
        self._next = after + 1

    async def events(self) -> AsyncGenerator[list[tuple[int, Any]]]:
        """Frames as they come, several at once."""
        run = self._run
        while True:
            is_last = run.is_over
            if self._next < run.log.first:
                raise BrokenStream  # it reads so slowly that what follows is kept no more
            frames = self._take()
            if frames or is_last:
                yield [(0, frames)]
            if is_last:
                return
            if run.log.next <= self._next:
                await run.changed()

    def begin(self) -> bytes:
        return b""

    def event(self, number: int, event: Any) -> bytes:  # noqa: ARG002 - there is one reply
        frames: bytes = event
        return frames

    def end(self) -> bytes:
        return b""

    def failed(self, failure: Failure) -> bytes:  # noqa: ARG002 - the log has it
        return self._take()

    def keepalive(self) -> bytes:
        return sse.COMMENT_LINE

    def whole(self, done: Sequence[Completion]) -> bytes:
        raise AssertionError(f"a stream has no body of {len(done)} replies")

    def _take(self) -> bytes:
        log = self._run.log
        frames = log.since(self._next)
        self._next = max(self._next, log.next)
        return frames


class Shown(Generation):
    """A run as it is read from its log."""

    def __init__(self, call: Call, head: Head, follower: Follower) -> None:
        wanted = Wanted(model="", kind="chat", inputs=(), is_stream=True)
        # What it shows is logged already, and a successor knows its place by the frames sent.
        socket = call.socket(notes_events=False)
        super().__init__(
            call.service, wanted, head, follower, _never_begun, call.own_headers(), socket
        )
        self._follower = follower

    def _events(self) -> AsyncGenerator[list[tuple[int, Any]]]:
        return self._follower.events()


def _never_begun(number: int) -> ReplyStream:
    raise AssertionError(f"reply {number} of a log")
