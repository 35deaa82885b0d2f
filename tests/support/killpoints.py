"""Kill -9 at every step of the cache's protocol, then recover and check everything.

python -m tests.support.killpoints [--points 1400] [--seed 1] [--point N]

A *point* is one run of a random load over the cache of a node (real index, arena, directories,
writer, tiers, promotions: ``tests.support.tier_rig``) in which one process is killed. The process
is a real one: the chosen operation runs in a fork that sends itself SIGKILL before a chosen step: a
slab begun, half a payload, a publish, a temp file created, half written, synced, linked, unlinked,
a directory synced, a slab wiped, or after the last one and before its result was reported. Then the
processes that the supervision tree would restart are restarted, and the load continues to its end.

Afterwards each row is absent or whole, the accounts are right, no lease or reservation is left,
directories keep their budgets at every call, lookups find what is stored, and a second start, from
the files alone, finds the same. The number of a point and the seed repeat it exactly.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors import messages as m
from actors.storage import cache_meta
from actors.storage.promoter import Promoter
from actors.storage.tier_directory import TierDirectory
from actors.storage.tier_writer import BATCH_ROWS, TierWriter
from cache.answers import RAM
from cache.arena import ArenaReader, SlabWriter, scan_arena
from cache.filesystem import PosixFilesystem
from cache.publish import TEMP_SUFFIX, open_row
from cache.rows import RowIdentity
from cache.tokens import pack
from supervision import Address
from tests.support.tier_rig import PAYLOAD, ROOT, ROW_BYTES, Rig, block, stored_bytes
from tests.support.tier_rig import up as entry_of

FILE_STEPS = ("create", "sync", "link", "unlink", "rename", "make_dir", "sync_dir")
ACTIONS = 22
FIRST_OPERATIONS = 160
"""A point's operation is drawn from so many; a load has about as many."""
OPERATIONS = {
    "cache_meta": 90,
    "model:m": 25,
    "ram_tier": 4,
    "tier:disk": 9,
    "tier:ram_file": 9,
    "writer": 25,
}
"""About as many of a load are of each process."""
SETTLE_S = 8.0
DELIVERIES = 2000
"""Before all is quiet; a load of few rows needs some dozens."""
FAILED = 3
MODEL = "model:m"
IN_MEMORY = Path("/dev/shm")  # for temporary folders
HERE = Address("127.0.0.1", 1)


@dataclasses.dataclass(frozen=True)
class Point:
    """The operation that is killed, and before which of its steps."""

    operation: int
    step: int
    role: str | None = None
    """Count the operations of this process only."""


class Died(Exception):
    """The process of this role was killed."""


