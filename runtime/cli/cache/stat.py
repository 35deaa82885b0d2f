"""``cache stat``: the counters of all actors, joined into one description of the cache.

Nothing is measured here; every number is one that an actor reports, and ``status`` shows it too.
Counters start at the actor's last start.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from runtime.cli.cache.options import online_cache, write_json
from runtime.cli.options import json_option, node_command, node_options
from runtime.cli.table import Column, write_table
from runtime.settings.sizes import format_size

HIDDEN: Final = ("tiers", "saves", "refused")  # shown in tables of their own

_COLUMNS: Final = (
    Column("TIER", 10), Column("ROWS", 8, right=True), Column("USED", 11, right=True),
    Column("BUDGET", 11, right=True), Column("FULL", 6, right=True),
)  # fmt: skip


@node_command()
@node_options
@json_option("print JSON")
def command(*, as_json: bool, **given: Any) -> int:
    with online_cache(given) as cache:
        facts = cache.stat()
    if as_json:
        write_json(facts)
    elif not facts["cache"]:
        sys.stdout.write("cache_meta does not answer; requests run cold until it does\n")
    else:
        write_table(_COLUMNS, _tiers(facts))
        sys.stdout.write(show_stat(facts))
    return 0


def show_stat(facts: dict[str, Any]) -> str:
    """All but the table of tiers, as lines."""
    cache = facts["cache"]
    troubles = {name: tier.get("trouble") for name, tier in facts["tiers"].items()}
    lines = [f"{name}: {trouble}\n" for name, trouble in troubles.items() if trouble]
    lines += [f"{name}: none, {why}\n" for name, why in cache.get("absent_tiers", {}).items()]
    lines.append("\nlookups and rows\n")
    lines += [
        f"  {key:<22} {_number(key, value)}\n"
        for key, value in cache.items()
        if key not in HIDDEN and not isinstance(value, dict)
    ]
    for title in ("saves", "refused"):
        pairs = [f"{key} {value}" for key, value in cache.get(title, {}).items() if value]
        lines.append(f"  {title:<22} {', '.join(pairs) or 'none'}\n")
    if facts["restored"]:
        lines.append("\nrestored by models\n")
    for tier, sums in facts["restored"].items():
        mean = sums["ms"] / sums["requests"] if sums["requests"] else 0.0
        lines.append(
            f"  {tier:<10} {sums['requests']:.0f} requests, {sums['tokens']:.0f} tokens, "
            f"{format_size(sums['bytes'])}, {mean:.2f} ms each\n"
        )
    if facts["models"]:
        lines.append("\nsaved by models\n")
    for name, model in facts["models"].items():
        rows = model.get("saved_rows", 0)
        mean = model.get("saved_ms", 0.0) / rows if rows else 0.0
        size, worst = format_size(model.get("saved_bytes", 0)), model.get("saved_ms_slowest", 0.0)
        lines.append(
            f"  {name:<22} {rows} rows, {size}, {mean:.2f} ms each, {worst:.2f} at worst\n"
        )
    writer = facts["writer"]
    if writer:
        lines.append("\nwriter\n")
        lines += [
            f"  {key:<22} {_number(key, value)}\n"
            for key, value in writer.items()
            if not isinstance(value, dict | list)
        ]
    return "".join(lines)


def _tiers(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, tier in facts["tiers"].items():
        used, budget = tier.get("used_bytes", 0), tier.get("budget_bytes", 0)
        share = f"{100 * used / budget:.0f} %" if budget else "-"
        rows.append((name, str(tier.get("rows", 0)), format_size(used), format_size(budget), share))
    return rows


def _number(key: str, value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and "bytes" in key:
        return format_size(value)
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
