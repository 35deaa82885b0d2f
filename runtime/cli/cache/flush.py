"""``cache flush``: write what waits, that is ends of idle sequences and rows for slow disks.

A node writes by itself, the end of a reply some seconds after the rest. Flush before killing a
node, or before counting what is on disk.
"""

from __future__ import annotations

from typing import Any

from runtime.cli.options import json_option, node_command, node_options


@node_command()
@node_options
@json_option("print JSON")
def command(*, as_json: bool, **given: Any) -> int:
    from runtime.cli.cache.options import online_cache, write_json

    with online_cache(given) as cache:
        cache.flush()
    if as_json:
        write_json({"flushed": True})
    return 0
