"""Run a node of one's own tree: ``python -m supervision package.module:TREE --runtime-dir DIR``."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from supervision import stdio
from supervision.errors import SpecError, SupervisionError
from supervision.launched import say_ready
from supervision.launcher import NodeConfig, run_node
from supervision.ports import free_port
from supervision.spec import SupervisorSpec


def main(arguments: list[str] | None = None) -> int:
    """Run until a stop is requested; the exit code of ``run_node``, 1 where it could not start."""
    stdio.prepare()
    asked = _parser().parse_args(arguments)
    settings: dict[str, Any] = {}
    if asked.settings_fd is not None:
        with open(asked.settings_fd, encoding="utf-8") as pipe:
            settings = json.load(pipe)
        sys.path[:] = settings.pop("sys_path")
    try:
        config = _config(asked.tree, settings or _settings(asked), asked.parent_fd)
        return run_node(config, on_ready=lambda: _ready(config, asked.ready_fd))
    except SupervisionError as error:
        if asked.ready_fd is None:
            stdio.say(f"error: {error}")
        else:
            say_ready(asked.ready_fd, error)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m supervision", description=__doc__)
    parser.add_argument("tree", metavar="MODULE:NAME", help="where the SupervisorSpec is")
    parser.add_argument("--runtime-dir", metavar="DIR", help="private folder of this node")
    parser.add_argument("--port", type=int, metavar="N", help="Admin's port; a free one otherwise")
    parser.add_argument("--log-file", metavar="FILE", help="instead of standard error")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    for hidden in ("--settings-fd", "--ready-fd", "--parent-fd"):
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    return parser


def _settings(asked: argparse.Namespace) -> dict[str, Any]:
    if asked.runtime_dir is None:
        raise SpecError("--runtime-dir", None, "must be given")
    sys.path.insert(0, "")
    return {
        "runtime_dir": asked.runtime_dir,
        "port": asked.port,
        "log_file": asked.log_file,
        "log_format": asked.log_format,
    }


def _config(where: str, settings: dict[str, Any], parent_fd: int | None) -> NodeConfig:
    tree = load_tree(where)
    log_file = settings["log_file"]
    return NodeConfig(
        port=settings["port"] or free_port(),
        runtime_dir=Path(settings["runtime_dir"]),
        tree=tree,
        log_file=None if log_file is None else Path(log_file),
        log_format=settings["log_format"],
        parent_fd=parent_fd,
        packages=(where.partition(":")[0].partition(".")[0],),
    )


def load_tree(where: str) -> SupervisorSpec:
    """The SupervisorSpec behind ``package.module:NAME``."""
    module, _, name = where.partition(":")
    try:
        tree = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SpecError("MODULE:NAME", where, f"cannot be loaded: {error}") from error
    if not isinstance(tree, SupervisorSpec):
        raise SpecError("MODULE:NAME", where, f"is a {type(tree).__name__}, not a SupervisorSpec")
    return tree


def _ready(config: NodeConfig, ready_fd: int | None) -> None:
    if ready_fd is not None:
        say_ready(ready_fd)
    elif sys.stderr.isatty():
        stdio.say(f"node ready on port {config.port}; Ctrl-C stops it")


if __name__ == "__main__":
    sys.exit(main())
