"""The door to Thespian: exactly one version, and every internal that is relied on is checked."""

from __future__ import annotations

import ast
import importlib.metadata
from pathlib import Path

import pytest

from supervision import _thespian
from supervision._wire import SYSTEM_MESSAGES, register_types, to_thespian
from supervision.address import Address
from supervision.codec import ValueCodec
from supervision.errors import WrongThespian

pytestmark = pytest.mark.pure

SUPERVISION = Path(_thespian.__file__).parent
ALIASES = {
    "admin_messages",
    "base",
    "ip",
    "mp",
    "multiproc_messages",
    "rl",
    "status_messages",
    "tcp",
    "tr",
    "utilis",
}
"""Under these names the door hands out Thespian's modules."""


def test_another_version_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "4.0.2")
    with pytest.raises(WrongThespian, match=r"4\.0\.2.*install thespian==4\.0\.1"):
        _thespian._check_pins()


@pytest.mark.parametrize(("where", "name"), [("mp", "_startLogger"), ("tcp", "TCPEndpoint")])
def test_an_internal_that_is_gone_is_named(monkeypatch, where, name):
    monkeypatch.delattr(getattr(_thespian, where), name)
    with pytest.raises(WrongThespian, match=name):
        _thespian._check_pins()


def test_the_installed_one_has_everything():
    _thespian._check_pins()


def test_the_librarys_own_messages_travel_with_all_that_they_hold():
    admin, process = _thespian.admin_messages, _thespian.multiproc_messages
    status = _thespian.status_messages
    address = to_thespian(Address("127.0.0.1", 4711))
    messages = (
        admin.QueryExists(), admin.QueryAck("name", "1", False), admin.SystemShutdown(),
        admin.SystemShutdownCompleted(), admin.PendingActor("a.B", None, 3, None, None),
        admin.PendingActorResponse(None, 3, None, actualAddress=address, errorStr="none"),
        process.EndpointConnected(7), _thespian.ActorExitRequest(recursive=False),
        status.Thespian_StatusReq(), status.Thespian_ActorStatus(address, "a.B", address, address),
    )  # fmt: skip
    assert {type(one) for one in messages} == {cls for cls, _ in SYSTEM_MESSAGES}
    codec = ValueCodec()
    register_types(codec)
    for message in messages:
        back = codec.unpack(codec.pack(message))
        assert type(back) is type(message)
        assert back.__dict__.keys() == message.__dict__.keys()
        for name, value in message.__dict__.items():
            assert getattr(back, name) == value, name


def used_internals() -> set[tuple[str, str]]:
    """(module alias, attribute) of everything that the door takes from Thespian's modules."""
    found = set()
    for path in SUPERVISION.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in ALIASES
                and path.name.startswith("_")
            ):
                found.add((node.value.id, node.attr))
    return found


def test_every_internal_that_is_used_is_checked_at_import():
    checked = {(where.__name__, name) for where, name in _thespian.PINS}
    used = {(getattr(_thespian, alias).__name__, name) for alias, name in used_internals()}
    assert len(used) > 20
    assert used <= checked, used - checked