class KillRig(Rig):
    """A rig in which the process of the ``point.operation``-th operation is killed."""

    def __init__(self, home: Path, patch: pytest.MonkeyPatch, point: Point, **sizes: int) -> None:
        self.point = point
        self.operations = 0
        self.by_role: Counter[str] = Counter()
        self.died: str | None = None
        self.is_fork = False
        self.incarnations: Counter[str] = Counter()
        self.leases: list[int] = []
        self.tails: random.Random | None = None
        """Draws how long the tail is that a save ends with; None: whole blocks only."""
        super().__init__(home, patch, **sizes)

    # ── kills ──

    def operate(self, role: str, work: Callable[[], Any]) -> Any:
        """Do it; or let a fork begin it and be killed, and raise ``Died``."""
        self.operations += 1
        self.by_role[role] += 1
        count = self.by_role[role] if role == self.point.role else self.operations
        is_meant = self.point.role in (None, role) and count == self.point.operation
        if self.died is not None or not is_meant:
            return work()
        self.died = role
        die_in_a_fork(lambda: self._alone(work), self.point.step)
        raise Died(role)

    def _alone(self, work: Callable[[], Any]) -> None:
        """In the fork: messages that it sends are dropped."""
        self.is_fork = True
        work()

    def restart(self, role: str) -> None:
        """What supervision does: rest_for_one from cache_meta on; a model alone."""
        order = ["cache_meta", "ram_tier", *(f"tier:{name}" for name in self.budgets), "writer"]
        gone = [role] if role == MODEL else order[order.index(role) :]
        self.queue = deque(one for one in self.queue if one[0] not in gone)
        for child in gone:
            self.incarnations[child] += 1
        if role == MODEL:
            self.holder = f"{MODEL}#{1 + self.incarnations[MODEL]}"
        if role == "cache_meta":
            self.due.clear()
            self.meta = self._make_meta(self.ram_bytes)
            self.meta.incarnation = 1 + self.incarnations[role]
            self.leases.clear()
        entries = {child: self._entry(child) for child in (*order[1:], MODEL)}
        self.meta.directory = entries  # type: ignore[assignment]
        self.meta.directory_changed(tuple(entries[one] for one in gone if one in entries))
        dirs = {name: str(root) for name, root in self.roots.items()}
        if "ram_tier" in gone:
            self.promoter = Promoter(self.arena, dirs, PosixFilesystem())
            self.tell_meta(m.RowsFound(RAM, tuple(self.found_in_arena()), last=True))
        for name in self.budgets:
            if f"tier:{name}" in gone:
                self.keepers[name].close()
                self.keepers[name] = self._keeper(name)
                self.keepers[name].start()
        if "writer" in gone:
            self.lanes = {
                name: TierWriter(name, dirs, self.arena, self.disks[name]) for name in dirs
            }

    def _entry(self, child: str) -> Any:
        return dataclasses.replace(entry_of(child), incarnation=1 + self.incarnations[child])

    def _keeper(self, name: str) -> TierDirectory:
        root = str(self.roots[name])
        return TierDirectory(
            name,
            root,
            os.stat(root).st_dev,
            self.disks[name],
            self.tell_meta,
            incarnation=1 + self.incarnations[f"tier:{name}"],
            clock=lambda: self.now,
        )

    def found_in_arena(self) -> list[m.StoredRow]:
        """As ram_tier reports it, tokens and all."""
        return [
            m.StoredRow.of(header.id, header.row_bytes, offset)
            for offset, _, header in scan_arena(self.arena)
        ]

    # ── the operations of each process ──

    def tell_meta(self, message: object) -> None:
        """A message that is not an operation: what a new process reports of itself."""
        if not self.is_fork:
            self.meta.handle(message, HERE)

    def report(self, message: object) -> None:
        if self.is_fork:
            return
        try:
            self.operate("cache_meta", lambda: self.meta.handle(message, HERE))
        except Died:
            self.restart("cache_meta")

    def run(self) -> None:
        delivered = 0
        while self.queue or self.due:
            delivered += 1
            assert delivered < DELIVERIES, "the processes keep sending each other messages"
            if self.due:
                self.meta.handle_timer(self.due.popleft())
                continue
            target, message = self.queue.popleft()
            try:
                self._deliver(target, message)
            except Died as died:
                self.restart(str(died))
                self.meta._index.check_integrity()

    def _deliver(self, target: str, message: object) -> None:
        if target == "writer":
            assert isinstance(message, m.CopyRow)
            batch = [message]
            while len(batch) < BATCH_ROWS and self.queue and self.queue[0][0] == "writer":
                order = self.queue[0][1]
                if not isinstance(order, m.CopyRow) or order.tier != message.tier:
                    break
                batch.append(order)
                self.queue.popleft()
            lane = self.lanes[message.tier]
            for answer in self.operate("writer", lambda: lane.write(batch)):
                self.report(answer)
        elif target == "ram_tier":
            if isinstance(message, m.ReadAhead):
                self.promoter.read_ahead(message)
                return
            assert isinstance(message, m.PromoteRows)
            self.report(self.operate("ram_tier", lambda: self.promoter.promote_all(message)))
        elif target.startswith("tier:"):
            keeper = self.keepers[target.removeprefix("tier:")]
            self.operate(target, lambda: keeper.take(message))  # type: ignore[arg-type]

    def _fill(self, row: m.RowWanted, offset: int) -> None:
        self.operate(MODEL, lambda: super(KillRig, self)._fill(row, offset))

    # ── the load ──

    def act(self, rng: random.Random) -> None:
        """One random action of models and users."""
        numbers = [rng.randrange(3) for _ in range(rng.randrange(1, 5))]
        match rng.randrange(9):
            case 0 | 1 | 2 | 3:
                self._save(numbers)
            case 4:
                with contextlib.suppress(IndexError):  # cache_meta died before it answered
                    self.look_up(*numbers)
            case 5:
                self._hold(numbers)
            case 6:
                self._reserve_only(numbers)
            case 7:
                self.report(m.EvictBytes("ref", rng.randrange(1, 4) * ROW_BYTES, (RAM,)))
                self.replies.clear()
            case 8:
                self.wait(rng.choice((0.25, 3.0)))
        self.run()

    def _save(self, numbers: list[int]) -> None:
        tail = self.tails.choice((None, 1, 20, 40, 63)) if self.tails is not None else None
        try:
            self.save(*numbers, tail=tail)
        except Died:
            self.restart(MODEL)
        except IndexError:  # cache_meta died before it answered
            self.replies.clear()

    def _hold(self, numbers: list[int]) -> None:
        """A reader that keeps its lease until it ends or is killed."""
        tokens = pack([token for number in numbers for token in block(number)])
        self.report(m.LookupPrefix("ref", self.holder, ROOT, tokens))
        if self.replies:
            self.leases.append(self.replies.pop().lease)
        if len(self.leases) > 2:
            self.report(m.ReleaseLease(self.leases.pop(0)))

    def _reserve_only(self, numbers: list[int]) -> None:
        """The end of a reply, held back; then the model is killed."""
        tokens = pack(block(numbers[0] + 50))
        row = m.RowWanted.of(RowIdentity.after(ROOT, ROOT, 0, tokens), ROW_BYTES)
        self.report(m.ReserveRows("ref", self.holder, ROOT, 3, (row,)))
        self.replies.clear()
        self.leases.clear()
        self.restart(MODEL)

    def settle(self) -> None:
        """Release every lease, check the disks, and run until all queues are empty."""
        while self.leases:
            self.report(m.ReleaseLease(self.leases.pop()))
        self.restart(MODEL)
        self.wait(SETTLE_S)
        self.report(m.PersistNow("ref"))
        self.replies.clear()
        self.run()


