"""One run of a node, from its Admin's first process to the last one that is left.

The launcher decides when to run one; this starts it, reports how it ended, and ends what is left.
"""

from __future__ import annotations

import gc
import logging
import os
import selectors
import time
from collections.abc import Callable, Iterator
from typing import Final, Self

from supervision import logs, process
from supervision._system import System
from supervision.address import Address
from supervision.errors import NodeStartFailed
from supervision.exits import ExitReason
from supervision.frozen import compile_all
from supervision.host_context import HostContext
from supervision.messages import Exiting, Init, InitDone, InitFailed, InitProgress, Shutdown
from supervision.node_config import NodeConfig
from supervision.node_file import VERSION, NodeRecord, RuntimeDir
from supervision.session import Secret
from supervision.spec import ChildKind
from supervision.supervisor import ACTOR, ROOT
from supervision.vitals import RootPulse
from supervision.worker import shutdown_reason

_LOOK_S: Final = 0.1
"""How often a start or a stop checks whether it still can succeed."""
_ORPHAN_S: Final = 0.5
_END_S: Final = 5.0
_LOG = logging.getLogger(f"{logs.LOGGER}.launcher")


class Boot:
    """One running node. Use ``start``."""

    def __init__(self, config: NodeConfig, secret: Secret, folder: RuntimeDir, number: int) -> None:
        self.number = number
        self._config = config
        self._folder = folder
        self.own_children: frozenset[int] = frozenset()
        """Child processes of the launcher that are not the node's."""
        self._orphans: dict[int, float] = {}
        """When each process whose parent is gone was first seen, by pid."""
        if number == 1:
            compile_all()
            gc.collect()
            gc.freeze()  # what the actors inherit stays shared: their collectors do not touch it
        self.pulse = RootPulse(config.root_heartbeat_s)
        self.system = System(config.port, secret, folder.thespian_log)
        self.context = HostContext(secret)
        self.root: Address | None = None
        self.root_pid = 0

    @classmethod
    def start(
        cls,
        config: NodeConfig,
        secret: Secret,
        folder: RuntimeDir,
        number: int,
        why_stop: Callable[[], str],
    ) -> Self:
        """Start the node; returns when all of its tree is ready. Raises NodeStartFailed.

        ``why_stop`` is called repeatedly; once it returns a reason, the start is aborted.
        """
        boot = cls(config, secret, folder, number)
        try:
            boot.root = boot.system.create_root()
            boot.root_pid = boot._start_root(boot.root, why_stop)
        except BaseException as error:
            boot.end()
            if isinstance(error, NodeStartFailed) or not isinstance(error, Exception):
                raise
            raise NodeStartFailed(f"{type(error).__name__}: {error}") from error
        boot._publish(boot.root)
        return boot

    def _start_root(self, root: Address, why_stop: Callable[[], str]) -> int:
        """Give the root its tree and wait until all of it is ready; the root's pid."""
        init = Init(ROOT, self.number, ACTOR, ChildKind.SUPERVISOR, self._config.tree, "", (), ())
        if not self.context.send(root, init, 5.0):
            raise NodeStartFailed("the root supervisor's process accepted no message")
        deadline = time.monotonic() + self._config.start_timeout_s
        watched = [self.system.admin_pid]
        asked_to_stop = False
        while time.monotonic() < deadline:
            match self.context.receive(_LOOK_S):
                case InitDone(_, _, pid):
                    return pid
                case InitFailed(_, _, detail, _):
                    raise NodeStartFailed(detail)
                case InitProgress(_, _, int(pid)):
                    watched.append(pid)
                case _:
                    pass
            why = why_stop()
            if why and not asked_to_stop:
                asked_to_stop = self.context.send(root, Shutdown(shutdown_reason(why)), 1.0)
                deadline = time.monotonic() + self._config.stop_timeout_s
            if not all(map(process.is_alive, watched)):
                for message in self._unread_messages():
                    if isinstance(message, InitFailed):
                        raise NodeStartFailed(message.detail)
                raise NodeStartFailed("the Admin or the root supervisor died while starting")
        raise NodeStartFailed(f"not ready within {self._config.start_timeout_s} s")

    def _publish(self, root: Address) -> None:
        record = NodeRecord(
            version=VERSION,
            pid=os.getpid(),
            pid_ticks=process.start_ticks(os.getpid()) or 0,
            port=self._config.port,
            root=str(root),
            root_pid=self.root_pid,
            admin_pid=self.system.admin_pid,
            started_at=time.time(),
            boot=self.number,
            packages=self._config.message_packages,
        )
        self._folder.write(record)

    # ── while it runs ────────────────────────────────────────────────────────

    def reason_of_root(self) -> ExitReason | None:
        """The reason that a root which has ended gave; None if it gave none."""
        for message in self._unread_messages():
            if isinstance(message, Exiting):
                return message.reason
        return None

    def _unread_messages(self) -> Iterator[object]:
        """What the root had sent before it ended."""
        if self.root is not None:
            yield from self.context.receive_until_closed(self.root)

    def end_orphans(self) -> None:
        """End what actors have forked and left behind: the launcher is the parent of it now.

        Children of an actor that has just died appear here too, while they end.
        """
        now = time.monotonic()
        orphans = set(process.children()) - self.own_children - {self.system.admin_pid}
        self._orphans = {pid: self._orphans.get(pid, now) for pid in orphans}
        for pid, since in self._orphans.items():
            if now - since > _ORPHAN_S:
                text = f"ending pid {pid}, which an actor that is gone had started"
                logs.event(_LOG, logging.WARNING, "orphan_ended", text, pid=pid)
                process.kill(pid)

    # ── end ──────────────────────────────────────────────────────────────────

    def stop(self, why: str, is_urgent: Callable[[], bool]) -> bool:
        """Stop the tree in order within its time, then the library; whether that went well.

        ``is_urgent`` is called repeatedly; once it returns True, the wait ends.
        """
        deadline = time.monotonic() + self._config.stop_timeout_s
        if self.root is None or not self.context.send(
            self.root, Shutdown(shutdown_reason(why)), 5.0
        ):
            return False
        while not _gone(self.root_pid, min(deadline, time.monotonic() + _LOOK_S)):
            if time.monotonic() >= deadline or is_urgent():
                return False
        self.system.shutdown()
        _gone(self.system.admin_pid, time.monotonic() + 2.0)
        return True

    def end(self) -> None:
        """Kill whatever is left of the node and wait until all of it is gone."""
        self.context.close()
        self.pulse.close()
        group = self.system.group
        process.kill_group(group)
        for pid in set(process.children()) - self.own_children - {self.system.admin_pid}:
            process.kill(pid)
        self.system.close()
        deadline = time.monotonic() + _END_S
        while process.group_is_alive(group) and time.monotonic() < deadline:
            process.reap()
            time.sleep(0.001)  # noqa: TID251 - they are ending; no event marks the last one
        process.reap()


def _gone(pid: int, deadline: float) -> bool:
    """Wait for the end of a process."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        with selectors.DefaultSelector() as waiter:
            waiter.register(fd, selectors.EVENT_READ)
            return bool(waiter.select(max(0.0, deadline - time.monotonic())))
    finally:
        os.close(fd)
