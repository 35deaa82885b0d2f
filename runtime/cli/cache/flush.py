"""``cache flush``: write what waits, that is ends of idle sequences and rows for slow disks.

A node writes by itself, the end of a reply some seconds after the rest. Flush before killing a
node, or before counting what is on disk.
"""

from __future__ import annotations

from typing import Any

from runtime.cli.options import attached, json_option, node_command, port_option
from runtime.client.cache.upkeep import flush


@node_command()
@port_option
@json_option("print JSON")
def command(*, as_json: bool, **given: Any) -> int:
    from runtime.cli.cache.options import write_json

    with attached(given) as node:
        flush(node.client)
    if as_json:
        write_json({"flushed": True})
    return 0
