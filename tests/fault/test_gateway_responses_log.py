"""Logs on the shelf: what comes before a cut or damaged end is there, also after a rewrite."""

from __future__ import annotations

import os
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.gateway.responses_log import ResponsesLog
from runtime.gateway.responses_store import Stored
from runtime.gateway.shelf_log import ShelfLog
from supervision.shelf import ShelfClient, Shelved

pytestmark = pytest.mark.fault


class MemoryShelf:
    """Keeps copies of descriptors, as the launcher does."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}

    def keep(self, name: str, fds: list[int]) -> bool:
        self.close(name)
        self.kept[name] = os.dup(fds[0])
        return True

    def close(self, name: str) -> None:
        if name in self.kept:
            os.close(self.kept.pop(name))

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


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.none() | st.binary(max_size=60), st.booleans()),
        max_size=40,
    )
)
def test_the_last_value_of_each_name_is_there_however_often_it_is_rewritten(
    steps: list[tuple[str, bytes | None, bool]],
) -> None:
    shelf, wanted = MemoryShelf(), dict[str, bytes]()
    shelved = cast(ShelfClient, cast(Any, shelf))
    log = ShelfLog(shelved, "log", slack=50)
    for name, value, is_killed in steps:
        wanted.pop(name, None)
        if value is None:
            log.drop(name)
        else:
            wanted[name] = value
            log.put(name, value)
        log.tidy(wanted.items())
        if is_killed:
            log.close()
            log = ShelfLog(shelved, "log", slack=50)
            assert list(log.found.items()) == list(wanted.items())
    if shelf.kept:
        n_bytes = sum(len(value) + 10 for value in wanted.values())
        assert os.fstat(shelf.kept["log"]).st_size <= 3 * n_bytes + 500
    log.close()
    shelf.close("log")
