"""The launcher: the process above the tree, which is no actor.

Thespian's Admin has no supervisor, so the launcher is it. It starts the Admin and the root,
waits for either to die, and then ends what is left and starts the whole node anew, a bounded
number of times. It holds no state but the runtime folder. When it dies itself, the kernel ends
everything below it: Admin with launcher, actors with Admin and with their supervisors.

It stays single-threaded, because everything below it is forked from it.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from supervision import logs, process
from supervision._system import System
from supervision.address import Address
from supervision.endpoint import LOOPBACK
from supervision.errors import NodeStartFailed, PortInUse, SpecError
from supervision.host_context import HostContext
from supervision.messages import Init, InitDone, InitFailed, InitProgress, Shutdown
from supervision.node_file import VERSION, NodeRecord, RuntimeDir
from supervision.restart import RestartWindow
from supervision.session import Secret
from supervision.spec import Backoff, ChildKind, SupervisorSpec, actors_below
from supervision.supervisor import ACTOR, ROOT
from supervision.vitals import RootPulse
from supervision.worker import load_actor, shutdown_reason

_INTENSITY: Final = 5
_PERIOD_S: Final = 60.0
_BACKOFF: Final = Backoff(first_s=0.01, factor=4.0, max_s=5.0)
_LOOK_S: Final = 0.1
"""How often a start looks whether it still makes sense."""
_LOG = logging.getLogger(f"{logs.LOGGER}.launcher")


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node: where it listens, where its files are, what it runs."""

    port: int
    """TCP port of the Admin on 127.0.0.1."""
    runtime_dir: Path
    """Private folder of this node (0700); holds the cookie and node.json while it runs."""
    tree: SupervisorSpec
    log_file: Path | None = None
    """None: standard error."""
    log_format: logs.LogFormat = "text"
    """``json``: one object per line; ``supervision/logs.py`` lists its keys."""
    parent_fd: int | None = None
    """Read end of a pipe that a host process holds: its end means the host died; then stop."""
    packages: tuple[str, ...] = ()
    """Packages whose dataclasses and enums may travel in messages, beside the project's own."""
    start_timeout_s: float = 60.0
    """From fork to the whole tree being ready."""
    stop_timeout_s: float = 30.0
    """For the ordered stop of the whole tree; what is left then is killed."""
    root_heartbeat_s: float | None = 30.0
    """A root supervisor that shows no life for so long hangs, and the node starts anew."""

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise SpecError("NodeConfig.port", self.port, "must be a TCP port")
        if self.log_format not in logs.LOG_FORMATS:
            wanted = f"must be one of {', '.join(logs.LOG_FORMATS)}"
            raise SpecError("NodeConfig.log_format", self.log_format, wanted)


@dataclass(slots=True)
class _Boot:
    """One running node."""

    system: System
    context: HostContext
    root: Address
    root_pid: int
    pulse: RootPulse
    watched: dict[str, int] = field(default_factory=dict)


def run_node(config: NodeConfig, *, on_ready: Callable[[], None] | None = None) -> int:
    """Run a node until it is told to stop or can run no more; the exit code.

    0: stopped as asked. 1: gave up after too many restarts of the whole node. Raises PortInUse,
    NodeAlreadyRunning, NodeStartFailed or a spec error where the first start is impossible.
    ``on_ready`` is called once, when the whole tree is up. Call it from a main thread only.
    """
    _load_actors(config.tree)
    _require_port(config.port)
    folder = RuntimeDir(config.runtime_dir)
    cookie = folder.claim()
    logs.open_log(config.log_file, config.log_format)
    try:
        return _Launcher(config, folder, Secret(cookie, config.packages), on_ready).run()
    finally:
        folder.clear()
        folder.release()
        logs.close_log()


def _load_actors(tree: SupervisorSpec) -> None:
    """A wrong class path is an error of the caller, found before anything runs."""
    for path in actors_below(tree):
        try:
            load_actor(path)
        except (ImportError, AttributeError, TypeError) as error:
            raise SpecError("ChildSpec.actor", path, f"cannot be loaded: {error}") from error
    importlib.import_module("supervision.supervisor")


