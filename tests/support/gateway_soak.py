"""Kill everything while clients stream over HTTP: ``python -m tests.support.gateway_soak``.

A node with a gateway and the embedded model; some clients stream chats by plain HTTP, each again
and again, while one process after the other gets SIGKILL: mostly HTTP workers, but also every
other actor, supervisors, the root and Admin. What must hold: each stream has the text, the number
of tokens and the one end of the same stream on an idle node (``exact: always``), whatever was
killed under it; no client sees an error, a broken connection or a second head.

Prints the pauses that clients saw beside those of an idle node. A seed repeats the plan.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime import Node
from runtime.gateway.stream_log import HELD_S
from tests.support.gateways import Gateway, gateway_node
from tests.support.runtime_nodes import LeakCheck, kill
from tests.support.soak_plan import CACHE_CHILDREN, NODE_PARTS, ROOT_CHILDREN, Pacer
from tests.support.waiting import eventually

WORKER = "http:"
"""Beginning of the ids of workers."""
WORKER_SHARE = 0.7
"""Of the kills."""
WORKER_EVERY_S = 0.7
"""Below the intensity of the gateway's supervisor."""
LEDGER = "gateway_ledger"
OTHERS = (
    "model:demo", LEDGER, *ROOT_CHILDREN, *CACHE_CHILDREN[:2], "writer", "gateway", *NODE_PARTS
)  # fmt: skip
LEAST_LIFE_S = HELD_S / 2
"""Of a worker; some live shorter than what clears a request of the suspicion that it ends them."""
SLOW_S = {"model:demo": 8.0, "gateway": 31.0, LEDGER: 1.0}
PROMPTS = 6
MAX_TOKENS = 220
DEADLINE_S = 120.0


def job(number: int) -> dict[str, Any]:
    """One of the streams; the same for the same number."""
    asked = f"Tell story number {number % PROMPTS} about a fox and an owl."
    return {
        "messages": [{"role": "user", "content": asked}],
        "max_tokens": MAX_TOKENS,
        "ignore_eos": True,
        "temperature": 0.8,
        "seed": number % PROMPTS,
        "stream": True,
        "exact": "always",
        "stream_options": {"include_usage": True},
    }


@dataclass
class Seen:
    """What the clients have seen."""

    streams: int = 0
    wrong: list[str] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    """Of each stream, the longest time between two pieces of text."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, trouble: str | None, gap_s: float) -> None:
        with self.lock:
            self.streams += 1
            self.gaps_s.append(gap_s)
            if trouble is not None:
                self.wrong.append(trouble)


def read_stream(gateway: Gateway, number: int) -> tuple[str, float]:
    """The text of one stream, and its longest pause in seconds; raises where it is not whole."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=DEADLINE_S)
    text, ids, ends, roles, rest = "", set(), 0, 0, b""
    gap, last = 0.0, None
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", json.dumps(job(number)))
        answer = connection.getresponse()
        if answer.status != 200:
            raise AssertionError(f"status {answer.status}: {answer.read()!r}")
        while more := answer.read1(65536):
            rest += more
            *frames, rest = rest.split(b"\n\n")
            for frame in frames:
                if not frame.startswith(b"data: {"):
                    ends += frame == b"data: [DONE]"
                    continue
                found = json.loads(frame[6:])
                if "error" in found:
                    raise AssertionError(f"an error frame: {found}")
                ids.add(found["id"])
                for choice in found["choices"]:
                    roles += "role" in choice["delta"]
                    piece = choice["delta"].get("content") or ""
                    text += piece
                    if piece:
                        now = time.perf_counter()
                        gap = max(gap, now - (last or now))
                        last = now
                if not found["choices"] and found["usage"]["completion_tokens"] != MAX_TOKENS:
                    raise AssertionError(f"usage {found['usage']}")
    if (ends, roles, len(ids)) != (1, 1, 1) or rest:
        raise AssertionError(f"{ends} ends, {roles} roles, {len(ids)} ids, {rest!r} left")
    return text, gap


