"""SIGKILL a process while it writes slabs: its row is absent or whole, all others untouched."""

from __future__ import annotations

import os
import random
import signal
import threading

import pytest

from cache import arena
from cache.keys import namespace_key
from cache.rows import RowHeader, RowIdentity, row_bytes
from cache.tokens import pack, unpack

pytestmark = pytest.mark.fault

ROOT = namespace_key([("model", "kill")])
PAGE = arena.arena_page_bytes()
SLOTS, SLOT_PAGES = 6, 8


def slot_offset(slot: int) -> int:
    return (1 + slot * SLOT_PAGES) * PAGE


def payload_of(number: int) -> bytes:
    """Any page of it differs from any page of any other row."""
    size = 1 + (number * 7919) % (SLOT_PAGES * PAGE - 600)
    return (number.to_bytes(8, "little") * (size // 8 + 1))[:size]


def write(path: str, slot: int, number: int, step=None) -> None:
    tokens, payload = pack([number]), payload_of(number)
    head = RowHeader(RowIdentity.after(ROOT, ROOT, 0, tokens), len(payload))
    is_stepping, step = step is not None, step or (lambda: None)
    step()
    arena.mark_free(path, slot_offset(slot))
    step()
    with arena.SlabWriter(path, slot_offset(slot), row_bytes(1, len(payload))) as slab:
        if is_stepping:
            slab._map = Stepping(slab._map, step)
        slab.begin(head)
        view = slab.payload
        for at in range(0, len(payload), PAGE):
            step()
            view[at : at + PAGE] = payload[at : at + PAGE]
        view.release()
        slab.publish()
        step()


class Stepping:
    """A mapping that calls ``step`` before every store."""

    def __init__(self, mapping, step) -> None:
        self.mapping, self.step = mapping, step

    def __setitem__(self, at, value) -> None:
        self.step()
        self.mapping[at] = value

    def __getitem__(self, at):
        return self.mapping[at]

    def __len__(self) -> int:
        return len(self.mapping)

    def close(self) -> None:
        self.mapping.close()


def found(path: str) -> dict[int, int]:
    """Slot -> number of every row a scan finds, each compared byte by byte."""
    out = {}
    with arena.ArenaReader(path) as reader:
        for offset, nbytes, head in arena.scan_arena(path):
            slab = reader.slab(offset)
            (number,) = unpack(head.id.tokens)
            _, payload = reader.row(offset)
            assert payload == payload_of(number), "a torn row was found"
            assert nbytes <= SLOT_PAGES * PAGE
            out[(offset // PAGE - 1) // SLOT_PAGES] = number
            payload.release()
            slab.release()
    return out


@pytest.fixture
def path():
    fd = os.memfd_create("kill-arena", os.MFD_CLOEXEC)
    arena.create_arena(fd, (1 + SLOTS * SLOT_PAGES) * PAGE)
    yield f"/proc/{os.getpid()}/fd/{fd}"
    os.close(fd)


def in_child(work) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def test_a_writer_killed_before_any_store_leaves_its_row_absent_or_whole(path, monkeypatch):
    # memoryview() of a stepping mapping must reach the real one
    monkeypatch.setattr(
        arena, "memoryview", lambda m: memoryview(getattr(m, "mapping", m)), raising=False
    )
    outcomes = set()
    for slot in range(SLOTS):
        write(path, slot, slot + 1)
    for kill_at in range(40):
        before = found(path)
        assert len(before) >= SLOTS - 1
        slot, number = kill_at % SLOTS, 100 + kill_at
        left = [kill_at]

        def step(left=left) -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        pid = in_child(lambda slot=slot, number=number, step=step: write(path, slot, number, step))
        _, status = os.waitpid(pid, 0)
        after = found(path)
        outcome = after.pop(slot, None)
        assert outcome in (None, before.pop(slot, None), number)
        assert after == before, "a row of another writer changed"
        if os.WIFSIGNALED(status):
            outcomes.add("absent" if outcome is None else "new" if outcome == number else "old")
        write(path, slot, slot + 1)
    assert outcomes == {"old", "absent", "new"}


def test_writers_killed_at_random_instants_never_leave_a_torn_row(path):
    random.seed(11)
    pause = threading.Event()
    killed_in_between = 0
    for _ in range(60):
        for slot in range(SLOTS):
            write(path, slot, slot + 1)

        started, ready = os.pipe()

        def work(ready=ready) -> None:
            number = 1000
            os.write(ready, b"!")
            while True:
                number += 1
                write(path, number % (SLOTS - 1), number)

        pid = in_child(work)
        os.read(started, 1)
        pause.wait(random.uniform(0, 0.003))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(started)
        os.close(ready)
        after = found(path)
        assert after[SLOTS - 1] == SLOTS, "a row that was not written to is gone"
        killed_in_between += len(after) < SLOTS
    assert killed_in_between > 5, "the kills all missed"
