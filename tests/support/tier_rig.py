"""All tiers of a node in one process, without actors: real index, arena, files and protocol.

``cache_meta`` itself runs here, and messages that it sends are queued; the workers of the writer
and of the directories and the promoter handle their messages inside ``run``. Time stands still
except in ``wait``. File systems can be made to fail, and every one of them
checks after each call that its directory is within its budget.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors import messages as m
from actors.messages.payload import PayloadKeeper
from actors.storage import cache_meta
from actors.storage.cache_meta import CacheMetaActor, CacheMetaArgs
from actors.storage.promoter import Promoter
from actors.storage.tier_directory import TierDirectory
from actors.storage.tier_writer import BATCH_ROWS, TierWriter
from cache import refs
from cache.answers import BlockRef
from cache.arena import SlabWriter, create_arena, scan_arena
from cache.filesystem import PosixFilesystem
from cache.keys import BLOCK_TOKENS, namespace_key
from cache.publish import PROBE, QUARANTINE
from cache.rows import RowHeader, RowIdentity, row_bytes
from cache.tokens import pack
from supervision import Address, ChildKind, Entry

ROOT = namespace_key([("model", "rig")])
PAYLOAD = 3000
ROW_BYTES = row_bytes(BLOCK_TOKENS, PAYLOAD)
SLAB = -(-ROW_BYTES // 4096) * 4096


class FailingFilesystem(PosixFilesystem):
    """A disk below ``root`` that can be set to refuse, and that counts the bytes it holds."""

    def __init__(self, root: Path, budget: int) -> None:
        self.root, self.budget = str(root), budget
        self.write_error: int | None = None
        self.other_device = False
        self.probes = 0

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name in ("create", "write", "sync", "link", "make_dir", "sync_dir"):
            return lambda *args: self._checked(name, value, args)
        return value

    def _checked(self, name: str, call: Any, args: tuple[Any, ...]) -> Any:
        if name == "create" and args[0].endswith(PROBE):
            self.probes += 1
        if self.write_error is not None and name in ("write", "sync", "link", "create"):
            if name == "write":
                os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
            raise OSError(self.write_error, os.strerror(self.write_error))
        done = call(*args)
        used = stored_bytes(self.root)
        assert used <= self.budget, f"{self.root} holds {used} of {self.budget} bytes"
        return done

    def device(self, path: str) -> int:
        return super().device(path) + (1 if self.other_device else 0)


def stored_bytes(root: str | Path) -> int:
    """What the rows of a directory take, temp files included; one with two names counts once."""
    files: dict[int, int] = {}
    for folder, _, names in os.walk(root):
        if os.path.basename(folder) != QUARANTINE:
            for name in names:
                if name != PROBE:
                    facts = os.stat(os.path.join(folder, name))
                    files[facts.st_ino] = facts.st_size
    return sum(files.values())


def block(number: int) -> list[int]:
    return [number, *range(1, BLOCK_TOKENS)]


class Rig:
    """See the module docstring. ``tiers`` are budgets in rows by name, fastest first."""

    def __init__(
        self, home: Path, monkeypatch: pytest.MonkeyPatch, *, ram_rows: int = 64, **tiers: int
    ) -> None:
        self.now = 1000.0
        self.holder = "model:m#1"
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(cache_meta, "time", clock)
        self.arena = str(home / "arena")
        self.ram_bytes = ram_bytes = 4096 + ram_rows * SLAB
        if not os.path.exists(self.arena):
            with open(self.arena, "w+b") as file:
                create_arena(file.fileno(), ram_bytes)
        self.roots = {name: home / name / "rows" for name in tiers}
        self.budgets = {name: rows * ROW_BYTES for name, rows in tiers.items()}
        self.disks: dict[str, FailingFilesystem] = {}
        for name, root in self.roots.items():
            root.mkdir(parents=True, exist_ok=True)
            self.disks[name] = FailingFilesystem(root, max(self.budgets[name], stored_bytes(root)))
        dirs = {name: str(root) for name, root in self.roots.items()}
        self.queue: deque[tuple[str, object]] = deque()
        self.due: deque[object] = deque()  # messages of cache_meta to itself, for its next turn
        self.hung: set[str] = set()
        self.replies: list[Any] = []
        self.log = _Log()
        self.meta = self._make_meta(ram_bytes)
        self.lanes = {name: TierWriter(name, dirs, self.arena, self.disks[name]) for name in tiers}
        self.promoter = Promoter(self.arena, dirs, PosixFilesystem())
        self.keepers = {
            name: TierDirectory(
                name,
                dirs[name],
                os.stat(dirs[name]).st_dev,
                self.disks[name],
                self.report,
                clock=lambda: self.now,
            )
            for name in tiers
        }
        self.report(m.RowsFound("ram", tuple(self._arena_rows()), last=True))
        for keeper in self.keepers.values():
            keeper.start()
        self.run()

    def _make_meta(self, ram_bytes: int) -> CacheMetaActor:
        meta: Any = CacheMetaActor()
        ids = ("writer", "ram_tier", *(f"tier:{name}" for name in self.budgets))
        meta.directory = {name: up(name) for name in ids}
        meta.incarnation = 1
        meta.log = self.log
        meta.after = lambda seconds, payload: None if seconds else self.due.append(payload)
        meta.tell = self._tell
        meta.init(CacheMetaArgs(self.arena, ram_bytes, tuple(self.budgets.items())))
        return meta  # type: ignore[no-any-return]

    def _arena_rows(self) -> list[m.StoredRow]:
        return [
            m.StoredRow.of(header.id, header.row_bytes, offset)
            for offset, _, header in scan_arena(self.arena)
        ]

    # ── messages ──

    def _tell(self, target: object, message: object) -> bool:
        if isinstance(target, str):
            self.queue.append((target, message))
        else:
            self.replies.append(message)
        return True

    def report(self, message: object) -> None:
        self.meta.handle(message, Address("127.0.0.1", 1))

    def run(self) -> None:
        """Handle all queued messages until none is left, except those of hung children."""
        held: deque[tuple[str, object]] = deque()
        while self.queue or self.due:
            if self.due:
                self.meta.handle_timer(self.due.popleft())
                continue
            target, message = self.queue.popleft()
            where = message.tier if isinstance(message, m.CopyRow) else target
            where = "ram" if isinstance(message, m.PromoteRows) else where
            if where in self.hung:
                held.append((target, message))
            elif target == "writer":
                self._write(message)
            elif target == "ram_tier":
                if isinstance(message, m.ReadAhead):
                    self.promoter.read_ahead(message)
                    continue
                assert isinstance(message, m.PromoteRows)
                self.report(self.promoter.promote_all(message))
            else:
                self.keepers[target.removeprefix("tier:")].take(message)  # type: ignore[arg-type]
        self.queue = held
        self.meta._index.check_integrity()

    def _write(self, first: object) -> None:
        assert isinstance(first, m.CopyRow)
        batch = [first]
        while len(batch) < BATCH_ROWS and self.queue:
            target, order = self.queue[0]
            if target != "writer" or not isinstance(order, m.CopyRow) or order.tier != first.tier:
                break
            batch.append(order)
            self.queue.popleft()
        for answer in self.lanes[first.tier].write(batch):
            self.report(answer)

    def wait(self, seconds: float, step: float = 0.25) -> None:
        """Let time pass, and run the periodic work of all processes."""
        end = self.now + seconds
        while self.now < end:
            self.now += step
            for keeper in self.keepers.values():
                keeper.tick()
            self.meta.handle_timer(None)
            self.run()

    # ── a model ──

    def save(self, *numbers: int, tail: int | None = None, run: bool = True) -> list[bytes]:
        """Store a prompt of whole blocks; the keys of its rows, of which some may be refused.

        Of the last block only the first ``tail`` tokens, if that is given.
        """
        self.now += 60  # what is saved later is hotter
        wanted, parent, keys = [], ROOT, []
        for index, number in enumerate(numbers):
            is_last = index == len(numbers) - 1
            ids = block(number)[: tail if is_last else None]
            row = RowIdentity.after(parent, ROOT, index * BLOCK_TOKENS, pack(ids))
            wanted.append(m.RowWanted.of(row, row_bytes(len(ids), PAYLOAD)))
            keys.append(row.key)
            parent = row.key
        self.report(m.ReserveRows("ref", self.holder, ROOT, 1, tuple(wanted)))
        granted = dict(self.replies.pop().offsets)
        for one in wanted:
            if one.key in granted:
                self._fill(one, granted[one.key])
        self.report(m.RowsWritten(self.holder, tuple(granted), ()))
        if run:
            self.run()
        return keys

    def _fill(self, row: m.RowWanted, offset: int) -> None:
        header = RowHeader(row.identity(ROOT), PAYLOAD)
        with SlabWriter(self.arena, offset, row.row_bytes) as slab:
            slab.begin(header)
            slab.payload[:] = row.key[:1] * PAYLOAD
            slab.publish()

    def look_up(self, *numbers: int) -> list[BlockRef]:
        """What a request for this prompt would restore; the lease is released."""
        tokens = pack([token for number in numbers for token in block(number)])
        keeper = PayloadKeeper(tokens)
        self.report(m.LookupPrefix("ref", self.holder, ROOT, keeper.payload))
        found = self.replies.pop()
        keeper.close()
        self.report(m.ReleaseLease(found.lease))
        return refs.unpack_blocks(found.blocks, ROOT, tokens)

    def prefetch(self, ref: str, *numbers: int, slower: tuple[str, ...] = ()) -> None:
        """A request for this prompt waits."""
        tokens = pack([token for number in numbers for token in block(number)])
        self.report(m.PrefetchPrefix(ref, self.holder, ROOT, tokens, slower=slower))

    def sources(self, *numbers: int) -> list[str]:
        return [found.tier for found in self.look_up(*numbers)]

    # ── queries ──

    def files(self, name: str) -> set[bytes]:
        """Keys of the row files in a directory."""
        return {
            bytes.fromhex(file[:-4])
            for folder, _, names in os.walk(self.roots[name])
            for file in names
            if file.endswith(".kvb") and os.path.basename(folder) != QUARANTINE
        }

    def status(self) -> dict[str, Any]:
        return self.meta.status()

    def tier(self, name: str) -> dict[str, Any]:
        tiers: dict[str, Any] = self.status()["tiers"]
        return tiers[name]


class _Log(logging.Logger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__("rig")
        self.warnings: list[str] = []
        self.infos: list[str] = []

    def warning(self, message: object, *args: object, **more: Any) -> None:
        self.warnings.append(str(message) % args)

    def info(self, message: object, *args: object, **more: Any) -> None:
        self.infos.append(str(message) % args)


def up(name: str) -> Entry:
    return Entry(
        id=name,
        kind=ChildKind.WORKER,
        parent="cache",
        actor="a.b.C",
        address=Address("127.0.0.1", 1),
        pid=7,
        incarnation=1,
        state="up",
        restarts=0,
        started_at=0.0,
        last_exit=None,
    )


__all__ = ["PAYLOAD", "ROOT", "ROW_BYTES", "Rig", "stored_bytes", "up"]
