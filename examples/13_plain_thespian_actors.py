"""Plain Thespian actors in a supervision tree: they crash, and the next incarnation takes over.

The actors and the tree are in ``plain_actors.py``.
"""

import os
import signal
import tempfile
import time
from pathlib import Path

from plain_actors import Add

from supervision import Node, TargetDown, new_ref


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        Node.start("plain_actors:TREE", Path(folder) / "node") as node,
    ):
        ask = node.connection.ask
        for amount in (1, 2):
            print("apples:", ask("apples", Add(new_ref(), amount), timeout_s=2))

        try:  # a handler that raises ends its actor once; it is not run a second time
            ask("apples", Add(new_ref(), "two"), timeout_s=2)
        except TargetDown as down:
            print("apples broke:", down.reason)
        print("apples, restarted:", ask("apples", Add(new_ref(), 1), timeout_s=2))

        deadline = time.monotonic() + 10
        while ask("seconds", Add(new_ref(), 0), timeout_s=2).total < 103:
            if time.monotonic() > deadline:
                raise SystemExit("the clock does not run")
        print("the clock runs")

        watch = node.connection.monitor("seconds")
        seconds = node.connection.where("seconds")
        if seconds is None or seconds.pid is None:
            raise SystemExit("seconds has no process")
        name = Path(f"/proc/{seconds.pid}/comm").read_text().strip()
        print(f"killing process {seconds.pid}, whose actor class is {name}")
        os.kill(seconds.pid, signal.SIGKILL)
        print("monitor:", node.connection.wait_down(watch, timeout_s=2))
        print("seconds, restarted:", ask("seconds", Add(new_ref(), 0), timeout_s=2).total >= 100)


if __name__ == "__main__":
    main()
