"""What a connection owns is closed on every way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervision import connection as module
from supervision.connection import Connection
from supervision.errors import NodeNotRunning, NoReply

pytestmark = pytest.mark.pure


class Router:
    """Stands for the router of a folder whose node ends while it is asked."""

    closed = 0

    def __init__(self, _folder: object, _codec: object) -> None:
        self.on_down: list[object] = []

    @property
    def record(self) -> object:
        return type("Record", (), {"pid": 1})

    def close(self) -> None:
        Router.closed += 1


@pytest.mark.parametrize(
    ("failure", "seen"),
    [
        (NoReply("root", 1.0), NodeNotRunning),
        (NodeNotRunning(Path("folder"), "it ended"), NodeNotRunning),
        (OSError("no descriptor is left"), OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_attach_that_fails_leaves_no_socket_open(
    failure: BaseException, seen: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call_root(*_: object) -> object:
        raise failure

    monkeypatch.setattr(module, "Router", Router)
    monkeypatch.setattr(Connection, "_call_root", call_root)
    before = Router.closed
    with pytest.raises(seen):
        Connection.attach(Path("folder"))
    assert Router.closed == before + 1
