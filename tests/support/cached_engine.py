"""An engine on a thread, with the real cache_meta beside it, without processes or mailboxes.

``cache_meta`` answers on the engine's thread, at once. A test runs one request after the other and
checks what was published: rows, reasons, reservations.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from actors import messages as m
from actors.engine.commands import CacheGone, Close
from actors.engine.engine import build_engine
from actors.kv.open_store import open_store
from actors.storage.cache_meta import CacheMetaActor, CacheMetaArgs
from actors.storage.tier_directory import TierDirectory
from cache import tokens as token_bytes
from cache.arena import ArenaReader, create_arena, scan_arena
from cache.filesystem import PosixFilesystem
from cache.finish_keys import ends_in
from cache.policy import LivePolicy, SavePolicy
from cache.publish import write_rows
from cache.rows import HEADER_BYTES, RowHeader
from native.backend import Backend
from native.params import ModelParams, SamplingParams
from native.stub import StubBackend
from supervision import Address, ChildKind, Entry
from tests.support.policies import RESTORES_ALWAYS

CALLER, ENGINE = Address("127.0.0.1", 1), Address("127.0.0.1", 2)
ROOT = b"n" * 32
ANSWER_S = 20.0
DISK = "disk"
_DISK_BYTES = 1 << 30


class Cache:
    """The arena and cache_meta, which may be replaced by a new incarnation."""

    def __init__(self, path: Path, budget: int = 64 << 20, disk: Path | None = None) -> None:
        """``disk``: a directory of row files, which are found and read; none are written there."""
        self.path, self.budget, self.disk = path, budget, disk
        with path.open("w+b") as file:
            create_arena(file.fileno(), budget)
        self.engines: dict[str, CachedEngine] = {}
        self.incarnation: int | None = 0
        self.start()

    def start(self) -> None:
        """A new incarnation, which scans the arena."""
        self.incarnation = (self.incarnation or 0) + 1
        meta: Any = CacheMetaActor()
        names = ("ram_tier",) if self.disk is None else ("ram_tier", f"tier:{DISK}")
        meta.directory = {name: _up(name) for name in names}
        meta.incarnation = self.incarnation
        meta.log = logging.getLogger("test")
        meta.after = lambda seconds, payload: None
        meta.tell = self._tell
        tiers = () if self.disk is None else ((DISK, _DISK_BYTES),)
        meta.init(CacheMetaArgs(str(self.path), self.budget, tiers))
        meta._grants_from = 0.0  # there is no other writer, so there is nothing to wait for
        self.meta = meta
        meta.handle(m.RowsFound("ram", tuple(self._found()), last=True), ENGINE)
        if self.disk is not None:
            report = partial(meta.handle, sender=ENGINE)
            device = self.disk.stat().st_dev
            TierDirectory(DISK, str(self.disk), device, PosixFilesystem(), report).start()
        while not meta._row_import.is_idle:
            meta._import_some()

    def die(self, engine: CachedEngine) -> None:
        """Replace cache_meta by a new one, without its state."""
        self.start()
        engine.commands.put(CacheGone())

    def _found(self) -> list[m.StoredRow]:
        return [
            m.StoredRow.of(
                header.id,
                header.row_bytes,
                offset,
                ends=ends_in(_meta(self.path, offset, header)),
            )
            for offset, _, header in scan_arena(str(self.path))
        ]

    def _tell(self, target: object, message: object) -> bool:
        for name, engine in self.engines.items():
            if target in (engine.address, name):
                engine.commands.put(message)
        return True

    def write_files(self, folder: Path) -> None:
        """Publish every row of the arena as a file below ``folder``."""
        arena = ArenaReader(str(self.path))
        slabs = [arena.slab(offset) for offset, _, _ in scan_arena(str(self.path))]
        written = write_rows(PosixFilesystem(), str(folder), slabs)
        assert all(isinstance(one, RowHeader) for one in written), written
        for slab in slabs:
            slab.release()
        arena.close()

    @property
    def tier_dirs(self) -> dict[str, str]:
        return {} if self.disk is None else {DISK: str(self.disk)}

    def headers(self) -> list[RowHeader]:
        """Of every row in the arena."""
        return [header for _, _, header in scan_arena(str(self.path))]

    def status(self) -> dict[str, Any]:
        return dict(self.meta.status())


@contextmanager
def checked_cache(folder: Path) -> Iterator[Cache]:
    """A cache whose engines are closed at the end, and nothing of them may be left in it."""
    cache = Cache(folder / "arena")
    yield cache
    for engine in list(cache.engines.values()):
        engine.close()
    cache.meta._index.check_integrity()
    assert cache.status()["reservations"] == 0
    assert cache.status()["leases"] == 0


class CachedEngine:
    """One engine as the model ``m``, over a stub unless a ``backend`` is given.

    ``on_event`` is called on its thread with each message that it sends to a caller.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        save: SavePolicy,
        live: LivePolicy | None = None,
        n_ctx: int = 4096,
        name: str = "model:m",
        incarnation: int = 1,
        backend: Backend | None = None,
        on_event: Callable[[CachedEngine, object], None] | None = None,
        **engine: Any,
    ) -> None:
        self.cache, self.name = cache, name
        self.address = Address("127.0.0.1", 10 + len(cache.engines))
        cache.engines[name] = self
        self.holder = f"{name}#{incarnation}"
        self.commands: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.ended: queue.SimpleQueue[m.Completed | m.CompletionFailed] = queue.SimpleQueue()
        self.written: list[m.RowsWritten] = []
        self.said: dict[str, list[int]] = {}
        if backend is None:
            backend = StubBackend.load("stub", ModelParams(n_ctx=n_ctx))
        self.backend = backend
        self._on_event = on_event
        self.store = open_store(
            backend,
            root=ROOT,
            holder=self.holder,
            label="m",
            arena_path=str(cache.path),
            tier_dirs=cache.tier_dirs,
            granted_by=lambda: cache.incarnation,
            policy=replace(save, restore=RESTORES_ALWAYS),
        )
        self.engine = build_engine(
            backend, self.store, self.commands, self._send, max_queue=99, live=live, **engine
        )
        self._thread = threading.Thread(target=self.engine.run, daemon=True)
        self._thread.start()

    def _send(self, target: object, message: object) -> None:
        if target == "cache_meta":
            if isinstance(message, m.RowsWritten):
                self.written.append(message)
            self.cache.meta.handle(message, self.address)
        elif isinstance(message, m.TokensDelivered):
            said = self.said.setdefault(message.ref, [])
            assert message.index == len(said), "a gap, or tokens twice"
            said.extend(token_bytes.unpack(message.tokens))
        elif isinstance(message, m.Completed | m.CompletionFailed):
            self.ended.put(message)
        if self._on_event is not None and target != "cache_meta":
            self._on_event(self, message)

    def ask(
        self,
        name: str,
        prompt: Sequence[int],
        max_tokens: int = 4,
        parent_key: bytes | None = None,
        *,
        continues: bool = False,
        exact: m.Exact | None = None,
        salt: bytes = b"",
    ) -> m.Completed:
        """Run a request to its end; with ``continues`` the prompt is what follows the parent."""
        ids = m.TokenPrompt(token_bytes.pack(prompt))
        complete = m.Complete(
            name,
            "m",
            m.Continuation(ids) if continues else ids,
            max_tokens=max_tokens,
            parent_key=parent_key,
            sampling=SamplingParams(temperature=1.0, seed=len(prompt)),
            exact=exact,
            salt=salt,
        )
        self.commands.put(m.Run(name, CALLER, complete))
        done = self.ended.get(timeout=ANSWER_S)
        assert isinstance(done, m.Completed), done
        return done

    def ends(self, n: int) -> dict[str, m.Completed | m.CompletionFailed]:
        """Wait until so many requests have ended."""
        ended = [self.ended.get(timeout=ANSWER_S) for _ in range(n)]
        return {one.ref: one for one in ended}

    def published(self) -> list[bytes]:
        """Keys in the order of publishing."""
        return [key for written in self.written for key in written.published]

    def close(self) -> None:
        self.commands.put(Close(m.FailReason.MODEL_UNLOADED, "the test has ended"))
        self._thread.join(ANSWER_S)
        assert not self._thread.is_alive()
        self.cache.engines.pop(self.name, None)

    def __enter__(self) -> CachedEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _meta(path: Path, offset: int, header: RowHeader) -> bytes:
    with path.open("rb") as file:
        file.seek(offset + HEADER_BYTES)
        return file.read(header.meta_bytes)


def _up(name: str) -> Entry:
    return Entry(
        id=name,
        kind=ChildKind.WORKER,
        parent="cache",
        actor="a.b.C",
        address=ENGINE,
        pid=7,
        incarnation=1,
        state="up",
        restarts=0,
        started_at=0.0,
        last_exit=None,
    )
