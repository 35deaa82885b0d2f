"""The launcher as a child process of this one."""

from __future__ import annotations

import json
import sys
from typing import Final

from runtime import errors
from runtime.settings.config import RuntimeConfig, to_mapping
from supervision.launched import LaunchedNode, LauncherSaid, start_detached

START_TIMEOUT_S: Final = 30.0


def spawn(config: RuntimeConfig) -> LaunchedNode:
    """Run the launcher; returns when the tree is up, raises its error when it is not."""

    def command(settings_fd: int, ready_fd: int, parent_fd: int) -> list[str]:
        fds = ["--config-fd", str(settings_fd), "--ready-fd", str(ready_fd)]
        return [sys.executable, "-m", "runtime", "serve", *fds, "--parent-fd", str(parent_fd)]

    try:
        return LaunchedNode.start(
            command,
            json.dumps(to_mapping(config)).encode(),
            timeout_s=START_TIMEOUT_S,
            quiet=config.log_file is None,
        )
    except LauncherSaid as error:
        raise errors.NodeStartFailed(error.why, error.kind) from error


def spawn_detached(config: RuntimeConfig) -> int:
    """Run the launcher of a node that outlives this process; returns its process id.

    The node ends by its own command, or by a signal. Its log is the file of the configuration, or
    there is none.
    """

    def command(settings_fd: int, ready_fd: int) -> list[str]:
        fds = ["--config-fd", str(settings_fd), "--ready-fd", str(ready_fd)]
        return [sys.executable, "-m", "runtime", "serve", *fds]

    try:
        return start_detached(
            command, json.dumps(to_mapping(config)).encode(), timeout_s=START_TIMEOUT_S
        )
    except LauncherSaid as error:
        raise errors.NodeStartFailed(error.why, error.kind) from error
