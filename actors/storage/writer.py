"""The writer: copies rows from faster tiers to file tiers in the background.

Owns: nothing. Answers: ``CopyRow``. Reports to: cache_meta. A process of its own so that decoding
and lookups never wait for a disk, and a thread for each tier because a disk can hang one for good.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors import messages as m
from actors.storage.tier_worker import TierWorker
from actors.storage.tier_writer import BATCH_ROWS, TierWriter
from cache.filesystem import PosixFilesystem

if TYPE_CHECKING:
    from supervision import Address, ExitReason

FINISH_S = 3.0  # what waits when the node stops is still written, if the disk is not stuck
FINISH_MOST_S = 10.0  # and if it makes progress, within STOP_S
STOP_S = 12.0
"""The writer's ``shutdown``: seconds from the request to stop to SIGKILL."""
_STOP_NOW = "stop now"
Orders = queue.SimpleQueue[m.CopyRow]


@dataclass(frozen=True, slots=True)
class WriterArgs:
    """The arena to read and the directories to write, by tier name."""

    arena_path: str | None
    tier_dirs: tuple[tuple[str, str], ...]


class WriterActor(TierWorker):
    """Writes to all tiers at once, each on a thread of its own."""

    def init(self, args: object) -> None:
        if not isinstance(args, WriterArgs):
            raise TypeError(f"the writer is started with WriterArgs, not {args!r}")
        roots = dict(args.tier_dirs)
        self._writers = {
            tier: TierWriter(tier, roots, args.arena_path, PosixFilesystem()) for tier in roots
        }
        self._orders: dict[str, Orders] = {tier: queue.SimpleQueue() for tier in roots}
        self._given = dict.fromkeys(roots, 0)
        self._done = dict.fromkeys(roots, 0)
        self._answered = 0
        self._stop_reason: ExitReason | None = None
        self._is_last = False
        """No order follows: cache_meta has sent ``NoMoreCopies``."""
        self._stop_at: float | None = None
        self._progress = threading.Condition()
        self._broken: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self.start_engine(self._run)

    def _run(self) -> None:
        for tier in self._writers:
            threading.Thread(
                target=self._guard, args=(tier,), name=f"write:{tier}", daemon=True
            ).start()
        raise self._broken.get()  # a thread that fails ends the actor

    def _guard(self, tier: str) -> None:
        try:
            self._work(self._writers[tier], self._orders[tier])
        except BaseException as broken:  # noqa: BLE001 - the engine raises it again
            self._broken.put(broken)

    def _work(self, writer: TierWriter, orders: Orders) -> None:
        while True:
            batch = [orders.get()]
            while len(batch) < BATCH_ROWS and not orders.empty():
                batch.append(orders.get())
            for answer in writer.write(batch):
                self.post(answer)
            with self._progress:
                self._done[writer.tier] += len(batch)
                self._progress.notify_all()

    def handle(self, message: object, sender: Address) -> None:
        del sender
        if isinstance(message, m.CopyRow) and message.tier in self._orders:
            self._given[message.tier] += 1
            self._orders[message.tier].put(message)
        elif isinstance(message, m.NoMoreCopies):
            self._is_last = True
            self._stop_if_done()

    # ── the end ─────────────────────────────────────────────────────────────────────────────────

    def stop_asked(self, reason: ExitReason) -> None:
        """Take the orders that are still to come, so that none is lost; then stop."""
        if self._stop_reason is not None:
            return
        self._stop_reason = reason
        self._stop_at = time.monotonic() + FINISH_MOST_S
        if self.tell("cache_meta", m.WriterStops(self.incarnation)):
            self.after(FINISH_S, (_STOP_NOW, self._answered))
        else:
            self.stop(reason)

    def undelivered(self, target: Address | str, message: object) -> None:
        if isinstance(message, m.WriterStops) and self._stop_reason is not None:
            self.stop(self._stop_reason)  # cache_meta is gone, so there are no orders
        else:
            super().undelivered(target, message)

    def handle_timer(self, payload: object) -> None:
        match payload:
            case (str(), int(answered)) if self._stop_reason and self._stop_at:
                left_s = self._stop_at - time.monotonic()
                if answered == self._answered or left_s <= 0:
                    self.stop(self._stop_reason)
                else:
                    self.after(min(FINISH_S, left_s), (_STOP_NOW, self._answered))
            case _:
                super().handle_timer(payload)

    def handle_events(self, events: list[object]) -> None:
        self._answered += len(events)
        super().handle_events(events)

    def _report(self) -> None:
        super()._report()
        self._stop_if_done()

    def _stop_if_done(self) -> None:
        is_done = self._answered == sum(self._given.values()) and not self._unreported
        if self._stop_reason is not None and self._is_last and is_done:
            self.stop(self._stop_reason)

    def terminate(self, reason: ExitReason) -> None:
        """Finish what was ordered, as long as there is time for it."""
        del reason
        now = time.monotonic()
        until = now + FINISH_S if self._stop_at is None else min(self._stop_at, now + FINISH_S)
        with self._progress:
            while self._done != self._given and time.monotonic() < until:
                self._progress.wait(until - time.monotonic())

    def status(self) -> dict[str, object]:
        writers = self._writers.values()
        return {
            "rows_written": sum(writer.rows for writer in writers),
            "bytes_written": sum(writer.bytes for writer in writers),
            "failures": sum(writer.failures for writer in writers),
            "queued": sum(orders.qsize() for orders in self._orders.values()),
            "tiers": {
                writer.tier: {**writer.status(), "queued": self._orders[writer.tier].qsize()}
                for writer in writers
            },
        }
