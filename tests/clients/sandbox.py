"""A place with loopback and nothing else: network, process and mount namespaces of Linux.

As root, ``unshare`` makes them; other users make a user namespace first. Where neither is allowed
(some containers), the caller runs without and prints so. The namespaces have no name and no
file: they end with the last process in them, and the kernel kills all processes of a process
namespace when its first one ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

_SPACES: Final = ("--net", "--pid", "--mount-proc", "--fork", "--kill-child")
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1


def unshare() -> list[str] | None:
    """The words that put a command into namespaces of its own; None where that is not allowed."""
    program = shutil.which("unshare")
    for more in ([], ["--user", "--map-root-user"]):
        words = [program or "unshare", *more, *_SPACES, "--"]
        if program and _works(words):
            return words
    return None


def _works(words: Sequence[str]) -> bool:
    raise_up = f"import {__name__} as s; s.loopback_up()"
    command = [*words, sys.executable, "-c", raise_up]
    try:
        ran = subprocess.run(command, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return ran.returncode == 0


def run_inside(words: Sequence[str], command: Sequence[str], *, deadline_s: float) -> int:
    """Run ``command`` in the namespaces; all that was started in them is gone afterwards."""
    with subprocess.Popen([*words, *command]) as process:
        try:
            return process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            sys.stderr.write(f"clients: not done after {deadline_s:.0f} s; everything is killed\n")
            return 1
        except KeyboardInterrupt:
            return 130
        finally:
            process.kill()


def loopback_up() -> None:
    """Switch on ``lo``, which is down in a new network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        asked = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(control, _SIOCGIFFLAGS, asked))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def as_first_process(work: Callable[[], int]) -> int:
    """Do ``work`` in a child and collect orphans, as the first process of a namespace must."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = 1
        try:
            code = work()
            sys.stdout.flush()
        except BaseException:  # noqa: BLE001 - this process ends here, and shows why
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status) & 0xFF


def others() -> list[str]:
    """Command lines of the processes of this namespace, without the first and this one."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) not in (1, os.getpid()):
            try:
                state = (folder / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if state[0] not in "ZX":
                found.append(words.strip()[:200])
    return found
