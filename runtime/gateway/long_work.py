"""Work of the node that takes its time, as an answer: whole, or with shares of it as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Final

from runtime.client.async_stream import AsyncStream
from runtime.client.results import Completion
from runtime.gateway.call import Call
from runtime.gateway.generation import Generation
from runtime.gateway.wire import sse
from runtime.gateway.wire.bodies import encode
from runtime.gateway.wire.failure import Failure
from runtime.gateway.wire.openai_errors import own_error_object
from runtime.gateway.wire.own import plain_json
from runtime.gateway.wire.wanted import Answer, Head, Wanted

Report = Callable[[float], None]
"""Takes the share that is done, from 0 to 1."""
Work = Callable[[Report], Awaitable[object]]
_NONE: Final[tuple[Any, ...]] = ()


async def answer_work(call: Call, work: Work, *, is_stream: bool) -> None:
    """Answer by the result of ``work``.

    As a stream: events ``progress`` with a share, then one ``result`` or ``error``. Such a stream
    breaks with its worker; an answer that is no stream is begun again.
    """
    if is_stream:
        call.end_log(is_complete=False)
    await call.show(_LongWork(call, work, is_stream=is_stream))


class _LongWork(Generation):
    """Instead of replies: shares, and a result at the end."""

    def __init__(self, call: Call, work: Work, *, is_stream: bool) -> None:
        self._work_answer = _WorkAnswer()
        self._do = work
        wanted = Wanted(model="", kind="chat", inputs=_NONE, is_stream=is_stream)
        head = Head(id=call.birth.id, created=call.birth.created, model="")
        super().__init__(
            call.service, wanted, head, self._work_answer, _never_begun, call.own_headers()
        )

    async def _events(self) -> AsyncGenerator[list[tuple[int, Any]]]:
        shares: asyncio.Queue[float | None] = asyncio.Queue()
        task = asyncio.ensure_future(self._do(shares.put_nowait))
        task.add_done_callback(lambda _: shares.put_nowait(None))
        try:
            while (share := await shares.get()) is not None:
                yield [(0, share)]
            self._work_answer.result = await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class _WorkAnswer(Answer):
    """See ``wanted.Answer``."""

    content_type = sse.CONTENT_TYPE
    failure_ends = True

    def __init__(self) -> None:
        self.result: object = None

    def begin(self) -> bytes:
        return b""

    def event(self, number: int, event: Any) -> bytes:  # noqa: ARG002 - there is one
        return sse.named(b"progress", encode({"share": event}))

    def end(self) -> bytes:
        return sse.named(b"result", plain_json(self.result))

    def failed(self, failure: Failure) -> bytes:
        return sse.named(b"error", encode(own_error_object(failure)))

    def keepalive(self) -> bytes:
        return sse.COMMENT

    def whole(self, done: Sequence[Completion]) -> bytes:  # noqa: ARG002 - there are none
        return plain_json(self.result)


def _never_begun(number: int) -> AsyncStream:
    raise AssertionError(f"reply {number} of work that has none")
