"""A node for ``run``: the one that runs, or one that is started and stays.

A node that is started here does not end with the program: the next command finds it, its models
and its warm prompts, until ``stop``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runtime import errors
from runtime.node import Node
from runtime.settings.ports import resolve_port
from runtime.settings.user_paths import state_folder
from supervision.errors import NodeAlreadyRunning, PortInUse

if TYPE_CHECKING:
    from runtime.settings.config import ModelConfig, RuntimeConfig

MAX_LOG_BYTES: Final = 8 << 20
START_WAIT_S: Final = 30.0
"""For a node that another command is starting."""
_TAKEN: Final = {NodeAlreadyRunning.__name__, PortInUse.__name__}


class Settings:
    """What a node of the command is started with, read when it is needed.

    A node that runs is found by its port, which takes no file and hardly an import.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        """``given``: the parameters of the command, of which ``config`` may name a file."""
        self._given = given

    @cached_property
    def config(self) -> RuntimeConfig:
        """All of them: those of the file, with the port and the addresses of HTTP besides."""
        from runtime.settings.config import from_mapping, load_toml, located
        from runtime.settings.gateway import GATEWAY_VARIABLE

        path = self._given["config"]
        settings = load_toml(path) if path else {}
        stronger: dict[str, Any] = {}
        if self._given["admin_port"] is not None or "admin_port" not in settings:
            stronger["admin_port"] = resolve_port(self._given["admin_port"])
        listen = os.environ.get(GATEWAY_VARIABLE, "").split()
        if listen:
            stronger["gateway"] = {**settings.get("gateway", {}), "listen": listen}
        with located(path, besides=stronger):
            return from_mapping(settings | stronger)

    @property
    def models(self) -> Mapping[str, ModelConfig]:
        """Those of the file, by id."""
        return self.config.models if self._given["config"] else {}

    @property
    def aliases(self) -> tuple[tuple[str, str], ...]:
        """Those of the file: patterns and the models that they mean."""
        return self.config.gateway.aliases if self._given["config"] else ()

    def running(self) -> Node | None:
        """The node of these settings, if it runs."""
        if not self._given["config"]:
            return _running(resolve_port(self._given["admin_port"]), None)
        return _running(self.config.admin_port, self.config.runtime_dir)


def _running(port: int, runtime_dir: Path | None) -> Node | None:
    try:
        return Node.attach(port, runtime_dir=runtime_dir)
    except errors.NodeNotRunning:
        return None


def started(config: RuntimeConfig) -> Node:
    """Start the node, or use the one that another command has started at the same time."""
    import dataclasses

    from runtime.launch.start import spawn_detached

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
        node = _running(config.admin_port, config.runtime_dir)
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