def _require_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise PortInUse(port) from error


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
        self.boots = 0
        self.selector = selectors.DefaultSelector()
        self.window = RestartWindow(_INTENSITY, _PERIOD_S)

    def run(self) -> int:
        process.adopt_orphans()
        with _Signals(self.selector):
            if self.config.parent_fd is not None:
                self.selector.register(self.config.parent_fd, selectors.EVENT_READ, "parent")
                process.close_in_children.add(self.config.parent_fd)
            process.close_in_children.add(self.selector.fileno())
            try:
                return self._run_boots()
            finally:
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
                _LOG.exception("the node could not start anew")
                why = "it did not start"
            else:
                why = self._watch(boot)
                if self.stop_why:
                    self._stop(boot)
                    return 0
                stack = logs.take_faults()
                text = f"{why}; ending the node"
                logs.event(_LOG, logging.ERROR, "node_down", text, reason=why, stack=stack)
                self._end(boot)
            now = time.monotonic()
            if not self.window.record(now):
                text = f"gave up: more than {_INTENSITY} node restarts in {_PERIOD_S} s"
                logs.event(_LOG, logging.ERROR, "node_gave_up", text)
                return 1
            if self._wait(_BACKOFF.delay_s(self.window.count(now))):
                return 0

    # ── start ────────────────────────────────────────────────────────────────

    def _start(self) -> _Boot:
        began = time.monotonic()
        self.boots += 1
        if self.boots == 1:
            gc.collect()
            gc.freeze()  # what the actors inherit stays shared: their collectors do not touch it
        pulse = RootPulse(self.config.root_heartbeat_s)
        system = System(self.config.port, self.secret, self.folder.thespian_log)
        context = None
        try:
            context = HostContext(self.secret)
            root = system.create_root()
            root_pid = self._start_root(system, context, root)
        except BaseException as error:
            if context is not None:
                context.close()
            pulse.close()
            self._end_processes(system)
            if isinstance(error, NodeStartFailed) or not isinstance(error, Exception):
                raise
            raise NodeStartFailed(f"{type(error).__name__}: {error}") from error
        boot = _Boot(system, context, root, root_pid, pulse)
        self._publish(boot)
        took_ms = (time.monotonic() - began) * 1000
        text = f"node up: boot {self.boots}, port {self.config.port}, {took_ms:.0f} ms"
        logs.event(_LOG, logging.INFO, "node_up", text, boot=self.boots, port=self.config.port)
        if self.on_ready is not None and self.boots == 1:
            self.on_ready()
        return boot

    def _start_root(self, system: System, context: HostContext, root: Address) -> int:
        """Give the root its tree and wait until all of it is ready; the root's pid."""
        init = Init(ROOT, self.boots, ACTOR, ChildKind.SUPERVISOR, self.config.tree, "", (), ())
        if not context.send(root, init, 5.0):
            raise NodeStartFailed("the root supervisor's process took no message")
        deadline = time.monotonic() + self.config.start_timeout_s
        watched = [system.admin_pid]
        asked_to_stop = False
        while time.monotonic() < deadline:
            match context.receive(_LOOK_S):
                case InitDone(_, _, pid):
                    return pid
                case InitFailed(_, _, detail, _):
                    raise NodeStartFailed(detail)
                case InitProgress(_, _, int(pid)):
                    watched.append(pid)
                case _:
                    pass
            self._events(0)
            if self.stop_why and not asked_to_stop:
                asked_to_stop = context.send(root, Shutdown(shutdown_reason(self.stop_why)), 1.0)
                deadline = time.monotonic() + self.config.stop_timeout_s
            if not all(map(process.is_alive, watched)):
                raise NodeStartFailed("the Admin or the root supervisor died while starting")
        raise NodeStartFailed(f"not ready within {self.config.start_timeout_s} s")

    def _publish(self, boot: _Boot) -> None:
        record = NodeRecord(
            version=VERSION,
            pid=os.getpid(),
            pid_ticks=process.start_ticks(os.getpid()) or 0,
            port=self.config.port,
            root=str(boot.root),
            root_pid=boot.root_pid,
            admin_pid=boot.system.admin_pid,
            started_at=time.time(),
            boot=self.boots,
            packages=self.config.packages,
        )
        self.folder.write(record)

    # ── watch ────────────────────────────────────────────────────────────────

    def _watch(self, boot: _Boot) -> str:
        """Wait until the node must end; why."""
        for name, pid in (("Admin", boot.system.admin_pid), ("root supervisor", boot.root_pid)):
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                return f"the {name} died at once"
            boot.watched[name] = fd
            self.selector.register(fd, selectors.EVENT_READ, name)
        while not self.stop_why:
            for name in self._events(boot.pulse.interval_s):
                if name in boot.watched:
                    return f"the {name} died"
            if hangs := boot.pulse.hung(boot.root_pid, time.monotonic()):
                return f"the root supervisor hangs: {hangs}"
        return self.stop_why

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
                    if number in (signal.SIGINT, signal.SIGTERM):
                        self.stop_why = signal.Signals(number).name
                process.reap()
            else:
                names.append(str(key.data))
        return names

    def _read_parent(self) -> None:
        fd = self.config.parent_fd
        if fd is not None and not os.read(fd, 64):
            self.selector.unregister(fd)
            self.stop_why = "the host process is gone"

    # ── end ──────────────────────────────────────────────────────────────────

    def _stop(self, boot: _Boot) -> None:
        """Stop the tree in order within its time, then the library, then whatever is left."""
        text = f"stopping: {self.stop_why}"
        logs.event(_LOG, logging.INFO, "node_stopping", text, reason=self.stop_why)
        deadline = time.monotonic() + self.config.stop_timeout_s
        reason = shutdown_reason(self.stop_why)
        in_order = boot.context.send(boot.root, Shutdown(reason), 5.0)
        if in_order:
            in_order = self._gone(boot.root_pid, deadline)
        if not in_order:
            _LOG.error("the tree did not stop in order; killing what is left")
        else:
            boot.system.shutdown()
            self._gone(boot.system.admin_pid, time.monotonic() + 2.0)
        self._end(boot)
        logs.event(_LOG, logging.INFO, "node_stopped", "stopped")

    def _gone(self, pid: int, deadline: float) -> bool:
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

    def _end(self, boot: _Boot) -> None:
        for fd in boot.watched.values():
            self.selector.unregister(fd)
            os.close(fd)
        boot.context.close()
        boot.pulse.close()
        self._end_processes(boot.system)

    def _end_processes(self, system: System) -> None:
        """Kill the node's process group and wait until all of it is gone."""
        process.kill_group(system.group)
        system.close()
        deadline = time.monotonic() + 5.0
        while process.group_is_alive(system.group) and time.monotonic() < deadline:
            process.reap()
            self.selector.select(0.002)
        process.reap()


class _Signals:
    """SIGINT, SIGTERM and SIGCHLD become readable bytes while this is entered."""

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
            for one in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
        }
        self._selector.register(self._ours, selectors.EVENT_READ, "signal")

    def __exit__(self, *_: object) -> None:
        for one, handler in self._old.items():
            signal.signal(one, handler)
        signal.set_wakeup_fd(self._old_fd)
        self._ours.close()
        self._theirs.close()
        process.close_in_children.clear()
