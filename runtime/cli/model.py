"""``adapters`` and ``evict``: what may be changed about a model that runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from runtime.cli.node_flags import add_port, attached
from runtime.settings.sizes import format_size

if TYPE_CHECKING:
    from actors.messages import AdapterStatus


def add_adapters(adapters: argparse.ArgumentParser) -> None:
    """Add the arguments of ``adapters``."""
    _add_common(adapters)
    change = adapters.add_mutually_exclusive_group()
    change.add_argument("--load", metavar="PATH", help="apply this adapter, times --scale")
    change.add_argument("--set", type=int, metavar="ID", help="apply it times --scale from now on")
    change.add_argument("--unload", type=int, metavar="ID", help="free it")
    adapters.add_argument("--scale", type=float, default=1.0, metavar="X", help="default 1")
    adapters.set_defaults(run=_adapters)


def add_evict(evict: argparse.ArgumentParser) -> None:
    """Add the arguments of ``evict``."""
    _add_common(evict)
    evict.add_argument("--session", metavar="NAME", help="only forget this session")
    evict.set_defaults(run=_evict)


def _add_common(command: argparse.ArgumentParser) -> None:
    add_port(command)
    command.add_argument("model", metavar="MODEL")
    command.add_argument("--json", action="store_true", help="print JSON")


def _adapters(arguments: argparse.Namespace) -> int:
    model = arguments.model
    with attached(arguments) as node:
        if arguments.load is not None:
            node.load_adapter(model, arguments.load, scale=arguments.scale)
        elif arguments.set is not None:
            node.set_adapter_scale(model, arguments.set, arguments.scale)
        elif arguments.unload is not None:
            node.unload_adapter(model, arguments.unload)
        found = node.list_adapters(model)
    if arguments.json:
        sys.stdout.write(json.dumps([dataclasses.asdict(one) for one in found], indent=2) + "\n")
        return 0
    for one in found:
        sys.stdout.write(_line(one))
    if not found:
        sys.stderr.write(f"model {model!r} has no adapter\n")
    return 0


def _line(one: AdapterStatus) -> str:
    return f"{one.id:>4}  scale {one.scale:<6g} {format_size(one.n_bytes):>10}  {one.path}\n"


def _evict(arguments: argparse.Namespace) -> int:
    with attached(arguments) as node:
        if arguments.session is not None:
            was_known = node.end_session(arguments.model, arguments.session)
            found: dict[str, Any] = {"session": arguments.session, "was_known": was_known}
            words = "forgotten" if was_known else "there was no such session"
        else:
            n = node.evict(arguments.model)
            found, words = {"sequences": n}, f"{n} sequences freed"
    sys.stdout.write((json.dumps(found) if arguments.json else words) + "\n")
    return 0
