"""The launcher: the process above the tree, which is no actor.

Thespian's Admin has no supervisor, so the launcher supervises it. It starts the Admin and the root,
waits for either to die, and then ends what is left and starts the whole node again, a bounded
number of times. It holds no state but the runtime folder and the descriptor shelf (``shelf``). When
it dies itself, the kernel ends everything below it: Admin with launcher, actors with Admin and with
their supervisors.

It stays single-threaded, because everything below it is forked from it.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from typing import Final

from supervision import kill_watch, logs, process
from supervision.boot import Boot
from supervision.errors import NodeStartFailed
from supervision.exits import ExitKind
from supervision.machine import require_machine
from supervision.node_config import NodeConfig, load_actors, require_port
from supervision.node_file import RuntimeDir
from supervision.restart import RestartWindow
from supervision.session import Secret
from supervision.shelf import Shelf
from supervision.spec import Backoff

__all__ = ["NodeConfig", "run_node"]

_INTENSITY: Final = 5
_PERIOD_S: Final = 60.0
_BACKOFF: Final = Backoff(first_s=0.01, factor=4.0, max_s=5.0)
_STOPS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What stops the node in order: Ctrl-C, a service manager, a terminal that is closed."""
_ORPHANS_S: Final = 1.0
"""How often to look for processes that a dead actor had started."""
_SAME_REQUEST_S: Final = 0.5
"""Signals that come within it after the first ask for the same stop."""
_LOG = logging.getLogger(f"{logs.LOGGER}.launcher")


def run_node(config: NodeConfig, *, on_ready: Callable[[], None] | None = None) -> int:
    """Run a node until a stop is requested or it can run no more; the exit code.

    0: stopped as asked, or the tree has ended by itself and for good (``auto_shutdown``). 1: gave
    up after too many restarts of the whole node. Raises PortInUse, NodeAlreadyRunning,
    NodeStartFailed or a spec error where the first start is impossible. ``on_ready`` is called
    once, when the whole tree is up. Call it from a main thread only.
    """
    require_machine()
    load_actors(config.tree)
    require_port(config.port)
    folder = RuntimeDir(config.runtime_dir)
    cookie = folder.claim()
    try:
        _open_log(config)
        kill_watch.set_watch(config.kill_watch)
        return _Launcher(config, folder, Secret(cookie, config.message_packages), on_ready).run()
    finally:
        kill_watch.set_watch(None)
        folder.clear()
        folder.release()
        logs.close_log()


def _open_log(config: NodeConfig) -> None:
    try:
        logs.open_log(config.log_file, config.log_format)
    except OSError as error:
        raise NodeStartFailed(
            f"the log file {config.log_file} cannot be opened: {error.strerror}"
        ) from error


