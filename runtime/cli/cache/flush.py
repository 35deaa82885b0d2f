"""``cache flush``: write what waits, that is ends of idle sequences and rows for slow disks.

A node writes by itself, the end of a reply some seconds after the rest. Flush before killing a
node, or before counting what is on disk.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from runtime import errors
from runtime.cli.options import attached, json_option, node_command, port_option

if TYPE_CHECKING:
    from runtime.client.client import Client

FLUSH_TIMEOUT_S: Final = 30.0
LOOK_EVERY_S: Final = 0.02


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


def is_flushed(client: Client) -> bool:
    """Start all deferred writes; True if every file tier holds all that is worth keeping there."""
    from actors import messages as m
    from supervision.messages import new_ref

    answer = client.ask("cache_meta", m.PersistNow(new_ref()))
    return isinstance(answer, m.PersistState) and answer.is_all


def flush(client: Client, timeout_s: float = FLUSH_TIMEOUT_S) -> None:
    """Wait until all is written; raises NoReply if a disk is not done in time."""
    deadline = time.monotonic() + timeout_s
    while not is_flushed(client):
        if time.monotonic() > deadline:
            raise errors.NoReply(
                f"not everything is on disk after {timeout_s:.0f} s; see `cache stat` for a tier "
                "that is closed or slow"
            )
        time.sleep(LOOK_EVERY_S)  # noqa: TID251  # a command line waiting for a node, not an actor
