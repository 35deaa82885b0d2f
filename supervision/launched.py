"""A launcher as a child process of a host, which it never outlives.

A host is not forked: it may hold threads, sockets or a GPU. The launcher is a program of its own
that gets its settings through one pipe, reports through a second when it is ready or why not,
and holds the end of a third whose other end is the host's: when the host dies, by whatever signal,
the launcher sees it and stops its node.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from supervision import forks
from supervision.errors import NodeStartFailed
from supervision.kill_watch import PERHAPS
from supervision.stdio import above_standard

STOP_TIMEOUT_S: Final = 20.0


class LauncherSaid(NodeStartFailed):
    """Why a launcher did not become ready; ``kind`` is the name of its error's class."""

    def __init__(self, detail: str, kind: str = "") -> None:
        super().__init__(detail)
        self.kind = kind


class LaunchedNode:
    """A running launcher. Use ``start``."""

    def __init__(self, process: subprocess.Popen[bytes], lifeline: int) -> None:
        self.process = process
        self._lifeline: int | None = lifeline
        self._process = forks.here()
        forks.register(self)

    @property
    def is_own(self) -> bool:
        """Whether this process started it, and not one that this was forked from."""
        return forks.is_here(self._process)

    @property
    def owner_pid(self) -> int:
        """The process that started it."""
        return self._process[0]

    def drop_inherited(self) -> None:
        """In a forked process: the node ends with the host, even if forked children still run."""
        self._close_lifeline()

    def _close_lifeline(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    @classmethod
    def start(
        cls,
        command: Callable[[int, int, int], Sequence[str]],
        settings: bytes,
        *,
        timeout_s: float,
        quiet: bool,
    ) -> LaunchedNode:
        """Run ``command(settings_fd, ready_fd, parent_fd)``; returns when the tree is up.

        Raises LauncherSaid with the launcher's own text when it is not. ``quiet``: it has a log
        of its own, or is to have none; otherwise it shares this process's standard error.
        """
        with forks.no_fork():
            node, settings_write, ready_read = cls._spawn(command, quiet=quiet)
        try:
            with contextlib.suppress(BrokenPipeError), os.fdopen(settings_write, "wb") as pipe:
                pipe.write(settings)
            with os.fdopen(ready_read, "rb") as ready:
                trouble = _failure(_read_line(ready.fileno(), timeout_s))
        except BaseException:
            node.end()
            raise
        if trouble is not None:
            node.end()
            if node.process.returncode == -signal.SIGKILL and not trouble.kind:
                raise LauncherSaid(f"the node process was {PERHAPS}, before it was ready")
            raise trouble
        return node

    @classmethod
    def _spawn(
        cls, command: Callable[[int, int, int], Sequence[str]], *, quiet: bool
    ) -> tuple[LaunchedNode, int, int]:
        """The launcher, and our ends of its pipes: settings to write, readiness to read."""
        settings_read, settings_write = _pipe()
        ready_read, ready_write = _pipe()
        lifeline_read, lifeline_write = _pipe()
        passed = (settings_read, ready_write, lifeline_read)
        try:
            process = subprocess.Popen(
                command(*passed),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL if quiet else None,
                pass_fds=passed,
                env=child_environment(),
                start_new_session=True,  # Ctrl-C ends the host, and the host ends the node
            )
        except BaseException:
            for fd in (settings_write, ready_read, lifeline_write):
                os.close(fd)
            raise
        finally:
            for fd in passed:
                os.close(fd)
        return cls(process, lifeline_write), settings_write, ready_read

    def keep_over_exec(self) -> None:
        """A program that replaces this one is the host then: the node ends with it."""
        if self._lifeline is not None:
            os.set_inheritable(self._lifeline, True)

    def end(self) -> None:
        """Let the launcher stop its tree in order; end it hard if it does not.

        Does nothing in a process that was forked from the one that started it.
        """
        self._close_lifeline()
        if not self.is_own:
            return
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_detached(
    command: Callable[[int, int], Sequence[str]], settings: bytes, *, timeout_s: float
) -> int:
    """Run ``command(settings_fd, ready_fd)``, a launcher that outlives this process.

    Returns its process id when the tree is up; raises LauncherSaid with its own text when it is
    not. It has no terminal, no working directory that could be unmounted, and no standard streams.
    """
    settings_read, settings_write = _pipe()
    ready_read, ready_write = _pipe()
    passed = (settings_read, ready_write)
    with os.fdopen(settings_write, "wb") as to_launcher, os.fdopen(ready_read, "rb") as ready:
        try:
            process = subprocess.Popen(
                command(*passed),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=passed,
                cwd="/",
                env=child_environment(),
                start_new_session=True,
            )
        finally:
            for fd in passed:
                os.close(fd)
        try:
            with contextlib.suppress(BrokenPipeError):
                to_launcher.write(settings)
                to_launcher.close()
            trouble = _failure(_read_line(ready.fileno(), timeout_s))
        except BaseException:
            _end(process)
            raise
    if trouble is not None:
        _end(process)
        raise trouble
    process.returncode = 0  # it is not waited for; the object warns of that otherwise
    return process.pid


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def say_ready(fd: int, error: BaseException | None = None, detail: str = "") -> None:
    """From the launcher, once: the tree is up, or what is wrong."""
    report = {"kind": type(error).__name__, "detail": detail or str(error)} if error else {}
    with contextlib.suppress(OSError):
        os.write(fd, json.dumps(report).encode() + b"\n")
        os.close(fd)


def _pipe() -> tuple[int, int]:
    """A pipe whose numbers are above those of the standard streams."""
    reader, writer = os.pipe()
    return above_standard(reader), above_standard(writer)


def child_environment() -> dict[str, str]:
    """For a Python of our own: modules are found where this process finds them.

    After those, the present ``PYTHONPATH``: a host may have set it since it started. Not also
    in the working directory: another project's ``cache.py`` there would be imported.
    """
    later = os.environ.get("PYTHONPATH", "")
    found = [*sys.path, *filter(None, later.split(os.pathsep))]
    places = [os.path.abspath(one) for one in found if os.pathsep not in one]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(places)),
        "PYTHONSAFEPATH": "1",
    }


def _failure(line: bytes) -> LauncherSaid | None:
    """What the launcher's first line means; ``None`` when the node is ready."""
    try:
        answer = json.loads(line)
    except ValueError:
        return LauncherSaid("the node process ended before it was ready; see its log")
    return LauncherSaid(answer["detail"], answer["kind"]) if answer else None


def _read_line(fd: int, timeout_s: float) -> bytes:
    """One line, or what came within the time.

    Not until the end of the file: the actors are forked with the other end open.
    """
    deadline = time.monotonic() + timeout_s
    line = b""
    while b"\n" not in line and (left := deadline - time.monotonic()) > 0:
        readable, _, _ = select.select([fd], [], [], left)
        if not readable:
            break
        part = os.read(fd, 65536)
        if not part:
            break
        line += part
    return line
