"""What ``cache`` commands have in common."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from runtime import errors
from runtime.cli.options import USER_PATH, attached

if TYPE_CHECKING:
    from runtime.client.cache.admin import Removed
    from runtime.client.cache.service import NodeCache
    from runtime.node import Node
    from runtime.remote.cache import RemoteCache
    from runtime.remote.node import RemoteNode

AGE_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def age(text: str | float) -> float:
    """``90s``, ``12h`` or ``7d``, in seconds: the type of an option."""
    if isinstance(text, float):
        return text
    with contextlib.suppress(ValueError, KeyError, IndexError):
        unit = text[-1] if text[-1] in AGE_UNITS else "s"
        seconds = float(text.removesuffix(unit)) * AGE_UNITS[unit]
        if seconds >= 0:
            return seconds
    raise click.BadParameter(f"{text!r} is not an age; write for instance 90s, 12h or 7d")


cache_dir_option: Final = click.option(
    "--cache-dir", type=USER_PATH, metavar="DIR", help="look here instead of asking a node"
)
yes_option: Final = click.option("--yes", is_flag=True, help="do not ask")


@contextlib.contextmanager
def online_cache(given: Mapping[str, Any]) -> Iterator[NodeCache | RemoteCache]:
    """The cache of the running node that the parameters name."""
    with attached(given) as node, contextlib.closing(_cache_of(node)) as cache:
        yield cache


def _cache_of(node: Node | RemoteNode) -> NodeCache | RemoteCache:
    from runtime.client.client import Client

    if isinstance(node, Client):
        from runtime.client.cache.service import NodeCache

        return NodeCache(node.client)
    from runtime.remote.cache import RemoteCache

    return RemoteCache(node.requests)


def require_no_gateway(given: Mapping[str, Any]) -> None:
    """With --cache-dir no node is asked, so none may be named."""
    if given.get("url") is not None:
        raise errors.ConfigError("--url", "and --cache-dir exclude each other; give one of them")


def write_json(value: object) -> None:
    """Write an indented JSON value to standard output."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def confirm(what: str, *, yes: bool) -> None:
    """Ask, unless ``yes``; without a terminal the command is refused."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise errors.InvalidRequest(f"this would remove {what}; confirm with --yes")
    if not click.confirm(f"Remove {what}?", err=True):
        raise errors.LlamaActorsError("nothing was removed")


def write_removed(removed: Removed, *, as_json: bool) -> int:
    """Report a removal; returns 1 if rows stayed because requests read them."""
    from runtime.settings.sizes import format_size

    if as_json:
        write_json(removed.to_dict())
    else:
        left = f"; {removed.leased} stayed, requests read them" if removed.leased else ""
        sys.stdout.write(f"removed {removed.rows} rows, {format_size(removed.nbytes)}{left}\n")
    return 1 if removed.leased else 0
