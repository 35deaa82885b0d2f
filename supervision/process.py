"""Calls into the kernel: ending with the parent, adopting orphans, reading what a process uses."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import signal
import time
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_FAULTS: Final = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)

close_in_children: set[int] = set()
"""Descriptors of the launcher that no process of the node may keep open."""


def _prctl(option: int, value: int | bytes) -> None:
    import ctypes  # here: a host that only talks to a node calls none of this

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}) failed: {os.strerror(code)}")


def die_with_parent(parent_pid: int) -> None:
    """SIGKILL this process when its parent dies; end now if that has happened already.

    The kernel watches the parent's *thread* that forked, so only main threads may fork.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def set_name(name: str) -> None:
    """Name this process for ``ps`` and ``top``; the kernel keeps the first 15 bytes."""
    _prctl(_PR_SET_NAME, name.encode())


def adopt_orphans() -> None:
    """Make this process the parent of every orphan below it, so that it can wait for them."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def forget_launcher() -> None:
    """Drop what a forked process inherits from the launcher but must not use."""
    signal.set_wakeup_fd(-1)
    for fd in close_in_children:
        with contextlib.suppress(OSError):
            os.close(fd)
    close_in_children.clear()


def let_faults_kill(log_fd: int | None = None) -> None:
    """Faults end the process: a Python handler would return to the faulting instruction endlessly.

    With ``log_fd``, the Python stack of the fault is written there first.
    """
    faulthandler.disable()  # a parent's setting is inherited, and enable() would keep it
    for one in _FAULTS:
        signal.signal(one, signal.SIG_DFL)
    if log_fd is not None:
        faulthandler.enable(file=log_fd, all_threads=False)


def start_ticks(pid: int) -> int | None:
    """Start of a live process in clock ticks since boot: identifies it if its pid is reused."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def age_s(pid: int) -> float | None:
    """Seconds since a live process started."""
    ticks = start_ticks(pid)
    if ticks is None:
        return None
    now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    return max(0.0, now_s - ticks / os.sysconf("SC_CLK_TCK"))


def memory(pid: int) -> tuple[int, str] | None:
    """Bytes of a process and their measure: ``pss`` counts shared pages in part, ``rss`` fully."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024, "pss"
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"), "rss"
    except OSError:
        return None


def cpu_wait_s(pid: int) -> float | None:
    """How long a process's main thread has waited for a CPU in its life; None: not known."""
    try:
        with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    return start_ticks(pid) is not None


def make_private_dirs(path: Path) -> None:
    """Create a folder and its missing parents, for this user alone whatever the umask.

    ``Path.mkdir`` gives its mode to the last one only. What exists already stays as it is.
    """
    if path.is_dir():
        return
    if path.parent != path:
        make_private_dirs(path.parent)
    try:
        path.mkdir(0o700)
    except FileExistsError:  # another process was faster, or it is no folder
        if not path.is_dir():
            raise
    else:
        path.chmod(0o700)  # a umask may have taken rights from the owner, too


def kill(pid: int, sig: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sig)


def kill_group(pgid: int) -> None:
    """SIGKILL a whole process group that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pgid, signal.SIGKILL)


def reap() -> list[int]:
    """Wait for every child that is dead, without blocking; their pids."""
    gone: list[int] = []
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except OSError as error:
            if error.errno == errno.ECHILD:
                return gone
            raise
        if pid == 0:
            return gone
        gone.append(pid)


def children() -> list[int]:
    """Live and dead child processes of this one, adopted orphans included."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:  # a kernel without it: orphans stay until the node's end
        return []


def group_is_alive(pgid: int) -> bool:
    """Whether any process of the group is left, zombies that were not waited for included."""
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return False
    return True
