"""The launcher's system, and the endpoints of processes that are no actors."""

from __future__ import annotations

import logging
import os
import select
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

from supervision._processes import Node, NodeSystem
from supervision._shell import Shell
from supervision._thespian import ActorSystemMessage, tcp, tr, utilis
from supervision._wire import LOOPBACK, NodeTransport, from_thespian, to_thespian
from supervision.address import Address
from supervision.errors import NodeStartFailed
from supervision.frames import FrameCodec


class System:
    """The Admin and its root actor, for the launcher."""

    def __init__(self, port: int, codec: FrameCodec, thesplog: Path) -> None:
        """Start the Admin on ``port``, a child of this process. The port must be free."""
        os.environ["THESPIAN_BASE_IPADDR"] = LOOPBACK
        NodeTransport.node_codec = codec
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
        return from_thespian(self._base.newPrimaryActor(Shell, None, None))

    def context(self) -> HostContext:
        """A private endpoint to talk to actors with."""
        return HostContext(self._base.transport.external_transport_clone())

    def shutdown(self) -> None:
        """Ask the Admin to end; returns within about two seconds whether it did or not."""
        self._base.shutdown()

    def close(self) -> None:
        """Close this process's sockets."""
        self._base.transport.close()


class HostContext:
    """A private endpoint of a thread that is no actor. One thread at a time."""

    def __init__(self, transport: NodeTransport) -> None:
        self._transport = transport

    @classmethod
    def open(cls, admin: Address, codec: FrameCodec) -> HostContext:
        """An endpoint for the node of this Admin. Starts nothing, connects to nothing yet."""
        how = tcp.ExternalTransportCopy()
        return cls(NodeTransport(how, to_thespian(admin), False, False, codec=codec))

    def send(self, target: Address, message: object, timeout_s: float) -> bool:
        """Send; whether the target's process has it. False: nobody listens, or it took too long."""
        outcome: list[bool] = []

        def finished(arrived: bool) -> None:
            outcome.append(arrived)
            self._transport.abort_run()

        intent = tr.TransmitIntent(
            to_thespian(target), message,
            onSuccess=lambda *_: finished(True), onError=lambda *_: finished(False),
            maxPeriod=timedelta(seconds=timeout_s),
        )  # fmt: skip
        self._transport.scheduleTransmit(None, intent)
        deadline = time.monotonic() + timeout_s
        while not outcome and (left := deadline - time.monotonic()) > 0:
            self._transport.run(tr.TransmitOnly, timedelta(seconds=left))
        return bool(outcome) and outcome[0]

    def receive(self, timeout_s: float) -> object | None:
        """The next message for this endpoint, or None when the time is over."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            got = self._transport.run(None, timedelta(seconds=left))
            if isinstance(got, tr.ReceiveEnvelope) and not isinstance(
                got.message, ActorSystemMessage
            ):
                message: object = got.message
                return message
        return None

    def close(self) -> None:
        """Close every socket of this endpoint."""
        self._transport.close()
