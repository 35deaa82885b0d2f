"""A crowd of connections to a gateway, as a process of its own: ``python FILE PORT NUMBER``.

Opens them as fast as it can, sends nothing, waits until the gateway has closed each or the time is
over, and prints as JSON how many were opened, refused with 503, closed without a word, left open.
"""

from __future__ import annotations

import json
import resource
import selectors
import socket
import sys
import time

WITHIN_S = 60.0
SPARE_FDS = 100


def crowd(port: int, number: int) -> dict[str, int]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < number + SPARE_FDS:
        raise SystemExit(f"{number} connections need {number + SPARE_FDS} descriptors, not {hard}")
    selector = selectors.DefaultSelector()
    found = {"opened": 0, "refused": 0, "closed": 0, "left": 0}
    for _ in range(number):
        sock = socket.create_connection(("127.0.0.1", port), timeout=WITHIN_S)
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ, bytearray())
        found["opened"] += 1
    print("all are open", flush=True)
    ends_at = time.monotonic() + WITHIN_S
    while selector.get_map() and time.monotonic() < ends_at:
        for key, _ in selector.select(1.0):
            sock, got = key.fileobj, key.data
            assert isinstance(sock, socket.socket)
            try:
                more = sock.recv(4096)
            except ConnectionResetError:
                more = b""
            got += more
            if not more:
                found["refused" if b" 503 " in got else "closed"] += 1
                selector.unregister(sock)
                sock.close()
    found["left"] = len(selector.get_map())
    return found


if __name__ == "__main__":
    print(json.dumps(crowd(int(sys.argv[1]), int(sys.argv[2]))), flush=True)
