"""A node for ``run``: the one that runs, or one that is started and stays.

A node that is started here does not end with the program: the next command finds it, its models
and its warm prompts, until ``stop``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from runtime import errors
from runtime.launch.start import spawn_detached
from runtime.node import Node
from runtime.settings.config import RuntimeConfig, from_mapping, load_toml, located
from runtime.settings.gateway import GATEWAY_VARIABLE
from runtime.settings.ports import resolve_port
from runtime.settings.user_paths import state_folder
from supervision.errors import NodeAlreadyRunning, PortInUse

MAX_LOG_BYTES: Final = 8 << 20
START_WAIT_S: Final = 30.0
"""For a node that another command is starting."""
_TAKEN: Final = {NodeAlreadyRunning.__name__, PortInUse.__name__}


def settings_of(given: Mapping[str, Any]) -> RuntimeConfig:
    """The settings of ``--config``, with the port and the addresses of HTTP as given besides."""
    path = given["config"]
    settings = load_toml(path) if path else {}
    stronger: dict[str, Any] = {}
    if given["admin_port"] is not None or "admin_port" not in settings:
        stronger["admin_port"] = resolve_port(given["admin_port"])
    listen = os.environ.get(GATEWAY_VARIABLE, "").split()
    if listen:
        stronger["gateway"] = {**settings.get("gateway", {}), "listen": listen}
    with located(path, besides=stronger):
        return from_mapping(settings | stronger)


def running(config: RuntimeConfig) -> Node | None:
    """The node of these settings, if it runs."""
    try:
        return Node.attach(config.admin_port, runtime_dir=config.runtime_dir)
    except errors.NodeNotRunning:
        return None


def started(config: RuntimeConfig) -> Node:
    """Start the node, or use the one that another command has started at the same time."""
    import dataclasses

    config = dataclasses.replace(config, models={}, log_file=config.log_file or _log_file(config))
    try:
        pid = spawn_detached(config)
    except errors.NodeStartFailed as failed:
        if failed.kind not in _TAKEN:
            raise
        return _other(config, failed)
    is_usual = config.admin_port == resolve_port(None)
    port = "" if is_usual else f" --admin-port {config.admin_port}"
    sys.stderr.write(
        f"started a node in the background (pid {pid}); `llama-actors stop{port}` ends it\n"
    )
    return Node.attach(config.admin_port, runtime_dir=config.runtime_dir)


def ids_of_file(node: Node, path: Path) -> list[str]:
    """The ids of the node's models that were loaded from this file."""
    wanted = os.path.realpath(path)
    return [
        one.id
        for one in node.models()
        if os.path.realpath(str(one.details.get("path", ""))) == wanted
    ]


def _other(config: RuntimeConfig, failed: errors.NodeStartFailed) -> Node:
    deadline = time.monotonic() + START_WAIT_S
    while time.monotonic() < deadline:
        node = running(config)
        if node is not None:
            return node
        time.sleep(0.05)  # noqa: TID251 - a command line waiting for a node, not an actor
    raise failed


def _log_file(config: RuntimeConfig) -> Path | None:
    """A file for the node's log, a long one put aside; None without a place for it."""
    folder = state_folder()
    if folder is None:
        return None
    path = folder / f"node-{config.admin_port}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
            path.replace(path.with_suffix(".log.old"))
    except OSError:
        return None
    return path
