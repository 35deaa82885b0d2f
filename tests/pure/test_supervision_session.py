"""Sessions: without the cookie nothing is accepted, and no frame is accepted twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervision.codec import FrameRefused
from supervision.session import (
    MAX_FRAME_BYTES,
    Acked,
    Arrived,
    Kind,
    Left,
    Proved,
    Secret,
    Session,
)

pytestmark = pytest.mark.pure

COOKIE = Secret(b"c" * 32)
CONNECTOR, LISTENER = 1001, 2002


def pair() -> tuple[Session, Session]:
    """Two ends that have proved themselves to each other."""
    ours, theirs = Session(COOKIE, CONNECTOR, LISTENER), Session(COOKIE, LISTENER, None)
    theirs.receive(ours.take_output())
    ours.receive(theirs.take_output())
    assert theirs.receive(ours.take_output()) == [Proved(CONNECTOR)]
    assert ours.is_open
    assert theirs.is_open
    return ours, theirs


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=100))), st.data())
def test_messages_arrive_whole_and_in_order_however_the_bytes_are_cut(messages, data):
    ours, theirs = pair()
    kinds = {False: Kind.MESSAGE, True: Kind.MESSAGE_TO_ACK}
    wire = b"".join(ours.seal(kinds[wants], body) for wants, body in messages)
    events = []
    while wire:
        size = data.draw(st.integers(1, len(wire)))
        events += theirs.receive(wire[:size])
        wire = wire[size:]
    assert events == [Arrived(body, wants) for wants, body in messages]
    assert theirs.arrived == len(messages)
    assert ours.receive(theirs.seal_ack()) == [Acked(len(messages))]


@given(st.data())
def test_a_frame_with_any_bit_changed_is_dropped(data):
    ours, theirs = pair()
    frame = bytearray(ours.seal(Kind.MESSAGE, b"stop the node"))
    bit = data.draw(st.integers(0, len(frame) * 8 - 1))
    frame[bit // 8] ^= 1 << (bit % 8)
    try:
        events = theirs.receive(bytes(frame))
    except FrameRefused:
        return
    assert events == []  # the length grew: it waits for more, which will not open either
    with pytest.raises(FrameRefused):
        theirs.receive(b"x" * MAX_FRAME_BYTES)


def test_the_last_frame_has_the_number_of_messages_read():
    ours, theirs = pair()
    theirs.receive(ours.seal(Kind.MESSAGE, b"read"))
    ours.seal(Kind.MESSAGE, b"never read")
    assert ours.receive(theirs.seal_bye()) == [Left(1)]


def test_a_repeated_frame_is_dropped():
    ours, theirs = pair()
    frame = ours.seal(Kind.MESSAGE, b"once")
    assert theirs.receive(frame) == [Arrived(b"once", False)]
    with pytest.raises(FrameRefused, match="repeated"):
        theirs.receive(frame)


def test_a_frame_that_is_left_out_is_noticed():
    ours, theirs = pair()
    ours.seal(Kind.MESSAGE, b"lost")
    with pytest.raises(FrameRefused):
        theirs.receive(ours.seal(Kind.MESSAGE, b"next"))


def test_a_frame_of_another_connection_is_dropped():
    ours, _ = pair()
    _, other = pair()
    with pytest.raises(FrameRefused):
        other.receive(ours.seal(Kind.MESSAGE, b"x"))


def test_a_frame_is_dropped_by_its_own_sender():
    ours, _ = pair()
    with pytest.raises(FrameRefused):
        ours.receive(ours.seal(Kind.MESSAGE, b"x"))


def test_a_whole_conversation_cannot_be_repeated():
    ours, theirs = Session(COOKIE, CONNECTOR, LISTENER), Session(COOKIE, LISTENER, None)
    said = ours.take_output()
    theirs.receive(said)
    ours.receive(theirs.take_output())
    said += ours.take_output() + ours.seal(Kind.MESSAGE, b"stop the node")
    again = Session(COOKIE, LISTENER, None)
    with pytest.raises(FrameRefused):
        again.receive(said)


@pytest.mark.parametrize("knows", ["nobody", "connector", "listener"])
def test_both_sides_must_hold_the_cookie(knows):
    wrong, other = Secret(b"w" * 32), Secret(b"v" * 32)
    ours = Session(COOKIE if knows == "connector" else wrong, CONNECTOR, LISTENER)
    theirs = Session(COOKIE if knows == "listener" else other, LISTENER, None)
    theirs.receive(ours.take_output())
    with pytest.raises(FrameRefused, match="cookie"):
        ours.receive(theirs.take_output())
    assert not ours.is_open
    assert not theirs.is_open


def test_a_proof_is_good_for_one_port_only():
    """Who listens on the port of a dead process cannot pass on the proof of a living one."""
    ours, theirs = Session(COOKIE, CONNECTOR, LISTENER), Session(COOKIE, LISTENER + 1, None)
    theirs.receive(ours.take_output())
    with pytest.raises(FrameRefused, match="cookie"):
        ours.receive(theirs.take_output())


def test_nothing_of_a_message_leaves_before_the_other_side_has_proved_itself():
    ours = Session(COOKIE, CONNECTOR, LISTENER)
    ours.take_output()
    with pytest.raises(FrameRefused):
        ours.seal(Kind.MESSAGE, b"secret")


@given(st.binary(min_size=1, max_size=200))
def test_noise_is_refused_or_waited_for_and_never_kept(noise):
    listener = Session(COOKIE, LISTENER, None)
    try:
        for _ in range(50):
            listener.receive(noise)
    except FrameRefused:
        return
    assert noise.startswith(b"LA1") or b"LA1".startswith(noise)


def test_an_unauthenticated_peer_may_not_announce_a_long_frame():
    listener = Session(COOKIE, LISTENER, None)
    listener.receive(b"LA1" + b"n" * 16)
    listener.take_output()
    with pytest.raises(FrameRefused, match="1000 bytes"):
        listener.receive((1000).to_bytes(4, "big"))


@pytest.mark.parametrize("length", [0, 1, 16, MAX_FRAME_BYTES + 1, 0xFFFFFFFF])
def test_an_impossible_length_is_refused(length):
    _, theirs = pair()
    with pytest.raises(FrameRefused, match="bytes"):
        theirs.receive(length.to_bytes(4, "big"))


def test_a_frame_too_large_to_be_accepted_is_not_sealed():
    ours, _ = pair()
    with pytest.raises(FrameRefused, match="too large"):
        ours.seal(Kind.MESSAGE, b"x" * MAX_FRAME_BYTES)


def test_a_cookie_has_32_bytes():
    with pytest.raises(ValueError, match="32"):
        Secret(b"short")
