"""The engine pattern: a worker whose long work runs on a thread of its own.

The thread may block for minutes; the mailbox keeps answering. Two one-way queues join them:
``commands`` (mailbox → thread, a plain queue to block on) and ``post`` (thread → mailbox, a
deque and an eventfd that wakes the mailbox). The thread never sends a message itself: Thespian
reorders what other threads send.

A post is never lost: it is appended before the eventfd is written, and the mailbox clears the
eventfd before it drains, so whatever it does not see now wakes it again.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from supervision.messages import Init
from supervision.worker import Worker


@dataclass(frozen=True, slots=True)
class _Broke:
    """The thread ended by an exception."""

    text: str


@dataclass(frozen=True, slots=True)
class _Ended:
    """The thread's function returned."""


class EngineWorker(Worker):
    """A worker that owns one engine thread."""

    commands: queue.SimpleQueue[object]
    """Mailbox → thread."""

    _posted: deque[object]
    _event_fd: int
    _thread: threading.Thread | None = None

    # ── hooks ────────────────────────────────────────────────────────────────

    def handle_events(self, events: list[object]) -> None:
        """Take everything the thread has posted since the last call, in order."""

    def engine_ended(self) -> None:
        """The thread's function has returned; everything it posted has been handled."""

    # ── services ─────────────────────────────────────────────────────────────

    def start_engine(self, run: Callable[[], None]) -> None:
        """Run ``run`` on the engine thread. An exception in it crashes the actor.

        Not before ``init``, and once. The thread is a daemon: the process never waits for it.
        """
        if self._thread is not None:
            raise RuntimeError("this worker's engine runs already")
        self._thread = threading.Thread(
            target=self._run_engine, args=(run,), name=f"engine:{self.id}", daemon=True
        )
        self._thread.start()

    def post(self, event: object) -> None:
        """Hand an event to the mailbox thread; from any thread."""
        self._posted.append(event)
        os.eventfd_write(self._event_fd, 1)

    def beat(self) -> None:
        """From the engine thread, inside ``engine_step``: it makes progress."""
        self._mailbox.pulse.beat()

    @contextlib.contextmanager
    def engine_step(self) -> Iterator[None]:
        """Around a step that must end, or ``beat``, within the spec's ``engine_heartbeat_s``.

        Outside of steps, for instance while
        it waits for a command, the engine may be silent. Do not nest.
        """
        self.beat()
        try:
            yield
        finally:
            self._mailbox.pulse.rest()

    # ── inside ───────────────────────────────────────────────────────────────

    def prepare(self, init: Init) -> None:
        super().prepare(init)
        self.commands = queue.SimpleQueue()
        self._posted = deque()
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._mailbox.watch((self._event_fd,))

    def _run_engine(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException:  # noqa: BLE001 - whatever ends the engine must end the actor
            self.post(_Broke(traceback.format_exc().rstrip()))
        else:
            self.post(_Ended())

    def _readable(self, ready: Sequence[int] = ()) -> None:  # noqa: ARG002 - it watches only one
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event_fd)
        events: list[object] = []
        while self._posted:
            event = self._posted.popleft()
            if isinstance(event, _Broke | _Ended):
                self._hand_over(events)
                events = []
                if isinstance(event, _Broke):
                    self._crash(f"engine thread\n{event.text}")
                self._thread = None
                self.engine_ended()
            else:
                events.append(event)
        self._hand_over(events)

    def _hand_over(self, events: list[object]) -> None:
        if events:
            self.handle_events(events)
