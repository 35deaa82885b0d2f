"""``cache pressure``: show and change the pressure scheduler of a running node.

A change lasts until the scheduler or the node restarts; they start with the ``[pressure]`` table of
the configuration. Exit codes: 0 done, 1 the source failed, 2 wrong usage.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from runtime import errors
from runtime.cli.options import attached_here, json_option, node_command, port_option
from runtime.settings.sizes import format_size, parse_size

SCHEDULER = "scheduler"


@node_command()
@port_option
@json_option("print JSON")
@click.argument(
    "switch", required=False, type=click.Choice(("on", "off")), help="turn it on or off"
)
@click.option("--source", help="noop, system, nvidia, or package.module:callable")
@click.option("--high", type=float, metavar="SHARE", help="relief begins here, e.g. 0.85")
@click.option("--low", type=float, metavar="SHARE", help="and ends here, e.g. 0.75")
@click.option("--interval", type=float, metavar="SECONDS", help="between two readings")
@click.option("--min-evict", metavar="SIZE", help="a smaller overshoot is ignored")
@click.option("--tiers", metavar="A,B", help="where to evict, in this order")
@click.option("--check", is_flag=True, help="read and act now, and report the result")
def command(*, switch: str | None, as_json: bool, check: bool, **given: Any) -> int:
    from actors import messages as m
    from supervision.messages import new_ref

    change = m.SetPressure(
        new_ref(),
        enabled=None if switch is None else switch == "on",
        source=given["source"],
        high=given["high"],
        low=given["low"],
        interval_s=given["interval"],
        min_evict_bytes=given["min_evict"] and parse_size(given["min_evict"], "min_evict"),
        tiers=given["tiers"] and tuple(given["tiers"].split(",")),
    )
    with attached_here(given) as node:
        if change != m.SetPressure(change.ref):
            answer = node.client.ask(SCHEDULER, change)
            if isinstance(answer, m.PressureRefused):
                raise errors.ConfigError(f"pressure.{answer.key}", answer.detail)
        checked = node.client.ask(SCHEDULER, m.CheckPressure(new_ref())) if check else None
        status = dict(node.status()["actors"].get(SCHEDULER) or {})
    if isinstance(checked, m.PressureChecked):
        status["check"] = {
            "outcome": checked.outcome,
            "used_bytes": checked.used,
            "total_bytes": checked.total,
            "rows": checked.rows,
            "returned_bytes": checked.returned,
        }
    sys.stdout.write(json.dumps(status, indent=2) + "\n" if as_json else _lines(status))
    return 1 if status.get("check", {}).get("outcome") == "source_failed" else 0


def _lines(status: dict[str, Any]) -> str:
    settings, reading = status["settings"], status["last_reading"]
    switch, tiers = "on" if status["enabled"] else "off", ", ".join(settings["tiers"])
    lines = [f"{switch}, source {settings['source']} every {settings['interval_s']:g} s"]
    lines.append(f"relief from {settings['high']:.0%} to {settings['low']:.0%}, of {tiers}")
    if reading is not None:
        lines.append(
            f"last reading: {reading['share']:.0%} of {format_size(reading['total_bytes'])} "
            f"({reading['where']}), {reading['stalled_percent']:g} % stalled, "
            f"{reading['age_s']:.0f} s ago"
        )
    lines.append(
        f"{status['readings']} readings, {status['failures']} failures, {status['evictions']} "
        f"times relief: {status['rows']} rows, {format_size(status['returned'])} returned"
    )
    if status["trouble"]:
        lines.append(f"trouble: {status['trouble']}")
    if "check" in status:
        check = status["check"]
        lines.append(
            f"checked: {check['outcome']}, {check['rows']} rows, "
            f"{format_size(check['returned_bytes'])} returned"
        )
    return "\n".join(lines) + "\n"
