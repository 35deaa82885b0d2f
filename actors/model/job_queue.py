"""A thread that does jobs in the order in which they come, beside the engine of a model.

A decode step may take seconds, and a chat template too; neither the mailbox nor the engine waits
for what is done here, and no job can end the thread: whatever it raises ends that job alone, with a
typed refusal.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from actors.messages.errors import RequestRefused
from actors.messages.finish_reasons import FailReason
from actors.messages.queue_pace import QueuePace
from actors.messages.refusal import refusal_of

MAX_JOBS: Final = 256

Job = TypeVar("Job")


class JobQueue(Generic[Job]):
    """At most ``MAX_JOBS`` jobs that wait, and one thread, started with the first of them.

    ``do`` is called on the thread. ``refuse`` is called with the reason why a job is not done, on
    the thread or on that of ``put`` and ``close``. ``what`` names the jobs to callers, in plural.
    """

    def __init__(
        self,
        name: str,
        what: str,
        *,
        do: Callable[[Job], None],
        refuse: Callable[[Job, RequestRefused], None],
        idle_after_s: float | None = None,
        idle: Callable[[], None] | None = None,
    ) -> None:
        """``idle`` is called on the thread after each ``idle_after_s`` without a job."""
        self._name = name
        self._what = what
        self._do = do
        self._refuse = refuse
        self._idle_after_s = idle_after_s
        self._idle = idle
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed: RequestRefused | None = None
        self._pace = QueuePace()
        self._lock = threading.Lock()  # of the pace; and no job is put behind the queue's end

    @property
    def is_closed(self) -> bool:
        return self._closed is not None

    def put(self, job: Job) -> None:
        """Queue a job, or refuse it: never waits."""
        with self._lock:
            refused, now = self._closed, time.monotonic()
            if refused is None and self._jobs.qsize() < MAX_JOBS:
                self._pace.arrived(now)
                self._jobs.put(job)
                self._start()
                return
            if refused is None:
                detail = f"{MAX_JOBS} {self._what} already wait for this model; try again later"
                facts = self._pace.facts(now)
                refused = RequestRefused(FailReason.OVERLOADED, detail, facts)
        self._refuse(job, refused)

    def close(self, reason: FailReason, detail: str) -> None:
        """Refuse what waits and what comes from now on; the job that is being done continues."""
        with self._lock:
            if self._closed is not None:
                return
            self._closed = RequestRefused(reason, detail)
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                self._refuse(job, self._closed)
        self._jobs.put(None)

    def wait_ended(self, timeout_s: float) -> None:
        """After ``close``: give the job that is being done so many seconds to end."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=self._idle_after_s)
            except queue.Empty:
                if self._idle is not None:
                    self._idle()
                continue
            if job is None:
                return
            if self._closed is not None:
                self._refuse(job, self._closed)
                continue
            try:
                self._do(job)
            except Exception as error:  # noqa: BLE001 - it ends this job, and no other
                self._refuse(job, refusal_of(error))
            with self._lock:
                self._pace.ended(time.monotonic(), is_busy=not self._jobs.empty())