def die_in_a_fork(work: Callable[[], Any], step: int) -> None:
    """Begin ``work`` in a process that kills itself before its ``step``-th step, or at its end."""
    pid = os.fork()
    if not pid:
        try:
            _count_steps(step)
            work()
            os.kill(os.getpid(), signal.SIGKILL)
        except BaseException:  # noqa: BLE001 - a fork must not continue as its parent
            traceback.print_exc()
        os._exit(FAILED)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status), "the operation failed before it could be killed"
    assert os.WTERMSIG(status) == signal.SIGKILL


def _count_steps(step: int) -> None:
    """In the fork: count the steps that change memory or disk, and be killed before the last."""
    left = step

    def reached() -> None:
        nonlocal left
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any) -> Any:
            reached()
            return call(*args)

        return counting

    def write(self: PosixFilesystem, fd: int, chunk: Any) -> None:
        view = memoryview(chunk).cast("B")
        for part in (view[: len(view) // 2], view[len(view) // 2 :]):
            reached()
            real_write(self, fd, part)

    real_write = PosixFilesystem.write
    for name in FILE_STEPS:
        setattr(PosixFilesystem, name, counted(getattr(PosixFilesystem, name)))
    PosixFilesystem.write = write  # type: ignore[method-assign]
    for name in ("begin", "publish", "close"):
        setattr(SlabWriter, name, counted(getattr(SlabWriter, name)))
    cache_meta.mark_free = counted(cache_meta.mark_free)


# ── checks of what is left ─────────────────────────────────────────────────────────────────────


def check(rig: Rig) -> int:
    """Everything that must hold when all queues are empty; returns the number of stored rows."""
    index = rig.meta._index
    index.check_integrity()
    facts = rig.status()
    assert facts["leases"] == 0, "a lease is left"
    assert facts["reservations"] == 0, "a reservation is left"
    rows, _ = index.scan(0, 10_000)
    in_arena = {offset: header.key for offset, _, header in scan_arena(rig.arena)}
    with ArenaReader(rig.arena) as arena:
        for offset in in_arena:
            header, payload = arena.row(offset)
            assert bytes(payload) == header.key[:1] * PAYLOAD, "a torn row in RAM"
            payload.release()
    known = {offset: row.key for row in rows for tier, offset in row.tiers if tier == RAM}
    assert known == in_arena, "the index and the arena hold different rows"
    for name, root in rig.roots.items():
        files = rig.files(name)
        assert files == {row.key for row in rows if any(tier == name for tier, _ in row.tiers)}
        for key in files:
            found = open_row(PosixFilesystem(), str(root), key)
            assert bytes(found.payload) == key[:1] * PAYLOAD, "a torn file"
            found.close()
        assert stored_bytes(root) <= rig.budgets[name], "a directory over its budget"
        temps = [one for _, _, names in os.walk(root) for one in names if TEMP_SUFFIX in one]
        assert not temps, f"temp files are left: {temps}"
    return len(rows)


def run_point(home: Path, number: int, seed: int) -> str:
    """One point; the role that was killed, or "none" if the load had fewer operations."""
    rng = random.Random(f"{seed}/{number}")
    point = Point(rng.randrange(1, FIRST_OPERATIONS), rng.choice((*range(8), 12, 20, 40)))
    if number % 2:  # every process gets its share, those with few operations, too
        role, most = rng.choice(sorted(OPERATIONS.items()))
        point = Point(rng.randrange(1, most), point.step, role)
    sizes = {"ram_rows": rng.randrange(4, 12), "ram_file": rng.randrange(4, 9)}
    sizes["disk"] = rng.randrange(4, 12)
    patch = pytest.MonkeyPatch()
    try:
        rig = KillRig(home, patch, point, **sizes)
        if number % 3 == 0:  # with a source of its own: other points stay as they are
            rig.tails = random.Random(f"{seed}/{number}/tails")
        for _ in range(ACTIONS):
            rig.act(rng)
        died, rig.died = rig.died, "none left"
        rig.settle()
        check(rig)
        served = rig.save(91, 92)
        rig.wait(1.0)
        if rig.look_up(91, 92):
            assert [one.key for one in rig.look_up(91, 92)] == served[: len(rig.look_up(91, 92))]
        os.unlink(rig.arena)
        again = Rig(home, patch, **sizes)
        again.wait(SETTLE_S)
        check(again)
    finally:
        patch.undo()
    return died or "none"


def run_points(n_points: int, seed: int, first: int = 0, home: Path | None = None) -> Counter[str]:
    """So many points; how often each process died. Raises AssertionError naming the point."""
    died: Counter[str] = Counter()
    if home is None and os.access(IN_MEMORY, os.W_OK):
        home = IN_MEMORY  # a kill loses nothing that was written, so no disk is needed
    for number in range(first, first + n_points):
        folder = Path(tempfile.mkdtemp(prefix="killpoint-", dir=home))
        try:
            died[run_point(folder, number, seed)] += 1
        except Exception as error:
            raise AssertionError(f"point {number} of seed {seed}: {error!r}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return died


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.killpoints")
    parser.add_argument("--points", type=int, default=1400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--point", type=int, help="this one only")
    asked = parser.parse_args()
    began = time.monotonic()
    if asked.point is not None:
        died = run_points(1, asked.seed, asked.point)
    else:
        died = run_points(asked.points, asked.seed)
    summary = ", ".join(f"{role} {times}" for role, times in sorted(died.items()))
    sys.stdout.write(
        f"{sum(died.values())} points in {time.monotonic() - began:.0f} s; died: {summary}\n"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
