"""A supervision tree of one's own, without any model: break it, and watch it heal.

The actors and the tree are in ``counting_actors.py``.
"""

import os
import signal
import tempfile
from pathlib import Path

from counting_actors import Add

from supervision import Node, TargetDown, new_ref


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        Node.start("counting_actors:TREE", Path(folder) / "node") as node,
    ):
        ask = node.connection.ask
        for name in ("apples", "pears", "plums"):
            ask(name, Add(new_ref(), 1), timeout_s=2)
            print(ask(name, Add(new_ref(), 2), timeout_s=2))

        try:  # a handler that raises ends its actor, and the caller gets the reason
            ask("apples", Add(new_ref(), "two"), timeout_s=2)
        except TargetDown as down:
            print(f"apples broke: {down.reason}")
        print("apples, anew:", ask("apples", Add(new_ref(), 1), timeout_s=2))

        watch = node.connection.monitor("plums")
        pears = node.connection.where("pears")
        if pears is None or pears.pid is None:
            raise SystemExit("pears has no process")
        os.kill(pears.pid, signal.SIGKILL)
        print("plums went with pears:", node.connection.wait_down(watch, timeout_s=2))
        print("plums, anew:", ask("plums", Add(new_ref(), 1), timeout_s=2))
        for entry in node.connection.directory():
            print(
                f"{entry.parent:>7} → {entry.id:<7} {entry.state} incarnation {entry.incarnation}"
            )


if __name__ == "__main__":
    main()
