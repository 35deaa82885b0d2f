"""Streams that outlive their connections: llama-server's resumable streams.

A client that sends ``X-Conversation-Id`` with a request for a stream may lose its connection: the
reply goes on, and the bytes of the stream are kept. They can be read again from any of them on,
while they come and some minutes after. A conversation has one such stream at a time, the latest; an
earlier one that still runs is cancelled. Only the key that asked for it finds it, by its name.

The bytes that are kept are exactly those that the connection gets, comments included: a client
counts what it has read, and asks for the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from runtime.gateway.generation import BrokenStream, Generation
from runtime.gateway.wire import sse
from runtime.gateway.wire.failure import Failure
from runtime.gateway.wire.wanted import Answer, Head, Wanted

if TYPE_CHECKING:
    from runtime.client.results import Completion, Event
    from runtime.gateway.call import Call
    from runtime.gateway.generation import AnswerWhole, Send
    from runtime.gateway.keys import Key
    from runtime.gateway.stream_log import Logged, StreamLog
    from runtime.gateway.time_limit import ReplyStream
    from runtime.settings.gateway import GatewaySettings

HEADER: Final = b"x-conversation-id"
RING_BYTES: Final = 4 << 20
"""Of one stream; the oldest frames go first."""
OWN_BYTES: Final = 1 << 10
"""What a stream without any bytes counts."""
USED: Final = 0.9
"""Part of the room that is used after some was made, so that it is not made at each event."""
LOOK_S: Final = 1.0
MODEL_SEPARATOR: Final = "::"
"""In llama-server a conversation's name may end with it and a model."""
_END: Final = b"\n\n"


