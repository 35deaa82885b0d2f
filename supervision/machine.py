"""What a machine must have before any process of a node can run on it."""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

from supervision.errors import MachineUnfit

_PROC: Final = "/proc/self/stat"
_LOOPBACK: Final = "127.0.0.1"


def require_machine() -> None:
    """Raises MachineUnfit where /proc or the loopback interface is missing."""
    require_proc()
    require_loopback()


def require_proc() -> None:
    """Processes are identified, and shared memory is opened, through /proc."""
    if not os.path.exists(_PROC):
        raise MachineUnfit(
            "/proc is not mounted, and a node finds its processes and shared memory there; "
            "mount it: `mount -t proc proc /proc`"
        )


def require_loopback() -> None:
    """Processes of a node talk over 127.0.0.1."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((_LOOPBACK, 9))  # sends nothing, and fails where no route is
    except OSError as error:
        down = (errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH)
        why = "the loopback interface is down" if error.errno in down else str(error)
        raise MachineUnfit(
            f"{_LOOPBACK} cannot be used ({why}), and the processes of a node talk over it; "
            "bring it up: `ip link set lo up`"
        ) from error
