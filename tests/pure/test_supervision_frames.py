"""Frames: nothing is unpickled that this node did not send."""

from __future__ import annotations

import collections
import datetime
import os
import pathlib
import pickle
import subprocess

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from supervision.exits import ExitKind, ExitReason
from supervision.frames import FrameCodec, FrameRefused
from supervision.messages import Entry
from supervision.spec import ChildKind
from tests.support.children import Echo

pytestmark = pytest.mark.pure

COOKIE = b"c" * 32
CODEC = FrameCodec(COOKIE, ("tests",))


def sealed(pickled: bytes) -> bytes:
    """As a peer that knows the cookie would send these bytes."""
    return blake3(pickled, key=COOKIE).digest() + pickled


class Runs:
    """A pickle that calls ``what`` when it is loaded."""

    def __init__(self, what, *args):
        self.what, self.args = what, args

    def __reduce__(self):
        return (self.what, self.args)


ENTRY = Entry("a", ChildKind.WORKER, "root", "x.Y", None, 1, 2, "up", 0, 0.0,
              ExitReason(ExitKind.KILLED, "by SIGKILL"))  # fmt: skip


@pytest.mark.parametrize(
    "message",
    [
        ENTRY,
        Echo("ref", {"a": (1, 2.0, b"3", None, True), "set": {1}, "frozen": frozenset({2})}),
        datetime.timedelta(seconds=1),
        collections.deque([1]),
        pathlib.PurePosixPath("/x"),
        ExitKind.NORMAL,
    ],
)
def test_what_is_sealed_opens_as_it_was(message):
    assert CODEC.open(CODEC.seal(("sender", message))) == ("sender", message)


@given(st.data())
def test_a_frame_with_any_bit_changed_is_refused(data):
    frame = bytearray(CODEC.seal(("sender", "message")))
    bit = data.draw(st.integers(0, len(frame) * 8 - 1))
    frame[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(FrameRefused):
        CODEC.open(bytes(frame))


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(noise):
    with pytest.raises(FrameRefused):
        CODEC.open(noise)


def test_another_nodes_frame_is_refused():
    other = FrameCodec(b"d" * 32, ("tests",))
    with pytest.raises(FrameRefused, match="mac"):
        CODEC.open(other.seal(("sender", "message")))


def test_an_unauthenticated_pickle_is_not_run(tmp_path):
    mark = tmp_path / "executed"
    attack = pickle.dumps(("x", Runs(os.system, f"touch {mark}")))
    for frame in (attack, b"0" * 32 + attack):
        with pytest.raises(FrameRefused):
            CODEC.open(frame)
    assert not mark.exists()


@pytest.mark.parametrize(
    "attack",
    [
        Runs(os.system, "false"),
        Runs(eval, "1"),
        Runs(getattr, "text", "join"),
        Runs(subprocess.Popen, ["false"]),
        Runs(__import__, "os"),
        Runs(FrameCodec, COOKIE),
        Runs(pickle.loads, b"N."),
    ],
    ids=lambda one: getattr(one.what, "__name__", "call"),
)
def test_even_an_authenticated_pickle_names_only_what_is_allowed(attack):
    with pytest.raises((FrameRefused, pickle.UnpicklingError)):
        CODEC.open(sealed(pickle.dumps(("sender", attack))))


@pytest.mark.parametrize("shape", ["text", ("one",), ("one", "two", "three"), None, [1, 2]])
def test_what_is_no_envelope_is_refused(shape):
    with pytest.raises(FrameRefused):
        CODEC.open(sealed(pickle.dumps(shape)))


def test_a_constant_opens_only_byte_for_byte():
    codec = FrameCodec(COOKIE)
    codec.accept_constant(b"ack-bytes", "ACK")
    assert codec.open(b"ack-bytes") == "ACK"
    with pytest.raises(FrameRefused):
        codec.open(b"ack-bytez")


def test_a_cookie_has_32_bytes():
    with pytest.raises(ValueError, match="32"):
        FrameCodec(b"short")
