"""``stop``: stop a running node."""

from __future__ import annotations

from typing import Any

from runtime.cli.options import attached_here, node_command, port_option


@node_command()
@port_option
def command(**given: Any) -> int:
    attached_here(given).stop()
    return 0
