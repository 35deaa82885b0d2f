"""Several replies in one call: which waits for which, so that each prompt is computed once.

The first reply to a prompt begins alone. Once its first token has come, the prompt is in the
context, or stored where a memory cannot share it; the others begin then and read it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from runtime import errors
from runtime.client.reply import Reply
from runtime.client.results import Completion, CompletionEvent, Event, TokenEvent
from runtime.client.stream import RequestHandle
from runtime.client.transport import Gate, Transport, Work

AT_ONCE: Final = 64
"""Requests of one call that a node has at the same time; the others follow as these end."""


async def completions_of(
    transport: Transport, cancel: Callable[[str], None], prompts: Sequence[Sequence[Reply]]
) -> list[Completion]:
    """The results of all replies, those of each prompt together. One that fails ends all.

    ``cancel`` sends the node a cancellation of the request with an id.
    """
    works: list[Work[Completion]] = []
    for replies in prompts:
        gate = transport.gate()
        for reply in replies:
            reply.start_clock()  # of all of them now: a deadline is that of the call
            handle = RequestHandle(cancel)
            works.append(_OneOfSeveral(reply, handle, gate, leads=reply is replies[0]))
    return await transport.together(works, at_once=AT_ONCE)


class _OneOfSeveral:
    """One reply; the one that leads opens the gate at which the others of its prompt wait."""

    def __init__(self, reply: Reply, handle: RequestHandle, gate: Gate, *, leads: bool) -> None:
        self._reply = reply
        self._handle = handle
        self._gate = gate
        self._leads = leads
        reply.on_accepted = handle.accepted

    async def run(self) -> Completion:
        if not self._leads:
            await self._gate.wait()
        try:
            if self._handle.is_cancelled:
                raise errors.NoReply("this reply was not begun: another one of the call failed")
            while (event := await self._reply.next()) is not None:
                if _is_generated(event):
                    self._gate.open()
                if isinstance(event, CompletionEvent):
                    return event.completion
        finally:
            self._reply.leave()
        raise errors.NoReply("the stream ended without a result")

    def cancel(self) -> None:
        self._handle.cancel()
        self._gate.open()  # those that wait there see that they are cancelled


def _is_generated(event: Event) -> bool:
    """Whether the prompt has been read before this."""
    return isinstance(event, CompletionEvent) or (
        isinstance(event, TokenEvent) and event.kind != "prompt"
    )
