"""What is kept of a stream that is read again: bytes, events, and where they begin."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.gateway import conversation_streams as streams
from runtime.gateway.conversation_streams import (
    Conversations,
    ConversationStream,
    NumberedReplay,
    Replay,
    Ring,
    body_of,
    conversation_of,
)
from runtime.gateway.generation import BrokenStream
from runtime.gateway.keys import Key
from runtime.gateway.wire import sse

pytestmark = pytest.mark.pure

A, B = Key(name="a"), Key(name="b")
frames = st.lists(
    st.one_of(
        st.just(sse.COMMENT), st.binary(max_size=20).map(lambda b: sse.data(b.hex().encode()))
    )
)


@given(frames, st.integers(1, 200))
def test_a_ring_holds_the_last_frames(given_frames: list[bytes], most: int) -> None:
    ring, whole, events = Ring(most), b"", []
    for frame in given_frames:
        ring.add(frame)
        whole += frame
        events += [frame] if frame != sse.COMMENT else []
        assert ring.next == len(whole)
        assert ring.since(ring.first) == whole[ring.first :]
        assert whole[: ring.first].endswith(b"\n\n") or not ring.first, "it begins with a frame"
        assert len(ring) <= max(most, len(frame))
        assert ring.next_event == len(events)
        for number in range(ring.first_event, ring.next_event):
            rest = b"".join(events[number + 1 :])
            assert ring.since(ring.place_after(number)).replace(sse.COMMENT, b"") == rest


def test_a_ring_that_is_not_full_forgets_nothing() -> None:
    ring = Ring(100)
    ring.add(b"data: 1\n\n" * 11)
    assert ring.drop(0) == ring.drop(-5) == 0
    assert (ring.first, ring.first_event) == (0, 0)
    assert ring.drop(1) == 9
    assert (ring.first, ring.first_event, ring.since(0)) == (9, 1, b"data: 1\n\n" * 10)


def test_what_was_written_is_read_again_without_its_frame() -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    assert body_of(head + b"9\r\ndata: 1\n\n\r\n3\r\n:\n\n\r\n0\r\n\r\n") == b"data: 1\n\n:\n\n"
    for data in (b"", b"HTTP/1.1 200 OK\r\n", head):
        assert body_of(data) == b""


def test_names_are_the_same_in_a_header_and_in_a_query() -> None:
    assert conversation_of(b" conv::org/model ") == "conv::org/model"
    assert conversation_of("Füchse".encode()) == conversation_of("Füchse".encode("latin-1"))
    assert conversation_of(b"") == ""


# ── the streams of one worker ───────────────────────────────────────────────────────────────────


class Settings:
    """Of the gateway, as far as they matter here."""

    def __init__(self, log_bytes: int = 1 << 20, log_ttl_s: float = 300.0) -> None:
        self.log_bytes, self.log_ttl_s = log_bytes, log_ttl_s


class Asked:
    """Stands for ``Call``."""

    def __init__(self, name: str, key: Key, settings: Settings) -> None:
        self.headers = {b"x-conversation-id": name.encode()} if name else {}
        self.key, self.id, self.logged = key, f"req_{key.name}_{name}", None
        self.service: Any = type("Service", (), {"settings": settings})


class Frames:
    """Stands for an ``Answer``, of which only the type of its content matters."""

    content_type = sse.CONTENT_TYPE


class Reply:
    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


Begin = Callable[..., ConversationStream]


@pytest.fixture
def kept() -> Conversations:
    return Conversations()


def begin(
    kept: Conversations, name: str, key: Key = A, settings: Settings | None = None
) -> ConversationStream:
    call: Any = Asked(name, key, settings or Settings())
    found = kept.begin(call, Frames(), is_stream=True)  # type: ignore[arg-type]
    assert found is not None
    return found


def add(stream: ConversationStream, data: bytes) -> None:
    stream.grew(stream.ring.add(data))


def end(stream: ConversationStream, at: float) -> None:
    stream.completed_at = at


def test_a_conversation_has_one_stream_the_latest(kept: Conversations) -> None:
    first, reply = begin(kept, "c"), Reply()
    first.begun(reply)  # type: ignore[arg-type]
    other = begin(kept, "c", B)
    assert not reply.is_cancelled, "it is of another key"
    second = begin(kept, "c")
    assert reply.is_cancelled
    late = Reply()
    first.begun(late)  # type: ignore[arg-type]
    assert late.is_cancelled
    assert kept.find("c", A) is second
    assert kept.find("c", B) is other
    assert kept.of_request("req_a_c", A) is second
    assert kept.of_request("req_a_c", B) is None


def test_a_request_without_the_header_or_a_stream_is_not_kept(kept: Conversations) -> None:
    one: Any = Asked("", A, Settings())
    assert kept.begin(one, Frames(), is_stream=True) is None  # type: ignore[arg-type]
    before, reply = begin(kept, "c"), Reply()
    before.begun(reply)  # type: ignore[arg-type]
    two: Any = Asked("c", A, Settings())
    assert kept.begin(two, Frames(), is_stream=False) is None  # type: ignore[arg-type]
    assert reply.is_cancelled, "a conversation does one thing at a time"
    assert kept.find("c", A) is None


def test_only_what_is_named_is_found(kept: Conversations) -> None:
    for name in ("x", "x::m::n", "xy", "z"):
        begin(kept, name)
    begin(kept, "x", B)
    names = [one.conversation for one in kept.named(["x", "nothing", "x::m"], A)]
    assert names == ["x", "x::m::n"]
    assert [one.owner for one in kept.named(["x", ""], B)] == ["b"]
    assert kept.named([], A) == []


def test_of_a_refused_request_nothing_is_kept(kept: Conversations) -> None:
    stream = begin(kept, "c")
    kept.forget_unless_begun(stream)
    assert kept.find("c", A) is None
    stream = begin(kept, "c")
    add(stream, b"data: 1\n\n")
    kept.forget_unless_begun(stream)
    assert kept.find("c", A) is stream


def test_the_oldest_go_when_there_is_too_much(kept: Conversations) -> None:
    settings = Settings(log_bytes=10 * streams.OWN_BYTES + 64)
    part = b"data: " + b"x" * (streams.OWN_BYTES - 8) + b"\n\n"
    found = [begin(kept, str(at), settings=settings) for at in range(4)]
    for at, one in enumerate(found):
        add(one, part)
        end(one, 1e12 + at)
    runs = begin(kept, "runs", settings=settings)
    assert [kept.find(str(at), A) is None for at in range(4)] == [False] * 4
    add(runs, part * 2)
    assert [kept.find(str(at), A) is None for at in range(4)] == [True, False, False, False]
    for _ in range(40):
        add(runs, part)
    assert [kept.find(str(at), A) is None for at in range(4)] == [True] * 4
    assert runs.n_bytes <= settings.log_bytes, "what runs is cut"
    assert runs.ring.first > 0
    assert kept.find("runs", A) is runs


def test_what_is_old_goes(kept: Conversations, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = begin(kept, "c", settings=Settings(log_ttl_s=5.0))
    end(stream, 100.0)
    monkeypatch.setattr(streams.time, "time", lambda: 105.0)
    assert kept.find("c", A) is stream
    monkeypatch.setattr(streams.time, "time", lambda: 106.1)
    assert kept.find("c", A) is None


# ── readers ─────────────────────────────────────────────────────────────────────────────────────


def read(replay: Replay) -> tuple[bytes, bool]:
    """All that a reader is sent, and whether its connection is broken then."""

    async def all_of() -> tuple[bytes, bool]:
        data = b""
        try:
            async for [(_, more)] in replay.events():
                data += more
        except BrokenStream:
            return data, True
        return data, False

    return asyncio.run(all_of())


def test_a_reader_gets_the_bytes_from_its_place_on() -> None:
    stream = ConversationStream("c", "a", "r", 0.0)
    add(stream, b"data: 1\n\n:\n\ndata: 2\n\n")
    end(stream, 1.0)
    assert read(Replay(stream, 0)) == (b"data: 1\n\n:\n\ndata: 2\n\n", False)
    assert read(Replay(stream, 14)) == (b"ta: 2\n\n", False)
    assert read(Replay(stream, 99)) == (b"", False)
    assert read(NumberedReplay(stream, -1)) == (b"id: 0\ndata: 1\n\nid: 1\ndata: 2\n\n", False)
    assert read(NumberedReplay(stream, 0)) == (b"id: 1\ndata: 2\n\n", False)
    assert read(NumberedReplay(stream, 1)) == (b"", False)


def test_a_stream_that_broke_breaks_for_its_readers_too() -> None:
    stream = ConversationStream("c", "a", "r", 0.0)
    add(stream, b"data: 1\n\n")
    stream.is_whole = False
    end(stream, 1.0)
    assert read(Replay(stream, 0)) == (b"data: 1\n\n", True)


def test_a_reader_that_is_too_slow_is_not_shown_a_gap() -> None:
    stream = ConversationStream("c", "a", "r", 0.0)
    stream.ring = Ring(20)
    for _ in range(4):
        add(stream, b"data: 1\n\n")
    assert stream.ring.first == 18
    assert read(Replay(stream, 9)) == (b"", True)
