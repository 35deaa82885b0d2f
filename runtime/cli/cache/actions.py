"""What the ``cache`` commands do; ``cli.cache.command`` has their arguments and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

from actors.messages import Removal
from runtime import errors
from runtime.cli.cache import offline as cache_offline
from runtime.cli.cache.flush import flush
from runtime.cli.cache.inspect_row import describe
from runtime.cli.cache.ls import listed, plain_row, print_rows
from runtime.cli.cache.online import CacheTender, Removed, clean_directory
from runtime.cli.cache.pressure import pressure_command
from runtime.cli.cache.row_files import RowReport
from runtime.cli.cache.stat import show_stat, stat_of
from runtime.cli.node_flags import attached
from runtime.cli.progress import ProgressLine
from runtime.settings.sizes import format_size

TEMP_AGE_S: Final = 3600.0


@contextlib.contextmanager
def _tender(arguments: argparse.Namespace) -> Iterator[CacheTender]:
    with (
        attached(arguments) as node,
        contextlib.closing(CacheTender(node.client)) as tender,
    ):
        yield tender


def _print_json(value: object, *, indent: int | None = 2) -> None:
    sys.stdout.write(json.dumps(value, indent=indent, default=str) + "\n")


def _stat(arguments: argparse.Namespace) -> int:
    with _tender(arguments) as tender:
        facts = stat_of(tender.actors)
    if arguments.json:
        _print_json(facts)
    else:
        sys.stdout.write(show_stat(facts))
    return 0


def _ls(arguments: argparse.Namespace) -> int:
    if arguments.cache_dir is not None:
        return print_rows(arguments, cache_offline.listed(arguments))
    with _tender(arguments) as tender:
        return print_rows(arguments, listed(arguments, tender))


# ── show, verify ───────────────────────────────────────────────────────────────────────────────


def _show(arguments: argparse.Namespace) -> int:
    digits = arguments.key.lower()
    if len(digits) < 4:
        raise errors.InvalidRequest("give at least 4 hex digits of a key, as `cache ls` shows them")
    if arguments.cache_dir is not None:
        report, plain = cache_offline.shown(arguments.cache_dir, digits), {}
    else:
        with _tender(arguments) as tender:
            row = tender.find(digits)
            head = tender.head(row)
            report = head or RowReport("no copy could be read", row.row_bytes)
            plain = plain_row(row, {}, head) | {"children": tender.children(row.key)}
            plain["copies"] = dict(row.tiers)
    if arguments.json:
        _print_json(report.to_dict() | plain)
        return 0
    sys.stdout.write(describe(report))
    if plain:
        sys.stdout.write(
            f"copies      {', '.join(plain['tiers'])}; read by {plain['leases']} requests; "
            f"continued by {plain['children']} rows"
            f"{'; superseded by a longer row' if plain['superseded'] else ''}\n"
        )
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    with ProgressLine("checking rows") as line:
        if arguments.cache_dir is not None:
            result = cache_offline.verified(
                arguments.cache_dir, line.share, repair=arguments.repair
            )
        else:
            with _tender(arguments) as tender:
                result = _verified(tender, line.share, repair=arguments.repair)
    if arguments.json:
        _print_json(result)
    else:
        for bad in result["damaged"]:
            done = "quarantined" if bad["repaired"] else "left as it is"
            sys.stdout.write(
                f"DAMAGED {bad['tier']} {bad['place']}\n"
                f"        at {bad['damaged_at']}: {bad['damage']}; {done}\n"
            )
        sys.stdout.write(
            f"{result['rows']} rows, {format_size(result['bytes'])}: "
            f"{result['proved']} proved by digest, {len(result['damaged'])} damaged\n"
        )
    return 1 if result["damaged"] else 0


def _verified(
    tender: CacheTender, progress: Callable[[float], None], *, repair: bool
) -> dict[str, Any]:
    result = cache_offline.new_result()
    for checked in tender.verify(progress):
        is_bad = checked.report.damage is not None
        repaired = is_bad and repair and tender.reject(checked)
        cache_offline.count(result, checked.tier, checked.report, repaired=repaired)
    return result


# ── gc, rm, wipe ───────────────────────────────────────────────────────────────────────────────


def _gc(arguments: argparse.Namespace) -> int:
    with _tender(arguments) as tender:
        removed = tender.remove_all(Removal.SUPERSEDED)
        files = {"quarantined_files": 0, "temp_files": 0, "bytes": 0}
        for directory in tender.directories.values():
            for key, value in clean_directory(
                directory, arguments.quarantine_age, TEMP_AGE_S
            ).items():
                files[key] += value
    plain = _plain_removed(removed) | {
        "quarantined_files": files["quarantined_files"],
        "temp_files": files["temp_files"],
        "bytes": removed.nbytes + files["bytes"],
    }
    if arguments.json:
        _print_json(plain)
    else:
        sys.stdout.write(
            f"removed {plain['rows']} superseded rows, {plain['quarantined_files']} quarantined "
            f"and {plain['temp_files']} temp files: {format_size(plain['bytes'])}\n"
        )
    return 0


def _flush(arguments: argparse.Namespace) -> int:
    with attached(arguments) as node:
        flush(node.client)
    if arguments.json:
        _print_json({"flushed": True})
    return 0


def _rm(arguments: argparse.Namespace) -> int:
    with _tender(arguments) as tender:
        row = tender.find(arguments.key.lower())
        children = tender.children(row.key)
        words = f"row {row.key.hex()[:16]} and what continues it ({children} rows directly)"
        _confirm(arguments, words)
        return _say_removed(arguments, tender.remove_tree(row.key))


def _wipe(arguments: argparse.Namespace) -> int:
    which = "all rows" if arguments.model is None else f"all rows of {arguments.model}"
    if arguments.cache_dir is not None:
        with cache_offline.held(arguments.cache_dir) as root:
            _confirm(arguments, f"{which} in {root}")
            return _say_removed(arguments, cache_offline.wiped(root, arguments.model))
    with _tender(arguments) as tender:
        tender.forget_live(arguments.model)
        roots = [None] if arguments.model is None else tender.roots_of(arguments.model)
        _confirm(arguments, f"{which}, in every tier of the node")
        total = Removed()
        for namespace in roots:
            removed = tender.remove_all(Removal.ALL, namespace)
            total.rows += removed.rows
            total.nbytes += removed.nbytes
            total.leased += removed.leased
    return _say_removed(arguments, total)


def _confirm(arguments: argparse.Namespace, what: str) -> None:
    """Ask, unless --yes was given; without a terminal the command is refused."""
    if arguments.yes:
        return
    if not sys.stdin.isatty():
        raise errors.InvalidRequest(f"this would remove {what}; confirm with --yes")
    sys.stderr.write(f"Remove {what}? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise errors.LlamaActorsError("nothing was removed")


def _plain_removed(removed: Removed) -> dict[str, Any]:
    return {"rows": removed.rows, "bytes": removed.nbytes, "left_because_read": removed.leased}


def _say_removed(arguments: argparse.Namespace, removed: Removed) -> int:
    if arguments.json:
        _print_json(_plain_removed(removed))
    else:
        left = f"; {removed.leased} stayed, requests read them" if removed.leased else ""
        sys.stdout.write(f"removed {removed.rows} rows, {format_size(removed.nbytes)}{left}\n")
    return 1 if removed.leased else 0


ACTIONS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "stat": _stat,
    "ls": _ls,
    "show": _show,
    "verify": _verify,
    "gc": _gc,
    "flush": _flush,
    "rm": _rm,
    "wipe": _wipe,
    "pressure": pressure_command,
}
"""By the name of the command."""