class Ring:
    """The last bytes of a stream of frames. It begins with a frame."""

    def __init__(self, max_bytes: int = RING_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = bytearray()
        self.first = 0
        """Place of the oldest byte that is kept."""
        self.first_event = self.next_event = 0
        """Numbers of the oldest event that is kept, and of the next one; comments are none."""

    def __len__(self) -> int:
        return len(self._bytes)

    @property
    def next(self) -> int:
        """Place of the next byte that comes."""
        return self.first + len(self._bytes)

    def add(self, data: bytes) -> int:
        """Append whole frames; the last ones always stay, however big. Returns how it has grown."""
        self._bytes += data
        self.next_event += _n_events(data)
        return len(data) - self.drop(len(self._bytes) - self._max_bytes, keeps=len(data))

    def drop(self, n_bytes: int, *, keeps: int = 0) -> int:
        """Forget at least so many of the oldest bytes, but not of the last ``keeps``.

        Returns how many it was: whole frames.
        """
        if n_bytes <= 0:
            return 0
        most = len(self._bytes) - keeps
        end = self._bytes.find(_END, max(0, n_bytes - len(_END)))
        n_dropped = most if end < 0 else min(most, end + len(_END))
        self.first_event += _n_events(bytes(self._bytes[:n_dropped]))
        del self._bytes[:n_dropped]
        self.first += n_dropped
        return n_dropped

    def since(self, place: int) -> bytes:
        """The byte at this place, and all after it."""
        return bytes(self._bytes[max(0, place - self.first) :])

    def place_after(self, number: int) -> int:
        """Where what follows the event with this number begins, which has come."""
        place, n = self.first, self.first_event
        for frame in _frames(bytes(self._bytes)):
            if n > number:
                break
            place += len(frame)
            n += _is_event(frame)
        return place


def _frames(data: bytes) -> Iterable[bytes]:
    """Whole frames; what follows the last one is left out."""
    at = 0
    while (end := data.find(_END, at)) >= 0:
        yield data[at : end + len(_END)]
        at = end + len(_END)


def _is_event(frame: bytes) -> bool:
    return not frame.startswith(b":")


def _events(data: bytes) -> Iterable[bytes]:
    return (frame for frame in _frames(data) if _is_event(frame))


def _n_events(data: bytes) -> int:
    return sum(1 for _ in _events(data))


class ConversationStream:
    """One stream that is kept."""

    def __init__(self, conversation: str, owner: str, request_id: str, started_at: float) -> None:
        self.conversation = conversation
        self.owner = owner
        """Name of the key."""
        self.request_id = request_id
        self.started_at = started_at
        """Unix time."""
        self.completed_at = 0.0
        """Unix time; 0.0 while it runs."""
        self.is_whole = True
        """Once it has ended: whether with its end. Else its connection was broken."""
        self.ring = Ring()
        self._changed = asyncio.Event()
        self.grew: Callable[[int], None] = lambda _: None
        """Called when more, or less, is kept."""
        self._replies: list[ReplyStream] = []
        self._is_cancelled = False
        self._order = asyncio.Lock()

    @property
    def place(self) -> tuple[str, str]:
        """By which it is found: names of its key and of its conversation."""
        return self.owner, self.conversation

    @property
    def is_over(self) -> bool:
        return self.completed_at > 0

    @property
    def n_bytes(self) -> int:
        """What it takes to keep it."""
        return OWN_BYTES + len(self.conversation) + len(self.ring)

    def facts(self) -> dict[str, Any]:
        """In llama-server's words; times in seconds."""
        return {
            "conversation_id": self.conversation,
            "is_done": self.is_over,
            "total_bytes": self.ring.next,
            "started_at": int(self.started_at),
            "completed_at": int(self.completed_at),
        }

    # ── the reply ───────────────────────────────────────────────────────────────────────────────

    def begun(self, reply: ReplyStream) -> ReplyStream:
        """One of its replies begins."""
        self._replies.append(reply)
        if self._is_cancelled:
            reply.cancel()
        return reply

    def cancel(self) -> None:
        """End its replies with what there is; the stream has its end then."""
        self._is_cancelled = True
        for one in self._replies:
            one.cancel()

    async def run(
        self, generation: Generation, send: Send, answer: AnswerWhole, log: StreamLog | None
    ) -> None:
        """Answer by a generation, whether its client is there or not."""

        async def tee(message: Any) -> None:
            async with self._order:  # comments come from another task
                body = message.get("body", b"")
                self._add(body)
                n_before = 0 if log is None else log.n_data
                await send(message)
                if log is not None and log.n_data == n_before:
                    log.wrote(_chunk(message))  # its client is gone; a successor needs it still

        is_whole = False
        try:
            await generation.run_through(tee, answer)
            is_whole = True
        finally:
            self.end(is_whole=is_whole)

    def end(self, *, is_whole: bool) -> None:
        """Nothing more comes."""
        if not self.is_over:
            self.is_whole = is_whole
            self.completed_at = time.time()
            self._wake()

    def _add(self, data: bytes) -> None:
        if data:
            self.grew(self.ring.add(data))
            self._wake()

    # ── readers ─────────────────────────────────────────────────────────────────────────────────

    async def changed(self) -> None:
        """Wait until there is more, or all."""
        if not self.is_over:
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _chunk(message: Any) -> bytes:
    """What would have been written of a part of an answer."""
    if message["type"] == "http.response.start":
        return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    body = message.get("body", b"")
    return b"%x\r\n%b\r\n" % (len(body), body) if body else b""


def body_of(data: bytes) -> bytes:
    """The body of a chunked answer as far as it was written; its last chunk may be missing."""
    _, _, rest = data.partition(b"\r\n\r\n")
    parts = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        with contextlib.suppress(ValueError):
            n = int(size, 16)
            parts.append(rest[:n])
            rest = rest[n + 2 :]
    return b"".join(parts)


class Conversations:
    """The streams of one worker that are kept: one for each conversation of a key."""

    def __init__(self) -> None:
        self._streams: dict[tuple[str, str], ConversationStream] = {}
        self._n_bytes = 0
        """Of all of them."""
        self._max_bytes = self._ttl_s = 0.0
        self._looked_at = 0.0
        """Unix time at which what is too old was dropped."""

    def begin(self, call: Call, answer: Answer, *, is_stream: bool) -> ConversationStream | None:
        """A request begins an answer; None where it is not to be kept.

        What its conversation had before is cancelled, and not kept any more.
        """
        name = conversation_of(call.headers.get(HEADER, b""))
        if not name:
            return None
        is_kept = is_stream and answer.content_type == sse.CONTENT_TYPE
        if call.logged is not None:
            return self._continued(call, name, is_kept=is_kept)
        self.stop(name, call.key)
        if not is_kept:
            return None
        stream = ConversationStream(name, call.key.name, call.id, time.time())
        self._keep(stream, call.service.settings)
        return stream

    def restore(self, logged: Logged, settings: GatewaySettings) -> ConversationStream | None:
        """What a process that is gone has sent is there again, before the answer is continued."""
        head = logged.head
        name = conversation_of(dict(head.headers).get(HEADER, b""))
        known = self._streams.get((head.key.name, name))
        if not name or (known is not None and known.started_at > head.at):
            return None
        stream = ConversationStream(name, head.key.name, head.call_id, head.at)
        stream.ring.add(body_of(logged.data))
        if known is not None:
            self._drop(known)
        self._keep(stream, settings)
        return stream

    def _continued(self, call: Call, name: str, *, is_kept: bool) -> ConversationStream | None:
        """The stream of a request that another process had begun."""
        stream = self._streams.get((call.key.name, name))
        if stream is not None and stream.request_id == call.id:
            if is_kept:
                return stream
            self._drop(stream)
        if not is_kept:
            return None
        late = ConversationStream(name, call.key.name, call.id, time.time())
        late.cancel()  # its conversation has another one since, or was stopped
        return late

    def _keep(self, stream: ConversationStream, settings: GatewaySettings) -> None:
        self._max_bytes, self._ttl_s = settings.log_bytes, settings.log_ttl_s
        self._streams[stream.place] = stream
        stream.grew = self._grew
        self._grew(stream.n_bytes)

    def forget_unless_begun(self, stream: ConversationStream) -> None:
        """Of a request that was refused nothing is kept."""
        if not stream.ring.next and self._streams.get(stream.place) is stream:
            self._drop(stream)

    def stop(self, name: str, key: Key) -> None:
        """Cancel what runs in a conversation, and keep nothing of it."""
        stream = self._streams.get((key.name, name))
        if stream is not None:
            self._drop(stream)
            stream.cancel()

    def find(self, name: str, key: Key) -> ConversationStream | None:
        """The stream of a conversation."""
        self._drop_old()
        return self._streams.get((key.name, name))

    def of_request(self, request_id: str, key: Key) -> ConversationStream | None:
        """The same by the id of the request that it answers."""
        self._drop_old()
        for stream in self._streams.values():
            if stream.request_id == request_id and stream.owner == key.name:
                return stream
        return None

    def named(self, names: Iterable[str], key: Key) -> list[ConversationStream]:
        """Those of conversations with these names, and of them with a model's name besides."""
        self._drop_old()
        wanted = frozenset(names)
        return [
            stream
            for stream in self._streams.values()
            if stream.owner == key.name and wanted & set(_names_of(stream.conversation))
        ]

    def _drop(self, stream: ConversationStream) -> None:
        del self._streams[stream.place]
        stream.grew = lambda _: None
        self._n_bytes -= stream.n_bytes

    def _grew(self, n_bytes: int) -> None:
        self._n_bytes += n_bytes
        if self._n_bytes > self._max_bytes:
            self._make_room()

    def _drop_old(self) -> None:
        """Drop what has ended too long ago; it is looked for once in a while."""
        now = time.time()
        if abs(now - self._looked_at) < min(LOOK_S, self._ttl_s):
            return
        self._looked_at = now
        for stream in list(self._streams.values()):
            if stream.is_over and now - stream.completed_at > self._ttl_s:
                self._drop(stream)

    def _make_room(self) -> None:
        """Drop the oldest of those that have ended; if that is not enough, cut what runs."""
        most = self._max_bytes * USED
        ended = [one for one in self._streams.values() if one.is_over]
        for stream in sorted(ended, key=lambda one: one.completed_at):
            if self._n_bytes <= most:
                return
            self._drop(stream)
        for stream in self._streams.values():  # the longest-running first
            self._n_bytes -= stream.ring.drop(int(self._n_bytes - most))


def _names_of(conversation: str) -> Iterable[str]:
    """The names by which it is looked up: its own, and its beginnings before a separator."""
    yield conversation
    at = conversation.find(MODEL_SEPARATOR)
    while at >= 0:
        yield conversation[:at]
        at = conversation.find(MODEL_SEPARATOR, at + 1)


def conversation_of(header: bytes) -> str:
    """The name in a header, as it is in a query; empty: none."""
    try:
        return header.decode("utf-8").strip()
    except UnicodeDecodeError:
        return header.decode("latin-1").strip()


# ── reading again ───────────────────────────────────────────────────────────────────────────────


class Replay(Answer):
    """Shows a stream again, byte by byte as it was, as the answer of one request."""

    content_type = sse.CONTENT_TYPE

    def __init__(self, stream: ConversationStream, place: int) -> None:
        """From the byte at this place on."""
        self._stream = stream
        self._next = place

    async def events(self) -> AsyncGenerator[list[tuple[int, Any]]]:
        """Its bytes as they come."""
        stream, ring = self._stream, self._stream.ring
        while True:
            is_last = stream.is_over
            if self._next < ring.first:
                raise BrokenStream  # it reads so slowly that what follows is kept no more
            data = ring.since(self._next)
            self._next += len(data)
            if data or is_last:
                yield [(0, self.shown(data))]
            if is_last and not stream.is_whole:
                raise BrokenStream  # as it was on its own connection
            if is_last:
                return
            if ring.next <= self._next:
                await stream.changed()

    def shown(self, data: bytes) -> bytes:
        """What is sent of it."""
        return data

    def begin(self) -> bytes:
        return b""

    def event(self, number: int, event: Any) -> bytes:  # noqa: ARG002 - there is one stream
        data: bytes = event
        return data

    def end(self) -> bytes:
        return b""

    def failed(self, failure: Failure) -> bytes:  # noqa: ARG002 - the stream has it
        return b""

    def keepalive(self) -> bytes:
        return b""  # its reader counts bytes; the comments of the stream itself are among them

    def whole(self, done: Sequence[Completion]) -> bytes:
        raise AssertionError(f"a stream is no object of {len(done)} replies")


class NumberedReplay(Replay):
    """The same with a number on each event, from 0, and without comments."""

    def __init__(self, stream: ConversationStream, after: int) -> None:
        """From the event after this one on, which has come."""
        super().__init__(stream, stream.ring.place_after(after))
        self._number = after + 1

    def shown(self, data: bytes) -> bytes:
        """Frames are added whole, so they come whole."""
        found = []
        for frame in _events(data):
            found.append(b"id: %d\n" % self._number + frame)
            self._number += 1
        return b"".join(found)

    def keepalive(self) -> bytes:
        return sse.COMMENT_LINE


class Replayed(Generation):
    """A stream as it is read again."""

    def __init__(self, call: Call, replay: Replay) -> None:
        wanted = Wanted(model="", kind="chat", inputs=(), is_stream=True)
        head: Head = call.head(wanted, "")
        super().__init__(call.service, wanted, head, replay, _never_begun, call.own_headers())
        self._replay = replay

    def _events(self) -> AsyncGenerator[list[tuple[int, Event]]]:
        return self._replay.events()


def _never_begun(number: int) -> ReplyStream:
    raise AssertionError(f"reply {number} of a stream that is read again")
