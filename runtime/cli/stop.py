"""``stop``: stop a running node."""

from __future__ import annotations

from typing import Any

from runtime.cli.options import attached, node_command, port_option


@node_command()
@port_option
def command(**given: Any) -> int:
    attached(given).stop()
    return 0
