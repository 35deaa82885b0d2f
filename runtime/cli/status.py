"""``status``: what every actor of a node reports."""

from __future__ import annotations

import json
import sys
from typing import Any

from runtime.cli.options import attached, json_option, node_command, node_options


@node_command()
@node_options
@json_option()
def command(*, as_json: bool, **given: Any) -> int:
    with attached(given) as node:
        status = node.status()
    if as_json:
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
