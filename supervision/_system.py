"""The launcher's part of Thespian: its system, whose Admin forks the root."""

from __future__ import annotations

import logging
import os
import select
from pathlib import Path
from types import SimpleNamespace

from supervision._processes import Node, NodeSystem
from supervision._shell import Supervisor
from supervision._thespian import utilis
from supervision._wire import NodeTransport, from_thespian
from supervision.address import Address
from supervision.errors import NodeStartFailed
from supervision.session import Secret


class System:
    """The Admin and its root actor, for the launcher."""

    def __init__(self, port: int, secret: Secret, thesplog: Path) -> None:
        """Start the Admin on ``port``, a child of this process. The port must be free."""
        NodeTransport.use(secret)
        utilis._thesplog_file = str(thesplog)
        utilis._thesplog_old_file = f"{thesplog}.old"
        utilis.thesplog_control(logging.WARNING, False, 50 * 1024)
        Node.launcher_pid = Node.parent_pid = os.getpid()
        reader, Node.announce_fd = os.pipe2(os.O_CLOEXEC)
        capabilities = {"Admin Port": port, "AllowRemoteActorSources": "No"}
        try:
            self._base = NodeSystem(SimpleNamespace(capabilities=capabilities))
        finally:
            os.close(Node.announce_fd)
            ready, _, _ = select.select([reader], [], [], 1.0)
            announced = os.read(reader, 64).decode() if ready else ""
            os.close(reader)
        if not announced:
            raise NodeStartFailed("the Admin did not start, or another one answered for it")
        self.admin_pid, self.group = map(int, announced.split())

    def create_root(self) -> Address:
        """Start the root's process; its address."""
        return from_thespian(self._base.newPrimaryActor(Supervisor, None, None))

    def shutdown(self) -> None:
        """Request the end of the Admin; returns within about two seconds, ended or not."""
        self._base.shutdown()

    def close(self) -> None:
        """Close this process's sockets."""
        self._base.transport.close()
