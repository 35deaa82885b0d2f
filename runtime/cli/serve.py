"""``serve``: run the launcher, and load the configured models once the tree is up.

The launcher must not have threads of its own when it forks, so the models are loaded by a second
process, a client like any other, that ends when it is done.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from runtime import errors
from runtime.launch.launcher import say, serve
from runtime.settings.config import RuntimeConfig, to_mapping
from supervision.errors import NodeAlreadyRunning, PortInUse, SupervisionError
from supervision.launched import child_environment, say_ready


def serve_command(
    config: RuntimeConfig, *, ready_fd: int | None = None, parent_fd: int | None = None
) -> int:
    """Run a node; on ``ready_fd``, when given, say ``{}`` or what went wrong, one line of JSON."""

    def on_ready() -> None:
        if ready_fd is not None:
            say_ready(ready_fd)
        else:
            say(f"node ready on port {config.admin_port} (pid {os.getpid()}); Ctrl-C stops it")
        if config.models:
            _load_models(config)

    try:
        return serve(config, on_ready=on_ready, parent_fd=parent_fd)
    except (errors.LlamaActorsError, SupervisionError) as error:
        public = _public(error)
        if ready_fd is not None:
            say_ready(ready_fd, error, str(public))
        raise public from error


def _public(error: errors.LlamaActorsError | SupervisionError) -> errors.LlamaActorsError:
    if isinstance(error, errors.LlamaActorsError):
        return error
    if isinstance(error, PortInUse | NodeAlreadyRunning):
        return errors.NodeStartFailed(f"{error}; --admin-port chooses another port")
    return errors.NodeStartFailed(str(error))


def _load_models(config: RuntimeConfig) -> None:
    """Start the loader; it says on standard error what it loaded or why not."""
    loader = subprocess.Popen(
        [sys.executable, "-m", "runtime.cli.load_models", str(os.getpid())],
        stdin=subprocess.PIPE,
        env=child_environment(),
    )
    if loader.stdin is not None:
        loader.stdin.write(json.dumps(to_mapping(config)).encode())
        loader.stdin.close()
