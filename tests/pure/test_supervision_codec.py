"""The codec: what travels comes back as it was, and nothing else is made of any bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import os
import pickle
import subprocess
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervision.codec import FrameRefused, ValueCodec
from supervision.errors import SpecError, TransportRefused
from supervision.exits import ExitKind, ExitReason
from supervision.messages import Entry, Shutdown
from supervision.node_config import NodeConfig
from supervision.spec import Backoff, ChildKind, ChildSpec, Strategy, SupervisorSpec
from tests.support.children import Echo

pytestmark = pytest.mark.pure

CODEC = ValueCodec(("tests",))

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary() | st.sampled_from(ExitKind),
    lambda inner: st.lists(inner)
    | st.lists(inner).map(tuple)
    | st.dictionaries(st.text() | st.integers() | st.tuples(st.text(), st.integers()), inner)
    | st.sets(st.integers() | st.text()) | st.frozensets(st.tuples(st.integers()))
    | st.builds(Echo, st.text(), inner),
    max_leaves=20,
)  # fmt: skip


@given(plain)
def test_what_is_packed_comes_back_as_it_was(value):
    back = CODEC.unpack(CODEC.pack(value))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        Entry("a", ChildKind.WORKER, "root", "x.Y", None, 1, 2, "up", 0, 0.0,
              ExitReason(ExitKind.KILLED, "by SIGKILL")),
        Path("/a/ü"),
        Path(os.fsdecode(b"/not/\xff/text")),
        2**64, -(2**63), -(2**200), float("inf"), True, 0, "", (), [], {}, set(), Shutdown(),
    ],
    ids=repr,
)  # fmt: skip
def test_values_of_messages_keep_their_type(value):
    back = CODEC.unpack(CODEC.pack(value))
    assert back == value
    assert type(back) is type(value)


@given(st.binary(max_size=300))
def test_random_bytes_are_a_plain_value_or_refused(noise):
    try:
        value = CODEC.unpack(noise)
    except FrameRefused:
        return
    packed = CODEC.pack(value)
    assert CODEC.pack(CODEC.unpack(packed)) == packed


@given(st.data())
def test_a_packed_message_with_changed_bytes_is_a_value_or_refused(data):
    packed = bytearray(CODEC.pack(Echo("ref", (ExitKind.NORMAL, [1, {"a": Path("/x")}]))))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FrameRefused):
        CODEC.unpack(bytes(packed))


class NotOurs(enum.Enum):
    ONE = 1


@dataclasses.dataclass(frozen=True)
class Local:
    value: object


def forged(name: str, *items: object) -> bytes:
    """What a member of the node that has gone bad might send."""
    return msgpack.packb([msgpack.ExtType(1, name.encode()), *items])


@pytest.mark.parametrize(
    "attack",
    [
        forged("os:system", "false"),
        forged("subprocess:Popen", ["false"]),
        forged("builtins:eval", "1"),
        forged("supervision.process:kill", 1, 9),
        forged("supervision.process:os.system", "false"),
        forged("supervision.launcher:Path", "/"),
        forged("supervision.codec:ValueCodec"),
        forged("supervision.worker:Worker"),
        forged("supervision.spec:no_such_thing"),
        forged("supervision.nowhere:Class"),
        forged("supervision.exits:ExitKind", "NO_SUCH_MEMBER"),
        forged("supervision.exits:ExitReason"),
        forged("supervision.exits:ExitReason", 1, 2, 3, 4),
        forged("supervision.spec:Backoff", -1.0),
        msgpack.packb(msgpack.ExtType(1, b"supervision.exits:ExitKind")),
        msgpack.packb(msgpack.ExtType(77, b"?")),
        msgpack.packb([msgpack.ExtType(2, b"set"), [[1]]]),
        pickle.dumps(("sender", Shutdown())),
        msgpack.packb(1) + b"more",
        b"\x91" * 100_000,
        b"",
    ],
    ids=lambda attack: repr(attack[:40]),
)
def test_even_a_member_of_the_node_can_name_only_values(attack):
    with pytest.raises(FrameRefused):
        CODEC.unpack(attack)


@pytest.mark.parametrize(
    "value",
    [object(), print, os, subprocess.Popen, NotOurs, iter(()), {"a": [object()]}, Echo("r", 1j)],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_travel_is_named_and_leaves_the_codec_usable(value):
    with pytest.raises(TransportRefused, match="cannot travel"):
        CODEC.pack(value)
    assert CODEC.unpack(CODEC.pack(("fine", 1))) == ("fine", 1)


def test_only_the_packages_that_a_node_names_may_travel():
    stranger = ValueCodec()
    with pytest.raises(TransportRefused, match="allow-list"):
        stranger.pack(Echo("r"))
    with pytest.raises(FrameRefused, match="allow-list"):
        stranger.unpack(CODEC.pack(Local(1)))
    for package in ("actors", "cache", "native", "runtime", "tests"):
        with pytest.raises(FrameRefused, match="allow-list"):
            stranger.unpack(forged(f"{package}.messages:Anything"))


def test_a_node_names_the_packages_of_its_actors_and_those_that_it_was_given(tmp_path):
    tree = SupervisorSpec(
        Strategy.ONE_FOR_ONE, (ChildSpec("a", "tests.support.children.GoodChild"),)
    )
    config = NodeConfig(4711, tmp_path, tree, packages=("cache",))
    assert config.message_packages == ("cache", "tests")


def test_what_a_value_checks_is_checked_on_arrival():
    good = CODEC.pack(Backoff(first_s=1.0))
    assert CODEC.unpack(good) == Backoff(first_s=1.0)
    with pytest.raises(SpecError):
        Backoff(first_s=-1.0)
    with pytest.raises(FrameRefused, match="SpecError"):
        CODEC.unpack(good.replace(msgpack.packb(1.0), msgpack.packb(-1.0), 1))