class _Launcher:
    """The life of one launcher process."""

    def __init__(
        self,
        config: NodeConfig,
        folder: RuntimeDir,
        secret: Secret,
        on_ready: Callable[[], None] | None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.secret = secret
        self.on_ready = on_ready
        self.stop_why = ""
        self.stop_asked_at: float | None = None
        """When a signal first asked for it."""
        self.is_urgent = False
        """A signal has asked for it again."""
        self.is_over = False
        """The tree has ended by itself, and in order."""
        self.has_reaped = False
        """A child has ended since the last look."""
        self.boots = 0
        self.own_children: frozenset[int] = frozenset()
        """Child processes that are not the node's: those that ``on_ready`` started."""
        self.selector = selectors.DefaultSelector()
        self.window = RestartWindow(_INTENSITY, _PERIOD_S)

    def run(self) -> int:
        process.adopt_orphans()
        with _Signals(self.selector):
            if self.config.parent_fd is not None:
                self.selector.register(self.config.parent_fd, selectors.EVENT_READ, "parent")
                process.close_in_children.add(self.config.parent_fd)
            process.close_in_children.add(self.selector.fileno())
            shelf = Shelf(
                self.folder.path, self.secret.cookie, self.selector, dict(self.config.shelf)
            )
            try:
                return self._run_boots()
            finally:
                shelf.close()
                self.selector.close()

    def _run_boots(self) -> int:
        while True:
            try:
                boot = self._start()
            except NodeStartFailed:
                if self.stop_why:
                    _LOG.info("stopped while starting: %s", self.stop_why)
                    return 0
                if self.boots == 1:
                    raise
                _LOG.exception("the node could not restart")
                why = "it did not start"
            else:
                why = self._watch(boot)
                if self.stop_why:
                    self._stop(boot)
                    return 0
                self._end(boot, why)
                if self.is_over:
                    return 0
            now = time.monotonic()
            if not self.window.record(now):
                often = f"more than {_INTENSITY} node restarts in {_PERIOD_S} s"
                text = f"gave up: {often}; last: {why}"
                logs.event(_LOG, logging.ERROR, "node_gave_up", text, reason=why)
                return 1
            if self._wait(_BACKOFF.delay_s(self.window.count(now))):
                return 0

    # ── one boot ─────────────────────────────────────────────────────────────

    def _start(self) -> Boot:
        began = time.monotonic()
        self.boots += 1
        boot = Boot.start(self.config, self.secret, self.folder, self.boots, self._why_stop)
        took_ms = (time.monotonic() - began) * 1000
        text = f"node up: boot {self.boots}, port {self.config.port}, {took_ms:.0f} ms"
        logs.event(_LOG, logging.INFO, "node_up", text, boot=self.boots, port=self.config.port)
        if self.on_ready is not None and self.boots == 1:
            self.on_ready()
            self.own_children = frozenset(process.children()) - {boot.system.admin_pid}
        boot.own_children = self.own_children
        return boot

    def _why_stop(self) -> str:
        self._events(0)
        return self.stop_why

    def _watch(self, boot: Boot) -> str:
        """Wait until the node must end; why."""
        watched: dict[str, int] = {}
        try:
            for name, pid in (("Admin", boot.system.admin_pid), ("root supervisor", boot.root_pid)):
                try:
                    fd = watched[name] = os.pidfd_open(pid)
                except ProcessLookupError:
                    return f"the {name} died at once"
                self.selector.register(fd, selectors.EVENT_READ, name)
            return self._watch_for(boot, watched)
        finally:
            for fd in watched.values():
                self.selector.unregister(fd)
                os.close(fd)

    def _watch_for(self, boot: Boot, watched: dict[str, int]) -> str:
        interval_s = min(boot.pulse.interval_s or _ORPHANS_S, _ORPHANS_S)
        looks_at = 0.0
        while not self.stop_why:
            for name in self._events(max(0.0, looks_at - time.monotonic())):
                if name in watched:
                    return f"the {name} {self._how_it_ended(boot, name)}"
            # A look reads a dozen files; messages to the shelf come several times per request.
            if (now := time.monotonic()) < looks_at and not self.has_reaped:
                continue
            looks_at, self.has_reaped = now + interval_s, False
            kill_watch.look()
            boot.end_orphans()
            if hangs := boot.pulse.hung(boot.root_pid, now):
                return f"the root supervisor hangs: {hangs}"
        return self.stop_why

    def _how_it_ended(self, boot: Boot, name: str) -> str:
        reason = None if name == "Admin" else boot.reason_of_root()
        if reason is None:
            by = kill_watch.cause()
            return f"was killed {by}" if by else "died"
        self.is_over = reason.kind in (ExitKind.NORMAL, ExitKind.SHUTDOWN)
        return f"ended ({reason})"

    def _end(self, boot: Boot, why: str) -> None:
        level = logging.INFO if self.is_over else logging.ERROR
        text = f"{why}; ending the node"
        logs.event(_LOG, level, "node_down", text, reason=why, stack=logs.take_faults())
        boot.end()

    def _stop(self, boot: Boot) -> None:
        text = f"stopping: {self.stop_why}"
        logs.event(_LOG, logging.INFO, "node_stopping", text, reason=self.stop_why)
        if not boot.stop(self.stop_why, self._has_become_urgent):
            if self.is_urgent:
                _LOG.warning("asked again to stop; killing what is left")
            else:
                _LOG.error("the tree did not stop in order; killing what is left")
        boot.end()
        logs.event(_LOG, logging.INFO, "node_stopped", "stopped")

    # ── events ───────────────────────────────────────────────────────────────

    def _wait(self, seconds: float) -> bool:
        """Pause; True when it is time to stop."""
        deadline = time.monotonic() + seconds
        while not self.stop_why and (left := deadline - time.monotonic()) > 0:
            self._events(left)
        return bool(self.stop_why)

    def _events(self, timeout_s: float | None) -> list[str]:
        """What happened, by name; requests to stop are noted in ``stop_why``."""
        names = []
        for key, _ in self.selector.select(timeout_s):
            if key.data == "parent":
                self._read_parent()
            elif key.data == "signal":
                for number in os.read(key.fd, 64):
                    if number in _STOPS:
                        self._signalled(signal.Signals(number).name)
                process.reap()
                self.has_reaped = True
            elif callable(key.data):
                key.data()
            else:
                names.append(str(key.data))
        return names

    def _signalled(self, name: str) -> None:
        """The first signal asks for an orderly stop, a later one for the end of the wait for it.

        A terminal and a wrapper of this process may both pass on one Ctrl-C.
        """
        now = time.monotonic()
        if self.stop_asked_at is None:
            self.stop_why, self.stop_asked_at = name, now
        elif now - self.stop_asked_at > _SAME_REQUEST_S:
            self.is_urgent = True

    def _has_become_urgent(self) -> bool:
        self._events(0)
        return self.is_urgent

    def _read_parent(self) -> None:
        fd = self.config.parent_fd
        if fd is not None and not os.read(fd, 64):
            self.selector.unregister(fd)
            self.stop_why = "the host process is gone"


class _Signals:
    """Signals that stop, and SIGCHLD, become readable bytes while this is entered.

    SIGHUP only where it is not ignored, as ``nohup`` has it.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector

    def __enter__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        for one in (self._ours, self._theirs):
            one.setblocking(False)
            process.close_in_children.add(one.fileno())
        self._old_fd = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        self._old = {
            one: signal.signal(one, lambda _number, _frame: None)
            for one in (*_STOPS, signal.SIGCHLD)
            if one is not signal.SIGHUP or signal.getsignal(one) is not signal.SIG_IGN
        }
        self._selector.register(self._ours, selectors.EVENT_READ, "signal")

    def __exit__(self, *_: object) -> None:
        for one, handler in self._old.items():
            signal.signal(one, handler)
        signal.set_wakeup_fd(self._old_fd)
        self._ours.close()
        self._theirs.close()
        process.close_in_children.clear()
