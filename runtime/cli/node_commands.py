"""``status``, ``tree``, ``stop``, ``demo`` and ``doctor``: what concerns a node as a whole."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Final

from runtime.cli.node_flags import add_port, attached
from runtime.settings.user_paths import path_flag

WATCH_S: Final = 2.0


def add_status(status: argparse.ArgumentParser) -> None:
    """Add the arguments of ``status``."""
    add_port(status)
    status.add_argument("--json", action="store_true", help="print one JSON object")
    status.set_defaults(run=_status)


def add_tree(tree: argparse.ArgumentParser) -> None:
    """Add the arguments of ``tree``."""
    add_port(tree)
    tree.add_argument("--json", action="store_true", help="print one JSON object")
    tree.add_argument(
        "--watch", type=float, nargs="?", const=WATCH_S, metavar="SECONDS",
        help=f"show it again every so many seconds ({WATCH_S:.0f}) until Ctrl-C",
    )  # fmt: skip
    tree.set_defaults(run=_tree)


def add_stop(stop: argparse.ArgumentParser) -> None:
    """Add the arguments of ``stop``."""
    add_port(stop)
    stop.set_defaults(run=_stop)


def add_demo(demo: argparse.ArgumentParser) -> None:
    """Add the arguments of ``demo``."""
    demo.add_argument("--json", action="store_true", help="print the rows as JSON")
    demo.add_argument("--model", type=path_flag, metavar="PATH", help="a GGUF file of your own")
    demo.set_defaults(run=_demo)


def add_doctor(doctor: argparse.ArgumentParser) -> None:
    """Add the arguments of ``doctor``."""
    add_port(doctor)
    doctor.add_argument("--json", action="store_true", help="print the checks as JSON")
    doctor.add_argument(
        "--config", type=path_flag, metavar="FILE", help="check its directories, too"
    )
    doctor.set_defaults(run=_doctor)


def _status(arguments: argparse.Namespace) -> int:
    with attached(arguments) as node:
        status = node.status()
    if arguments.json:
        sys.stdout.write(json.dumps(status, indent=2, default=str) + "\n")
        return 0
    lines = [f"node on port {status['node']['port']}, launcher pid {status['node']['pid']}"]
    for actor, report in status["actors"].items():
        lines.append(actor)
        if report is None:
            lines.append("    no answer")
            continue
        lines += [f"    {key}: {value}" for key, value in report.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _tree(arguments: argparse.Namespace) -> int:
    from runtime.cli.tree import tree_command

    return tree_command(arguments.admin_port, as_json=arguments.json, watch_s=arguments.watch)


def _stop(arguments: argparse.Namespace) -> int:
    attached(arguments).stop()
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from runtime.cli.demo import demo_command

    return demo_command(as_json=arguments.json, model=arguments.model)


def _doctor(arguments: argparse.Namespace) -> int:
    from runtime.cli.doctor import doctor_command
    from runtime.settings.config import from_mapping, load_toml
    from runtime.settings.ports import resolve_port

    config = None if arguments.config is None else from_mapping(load_toml(arguments.config))
    return doctor_command(resolve_port(arguments.admin_port), as_json=arguments.json, config=config)
