"""``cache pressure``: see and change the pressure scheduler of a running node.

What is changed holds until the scheduler or the node restarts; the ``[pressure]`` table of the
configuration is what they start with. Exit codes: 0 done, 1 the source failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from actors import messages as m
from runtime import errors
from runtime.cli.node_flags import attached
from runtime.settings.sizes import format_size, parse_size
from supervision.messages import new_ref

SCHEDULER = "scheduler"


def pressure_command(arguments: argparse.Namespace) -> int:
    wish = m.SetPressure(
        new_ref(),
        enabled=None if arguments.switch is None else arguments.switch == "on",
        source=arguments.source,
        high=arguments.high,
        low=arguments.low,
        interval_s=arguments.interval,
        min_evict_bytes=arguments.min_evict and parse_size(arguments.min_evict, "min_evict"),
        tiers=arguments.tiers and tuple(arguments.tiers.split(",")),
    )
    with attached(arguments) as node:
        if wish != m.SetPressure(wish.ref):
            answer = node.client.ask(SCHEDULER, wish)
            if isinstance(answer, m.PressureRefused):
                raise errors.ConfigError(f"pressure.{answer.key}", answer.detail)
        checked = (
            node.client.ask(SCHEDULER, m.CheckPressure(new_ref())) if arguments.check else None
        )
        status = dict(node.status()["actors"].get(SCHEDULER) or {})
    if isinstance(checked, m.PressureChecked):
        status["check"] = {
            "outcome": checked.outcome,
            "used_bytes": checked.used,
            "total_bytes": checked.total,
            "rows": checked.rows,
            "returned_bytes": checked.returned,
        }
    sys.stdout.write(json.dumps(status, indent=2) + "\n" if arguments.json else _lines(status))
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
