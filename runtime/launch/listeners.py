"""Opens the gateway's sockets in the launcher, before the tree starts.

So a wrong address is an error that names it, and the sockets exist as long as the launcher: while a
worker restarts, or the whole tree, clients wait in their queues instead of being refused.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from typing import Final

from runtime.errors import ConfigError
from runtime.settings.gateway import LISTENER, SYSTEMD, GatewaySettings, Listen

BACKLOG: Final = 2048
_FIRST_PASSED: Final = 3
"""Number of the first descriptor that systemd hands over, as ``sd_listen_fds`` has it."""


def open_listeners(settings: GatewaySettings) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and descriptors for the shelf; ConfigError where an address cannot be had."""
    found: list[tuple[str, tuple[int, ...]]] = []
    try:
        for number, one in enumerate(settings.listen):
            fds = tuple(_passed(settings) if one.is_systemd else _opened(one))
            found.append((f"{LISTENER}{number}", fds))
    except BaseException:
        for _, fds in found:
            for fd in fds:
                os.close(fd)
        raise
    return tuple(found)


def remove_paths(settings: GatewaySettings) -> None:
    """Remove the Unix sockets, at the launcher's end."""
    for one in settings.listen:
        if one.path:
            with contextlib.suppress(OSError):
                os.unlink(one.path)


def _opened(one: Listen) -> list[int]:
    try:
        return [_unix(one)] if one.path else _tcp(one)
    except OSError as error:
        trouble = "another program listens there" if _is_taken(error) else error.strerror
        raise ConfigError(
            "gateway.listen",
            f"{one} cannot be used: {trouble}; choose another with --gateway or in [gateway]",
        ) from error


def _is_taken(error: OSError) -> bool:
    return error.errno == errno.EADDRINUSE


def _tcp(one: Listen) -> list[int]:
    """A name such as localhost may stand for an IPv4 and an IPv6 address: both are opened."""
    opened: list[int] = []
    kind = socket.SOCK_STREAM
    places = socket.getaddrinfo(one.host, one.port, type=kind, flags=socket.AI_PASSIVE)
    trouble: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(places):
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRNOTAVAIL and len(places) > 1:
                trouble = error  # a machine without IPv6 still has ::1 in its hosts file
                continue
            for fd in opened:
                os.close(fd)
            raise
        opened.append(sock.detach())
    if not opened and trouble is not None:
        raise trouble
    return opened


def _unix(one: Listen) -> int:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(one.path).st_mode):
            _require_unused(one.path)
            os.unlink(one.path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind(one.path)
        os.chmod(one.path, 0o660)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock.detach()


def _require_unused(path: str) -> None:
    """A socket at which a process listens is taken; one that was left over is not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        code = probe.connect_ex(path)
    if code not in (errno.ECONNREFUSED, errno.ENOENT):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _passed(settings: GatewaySettings) -> list[int]:
    """The sockets that systemd has opened for this process."""
    count, pid = os.environ.get("LISTEN_FDS", ""), os.environ.get("LISTEN_PID", "")
    if not count.isdigit() or int(count) < 1 or pid != str(os.getpid()):
        raise ConfigError(
            "gateway.listen",
            f"is {SYSTEMD}, and systemd has handed over no socket; start the node by a .socket "
            "unit, or name an address",
        )
    fds = list(range(_FIRST_PASSED, _FIRST_PASSED + int(count)))
    for fd in fds:
        os.set_inheritable(fd, False)
        os.set_blocking(fd, False)
    if settings.keys_file is None:
        for fd in fds:
            require_local(fd)
    return fds


def require_local(fd: int) -> None:
    """ConfigError where other machines reach this socket."""
    with socket.socket(fileno=os.dup(fd)) as one:
        if one.family == socket.AF_UNIX:
            return
        host = str(one.getsockname()[0])
    if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        raise ConfigError(
            "gateway.listen",
            f"systemd has handed over a socket at {host}, which other machines reach; name a file "
            "of keys with gateway.keys_file (`llama-actors gateway key NAME` makes one)",
        )
