"""A port for a node that may keep it for years, across restarts."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

_LOOPBACK: Final = "127.0.0.1"
_LOWEST: Final = 10_000
"""Below are the ports of well-known services."""
_TRIES: Final = 50
_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """A port of loopback that is free now and outside of what the kernel hands out by itself.

    The kernel uses its own range for outgoing connections and for sockets that ask for any port, so
    a node that restarts finds its port free. Where that range leaves no room, any free port.
    """
    import random  # here: only who starts a node needs it, and it loads OpenSSL

    low, high = _ephemeral_range()
    outside: list[int] = [*range(_LOWEST, low), *range(high + 1, 65536)]
    for port in random.sample(outside, min(_TRIES, len(outside))):
        if _bound(port):
            return port
    return _bound(0)


def _ephemeral_range() -> tuple[int, int]:
    try:
        low, high = (int(one) for one in _EPHEMERAL.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return 32768, 60999
    return low, high


def _bound(port: int) -> int:
    """The port that a socket got when it asked for this one; 0 if that is taken."""
    with socket.socket() as probe:
        try:
            probe.bind((_LOOPBACK, port))
        except OSError:
            return 0
        return int(probe.getsockname()[1])
