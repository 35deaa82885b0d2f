"""A node of one's own tree, started from host code and gone with it.

with Node.start("my_actors:TREE", runtime_dir) as node:
node.connection.ask("greeter", Greet(new_ref()), timeout_s=2)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from supervision.connection import Connection
from supervision.errors import ForkedProcess
from supervision.launched import LaunchedNode

START_TIMEOUT_S: Final = 60.0


class Node:
    """A running node that this process started. Close it, or use it in a ``with``."""

    def __init__(self, launched: LaunchedNode, connection: Connection) -> None:
        self._launched = launched
        self.connection = connection

    @classmethod
    def start(
        cls,
        tree: str,
        runtime_dir: Path,
        *,
        port: int | None = None,
        log_file: Path | None = None,
        log_format: str = "text",
    ) -> Self:
        """Start the tree behind ``package.module:NAME``; returns when all of it is up.

        Modules are found as this process finds them. Without ``port`` a free one is chosen, without
        ``log_file`` the log is dropped. Raises NodeStartFailed with the launcher's reason.
        """
        settings = {
            "sys_path": [str(Path(one).absolute()) for one in sys.path],
            "runtime_dir": str(Path(runtime_dir).absolute()),
            "port": port,
            "log_file": None if log_file is None else str(Path(log_file).absolute()),
            "log_format": log_format,
        }

        def command(settings_fd: int, ready_fd: int, parent_fd: int) -> list[str]:
            fds = [f"--settings-fd={settings_fd}", f"--ready-fd={ready_fd}"]
            return [sys.executable, "-m", "supervision", tree, *fds, f"--parent-fd={parent_fd}"]

        launched = LaunchedNode.start(
            command, json.dumps(settings).encode(), timeout_s=START_TIMEOUT_S, quiet=True
        )
        try:
            return cls(launched, Connection.attach(Path(runtime_dir)))
        except BaseException:
            launched.end()
            raise

    @property
    def pid(self) -> int:
        """The launcher's."""
        return self._launched.process.pid

    def stop(self) -> None:
        """Stop the tree in order and wait until nothing of it is left.

        Raises ForkedProcess in a process that was forked from the one that started it.
        """
        if not self._launched.is_own:
            raise ForkedProcess("this node", self._launched.owner_pid)
        self.connection.close()
        self._launched.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._launched.is_own:
            self.stop()
        else:
            self.connection.close()
