"""Errors of supervision, and what to do about each.

* SupervisionError
  x SpecError              a child or supervisor spec is wrong  -> fix the named value
  x RuntimeDirError        the runtime folder cannot be used    -> choose another, fix its rights
  x MachineUnfit           /proc or the loopback is missing     -> make it available
  x NodeAlreadyRunning     the folder belongs to a running node -> attach to it, or stop it first
  x NodeNotRunning         no node answers for this folder      -> start one
  x NodeRestarted          it restarted during the request      -> send the request again
  x NodeStartFailed        the tree did not come up             -> read the reason, fix, start again
  x PortInUse              another process listens there        -> stop it or choose another port
  x NoReply                no answer before the deadline        -> retry only if it is idempotent
    x TargetDown           it ended before it answered          -> the same; it has the reason
  x ForkedProcess          opened in the process that forked it -> open it here
  x UnknownMonitor         no such monitor, or its Down is taken -> correct the caller
  x NotOffered             a part of Thespian that no node has  -> use what the text names
  x TransportRefused       a message cannot be sent at all      -> correct the sender
  x WrongThespian          another thespian is installed        -> install the pinned version
"""

from __future__ import annotations

from supervision.exits import ExitReason


class SupervisionError(Exception):
    """Any error of this package."""


class SpecError(SupervisionError):
    """A spec holds an impossible value: the caller's mistake. Fix the value that is named."""

    def __init__(self, field: str, value: object, why: str) -> None:
        self.field = field
        self.value = value
        self.why = why
        super().__init__(f"{field}={value!r}: {why}")


class RuntimeDirError(SupervisionError):
    """The runtime folder is not ours or not private: fix its owner and mode, or choose another."""

    def __init__(self, path: object, why: str) -> None:
        self.path = str(path)
        super().__init__(f"runtime folder {path}: {why}")


class MachineUnfit(SupervisionError):
    """This machine, or container, lacks what every node needs; the text explains how to add it."""


class NodeAlreadyRunning(SupervisionError):
    """The runtime folder belongs to a running node: attach to it or stop it first."""

    def __init__(self, path: object, pid: int | None) -> None:
        self.path = str(path)
        self.pid = pid
        who = "another node that is just starting" if pid is None else f"a node with pid {pid}"
        super().__init__(f"{who} already uses {path}; attach to it, or stop it and try again")


class NodeNotRunning(SupervisionError):
    """No node answers for this runtime folder: start one."""

    def __init__(self, path: object, why: str) -> None:
        self.path = str(path)
        super().__init__(f"no node runs in {path}: {why}; start one and try again")


class NodeRestarted(SupervisionError):
    """The node restarted during a request; what was in flight is lost. Send the request again."""

    def __init__(self, path: object) -> None:
        self.path = str(path)
        super().__init__(f"the node of {path} restarted during the request; send it again")


class NodeStartFailed(SupervisionError):
    """The tree did not come up: the reason is that of the child that failed first."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(f"the node could not start: {why}")


class PortInUse(SupervisionError):
    """Another process listens on the node's port: stop that process or choose another port."""

    def __init__(self, port: int) -> None:
        self.port = port
        super().__init__(
            f"port {port} on 127.0.0.1 is in use by another process; "
            "stop it, or start this node on another port"
        )


class NoReply(SupervisionError):
    """No answer in time: the target is down, stuck or slow. What it did is unknown."""

    def __init__(self, target: object, timeout_s: float, why: str = "") -> None:
        self.target = target
        self.timeout_s = timeout_s
        super().__init__(
            f"no reply from {target} within {timeout_s} s" + (f": {why}" if why else "")
        )


class TargetDown(NoReply):
    """The target ended before it answered. What it did is unknown; ask again if that is harmless.

    ``reason`` is what its supervisor saw, for an exception its last line.
    """

    def __init__(self, target: object, incarnation: int, reason: ExitReason) -> None:
        self.target = target
        self.timeout_s = 0.0
        self.incarnation = incarnation
        self.reason = reason
        SupervisionError.__init__(
            self, f"{target} (incarnation {incarnation}) ended before it answered: {reason}"
        )


class ForkedProcess(SupervisionError):
    """An object of another process was used in one that was forked from it. Open a new one here."""

    def __init__(self, what: str, pid: int) -> None:
        self.pid = pid
        super().__init__(
            f"{what} belongs to process {pid}, from which this one was forked; "
            "use it there, or open one in this process"
        )


class UnknownMonitor(SupervisionError):
    """No monitor has this ref: it was never set, was removed, or its Down has been taken."""

    def __init__(self, ref: str) -> None:
        self.ref = ref
        super().__init__(f"there is no monitor {ref!r}, or its Down was taken; set a new one")


class TransportRefused(SupervisionError):
    """A message could not be handed to the transport: a programming error of the sender."""


class NotOffered(SupervisionError):
    """A part of Thespian that a supervised node does not offer; the text names what to use."""

    def __init__(self, what: str, instead: str) -> None:
        self.what = what
        super().__init__(f"{what} is not offered by a supervised node: {instead}")


class WrongThespian(SupervisionError):
    """The installed thespian is not the one whose internals this package relies on."""
