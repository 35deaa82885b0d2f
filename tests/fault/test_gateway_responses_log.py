"""The log of stored responses with a cut or damaged end: what comes before it is there."""

from __future__ import annotations

import os
from typing import Any, cast

import pytest

from runtime.gateway.responses_log import ResponsesLog
from runtime.gateway.responses_store import Stored
from supervision.shelf import ShelfClient, Shelved

pytestmark = pytest.mark.fault


class MemoryShelf:
    """Keeps copies of descriptors, as the launcher does."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}

    def keep(self, name: str, fds: list[int]) -> bool:
        self.kept[name] = os.dup(fds[0])
        return True

    def get(self, name: str) -> Shelved | None:
        fd = self.kept.get(name)
        return None if fd is None else Shelved((os.dup(fd),))


def stored(number: int) -> Stored:
    return Stored(f"resp_{number}", "alice", None, b"{}", b"[]")


@pytest.mark.parametrize("end", [b"", b"\x40", b"\x40\0\0\0abc", b"\x03\0\0\0\xc1\xc1\xc1"])
def test_what_comes_before_a_bad_end_is_read_and_more_is_added(end: bytes) -> None:
    shelf = MemoryShelf()

    def opened() -> ResponsesLog:
        return ResponsesLog(cast(ShelfClient, cast(Any, shelf)), "responses")

    log = opened()
    for number in range(3):
        log.keep(stored(number))
    log.drop("resp_1")
    os.write(shelf.kept["responses"], end)
    again = opened()
    assert [one.id for one in again.found] == ["resp_0", "resp_2"]
    again.keep(stored(3))
    assert [one.id for one in opened().found] == ["resp_0", "resp_2", "resp_3"]
    os.close(shelf.kept["responses"])