def client(gateway: Gateway, number: int, known: dict[int, str], seen: Seen, stop: Any) -> None:
    rng = random.Random(number)
    while not stop.is_set():
        wanted = rng.randrange(PROMPTS)
        gap, trouble = 0.0, None
        try:
            text, gap = read_stream(gateway, wanted)
            if text != known[wanted]:
                pairs = enumerate(zip(text, known[wanted], strict=False))
                at = next((n for n, (a, b) in pairs if a != b), min(len(text), len(known[wanted])))
                was, now = known[wanted][at - 30 : at + 60], text[at - 30 : at + 60]
                trouble = (
                    f"stream {wanted} differs from character {at} on: {was!r}, now {now!r}; "
                    f"{len(known[wanted])} and {len(text)} characters"
                )
        except (OSError, AssertionError, http.client.HTTPException) as error:
            trouble = f"stream {wanted}: {type(error).__name__}: {error}"
        seen.add(trouble, gap)


def pid_of(node: Node, victim: str) -> int | None:
    if victim == "admin":
        return node.connection.record.admin_pid
    if victim == "root":
        return node.connection.record.root_pid
    with contextlib.suppress(Exception):
        found = node.tree().find(victim)
        return found.pid if found is not None and found.state == "up" else None
    return None


def kills(
    gateway: Gateway, seed: int, number: int, workers: int, stop: threading.Event
) -> Counter[str]:
    """Kill so many processes; how often each."""
    rng, pacer, done = random.Random(seed), Pacer(), Counter[str]()
    began = time.monotonic()
    while sum(done.values()) < number and not stop.is_set():
        now = time.monotonic()
        worker = f"{WORKER}{rng.randrange(workers)}"
        victim = worker if rng.random() < WORKER_SHARE else rng.choice(OTHERS)
        if victim in SLOW_S:  # a model has a backoff of its own, a supervisor counts at the root
            victim = victim if done[victim] * SLOW_S[victim] <= now - began else worker
        elif victim != worker and pacer.wait_s(victim, now) > 0:
            victim = worker
        elif victim != worker:
            pacer.note(victim, now)
        pid = pid_of(gateway.node, victim)
        if pid is None:
            stop.wait(0.05)
            continue
        try:
            kill(pid)
        except ProcessLookupError:  # it was killed before, and the tree does not show that yet
            stop.wait(0.05)
            continue
        done[victim] += 1
        since = time.monotonic()
        eventually(lambda w=worker: pid_of(gateway.node, w), within_s=60, what="the worker is up")
        # On a busy machine a start takes long. Workers that all end as they begin would be taken
        # for ended by their requests, which is right, and not what is looked for here.
        lives_s = rng.uniform(LEAST_LIFE_S, 1.0)
        stop.wait(max(lives_s, WORKER_EVERY_S - (time.monotonic() - since)))
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        LeakCheck() as leaks,
        gateway_node(Path(folder), keepalive_s=0.5, workers=given.workers) as gateway,
    ):
        leaks.watch(gateway.node)
        known = {number: read_stream(gateway, number)[0] for number in range(PROMPTS)}
        idle, seen, stop = Seen(), Seen(), threading.Event()
        run(gateway, given.streams, known, idle, stop, lambda: stop.wait(10.0))
        stop.clear()
        counts: list[Counter[str]] = []
        run(
            gateway, given.streams, known, seen, stop,
            lambda: counts.append(
                kills(gateway, given.seed, given.kills, given.workers, stop)
            ),
        )  # fmt: skip
        leaks.watch(gateway.node)
    say(f"{sum(counts[0].values())} kills: {dict(counts[0])}")
    for name, one in (("idle node", idle), ("killed", seen)):
        gaps = sorted(one.gaps_s)
        say(
            f"{name}: {one.streams} streams, {len(one.wrong)} wrong; the longest pause of a "
            f"stream: median {1e3 * statistics.median(gaps):.0f} ms, "
            f"worst {1e3 * gaps[-1]:.0f} ms"
        )
    for kind, n in Counter(line.partition(": ")[2] for line in seen.wrong).most_common():
        say(f"{n} times: {kind}")
    for line in seen.wrong[:20]:
        say(f"wrong: {line}")
    return 1 if seen.wrong or idle.wrong else 0


def run(
    gateway: Gateway, n: int, known: dict[int, str], seen: Seen, stop: threading.Event, work: Any
) -> None:
    threads = [
        threading.Thread(target=client, args=(gateway, number, known, seen, stop))
        for number in range(n)
    ]
    for thread in threads:
        thread.start()
    try:
        work()
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLINE_S + 10)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
