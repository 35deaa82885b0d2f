"""The peer of the transport benchmark: Thespian as it is installed, plain and without a cookie.

A process of its own, because a node of this project changes the Thespian of its process. Prints
one JSON object: round trips in seconds, and how long a burst of messages took.

python -m bench.stock_thespian ROUND_TRIPS MESSAGES
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import Any

os.environ["THESPIAN_BASE_IPADDR"] = "127.0.0.1"
os.environ["THESPLOG_FILE_MAXSIZE"] = "0"

from thespian.actors import Actor, ActorSystem  # noqa: TID251 - the peer itself


class EchoActor(Actor):  # type: ignore[misc]
    """Answers texts; counts numbers and answers the negative one with their count."""

    count = 0

    def receiveMessage(self, message: object, sender: Any) -> None:
        if isinstance(message, str):
            self.send(sender, message)
        elif isinstance(message, int):
            self.count += 1
            if message < 0:
                self.send(sender, self.count)


def main(asks: int, messages: int) -> None:
    """Measure, print, stop."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    system = ActorSystem("multiprocTCPBase", {"Admin Port": port})
    try:
        actor = system.createActor("bench.stock_thespian.EchoActor")
        trips = []
        for number in range(asks + asks // 10):
            began = time.perf_counter()
            system.ask(actor, "echo", 5)
            if number >= asks // 10:
                trips.append(time.perf_counter() - began)
        began = time.perf_counter()
        for _ in range(messages - 1):
            system.tell(actor, 1)
        counted = system.ask(actor, -1, 120)
        burst_s = time.perf_counter() - began
    finally:
        system.shutdown()
    if counted != messages:
        raise SystemExit(f"{messages} messages were sent and {counted} arrived")
    print(json.dumps({"trips": trips, "burst_s": burst_s}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
