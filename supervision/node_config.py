"""The settings of a node, and the checks that need no running node."""

from __future__ import annotations

import importlib
import socket
from pathlib import Path

from supervision import logs
from supervision.endpoint import LOOPBACK
from supervision.errors import PortInUse, SpecError
from supervision.frozen import frozen
from supervision.kill_watch import KillWatch
from supervision.spec import SupervisorSpec, actors_below


@frozen
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
    """Top-level packages whose dataclasses and enums may travel in messages, beside this one and
    those of the tree's actors."""
    start_timeout_s: float = 60.0
    """From fork to the whole tree being ready."""
    stop_timeout_s: float = 30.0
    """For the ordered stop of the whole tree; what is left then is killed."""
    kill_watch: KillWatch | None = None
    """Detects that the kernel killed a process, after SIGKILL. Every process gets a copy."""
    root_heartbeat_s: float | None = 30.0
    """A root supervisor that shows no life for so long hangs, and the node restarts."""
    shelf: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Descriptors that lie on the launcher's shelf from the start, by name; see ``shelf``."""

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise SpecError("NodeConfig.port", self.port, "must be a TCP port")
        if self.log_format not in logs.LOG_FORMATS:
            wanted = f"must be one of {', '.join(logs.LOG_FORMATS)}"
            raise SpecError("NodeConfig.log_format", self.log_format, wanted)

    @property
    def message_packages(self) -> tuple[str, ...]:
        """``packages`` and those of the tree's actors, sorted."""
        of_actors = {path.partition(".")[0] for path in actors_below(self.tree)}
        return tuple(sorted({*self.packages, *of_actors}))


def load_actors(tree: SupervisorSpec) -> None:
    """Raises SpecError for a class path that cannot be loaded, before anything runs."""
    from supervision._plain_actor import worker_class  # here: only a launcher needs Thespian

    for path in actors_below(tree):
        try:
            worker_class(path)
        except (ImportError, AttributeError, TypeError) as error:
            raise SpecError("ChildSpec.actor", path, f"cannot be loaded: {error}") from error
    importlib.import_module("supervision.supervisor")


def require_port(port: int) -> None:
    """Raises PortInUse if another process listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise PortInUse(port) from error
