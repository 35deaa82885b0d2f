"""Many streams for long, some of which are left: ``python -m tests.support.gateway_endurance``.

A node with a gateway and the embedded model, both tiers of the cache small enough to be full soon.
Each client streams chats over plain HTTP, again and again; at random it closes or resets its
connection in the queue, in the prompt or in the reply. What must hold: the streams that are read to
their end have the text of an idle node (``exact: always``); memory of every process stays as it was
once the caches are full; after the last stream nothing runs, and no process has a descriptor or a
memory file more than before.

Prints memory and descriptors by process and share of the time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from runtime.client.tree import TreeNode
from tests.support.gateway_soak import PROMPTS, job, read_stream, say
from tests.support.gateways import Gateway, gateway_node
from tests.support.runtime_nodes import LeakCheck
from tests.support.waiting import eventually

LEAVES: Final = 0.5
"""Share of the streams that are left before their end."""
RESETS: Final = 0.5
"""Share of those that are reset instead of closed."""
MAX_STAY_S: Final = 20.0
SAMPLE_S: Final = 10.0
DEADLINE_S: Final = 900.0
GROWTH: Final = 1.05
"""How much more memory the last third of the time may have than the second one."""
GROWTH_BYTES: Final = 8 << 20
SPARE_FDS: Final = 2
_RESET: Final = struct.pack("ii", 1, 0)


@dataclass
class Seen:
    """What the clients have seen, and what the processes had."""

    whole: int = 0
    left: int = 0
    wrong: list[str] = field(default_factory=list)
    bytes_of: dict[str, list[int]] = field(default_factory=dict)
    fds_of: dict[str, list[int]] = field(default_factory=dict)


async def stream(gateway: Gateway, number: int, stay_s: float | None, rng: random.Random) -> str:
    """The text of one stream; empty when it was left after ``stay_s`` seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1 << 20)
    asked = job(number) if stay_s is None else {**job(number), "seed": rng.randrange(1 << 30)}
    if stay_s is not None:  # others than those that are read: the cache gets new rows
        asked["messages"][0]["content"] += f" Number {rng.randrange(1000)}."
    body = json.dumps(asked).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n"
    )
    try:
        writer.write(head.encode() + b"connection: close\r\n\r\n" + body)
        limit = DEADLINE_S if stay_s is None else stay_s
        async with asyncio.timeout(limit):
            data = await reader.read(-1)
    except TimeoutError:
        if stay_s is None:
            raise
        if rng.random() < RESETS:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        return ""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return text_of(data)


def text_of(answer: bytes) -> str:
    """The text of a whole answer; AssertionError where it is not whole."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise AssertionError(f"{head[:100]!r} {rest[:300]!r}")
    body = bytearray()
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        n = int(size, 16)
        body += rest[:n]
        rest = rest[n + 2 :]
        if not n:
            break
    else:
        raise AssertionError("the stream has no end")
    frames = [one for one in bytes(body).split(b"\n\n") if one.startswith(b"data: ")]
    if frames[-1] != b"data: [DONE]":
        raise AssertionError(f"it ends with {frames[-1]!r}")
    choices = [choice for one in frames[:-1] for choice in json.loads(one[6:])["choices"]]
    return "".join(one["delta"].get("content") or "" for one in choices)


async def client(
    gateway: Gateway, number: int, known: dict[int, str], seen: Seen, ends_at: float
) -> None:
    rng = random.Random(number)
    await asyncio.sleep(rng.uniform(0.0, 5.0))
    while time.monotonic() < ends_at:
        wanted = rng.randrange(PROMPTS)
        stay_s = rng.uniform(0.0, MAX_STAY_S) if rng.random() < LEAVES else None
        try:
            text = await stream(gateway, wanted, stay_s, rng)
            if stay_s is not None:
                seen.left += 1
                continue
            seen.whole += 1
            if text != known[wanted]:
                seen.wrong.append(f"stream {wanted} has another text")
        except (OSError, AssertionError, TimeoutError, ValueError) as error:
            seen.wrong.append(f"stream {wanted}: {type(error).__name__}: {error}")


async def sample(gateway: Gateway, seen: Seen) -> None:
    while True:
        found = await asyncio.to_thread(processes, gateway)
        for name, (n_bytes, fds) in found.items():
            seen.bytes_of.setdefault(name, []).append(n_bytes)
            seen.fds_of.setdefault(name, []).append(len(fds))
        await asyncio.sleep(SAMPLE_S)


def processes(gateway: Gateway) -> dict[str, tuple[int, list[str]]]:
    """Bytes of memory, and what each descriptor is, of every process of the node."""
    named = {"launcher": gateway.node.launcher_pid}
    rest: list[TreeNode] = [gateway.node.tree()]
    while rest:
        one = rest.pop()
        if one.pid:
            named[one.id] = one.pid
        rest += one.children
    return {name: (memory_of(pid), descriptors(pid)) for name, pid in named.items()}


def memory_of(pid: int) -> int:
    """Bytes that are its own or shared memory: not pages of files."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    kib = [int(one.split()[1]) for one in lines if one.startswith(("RssAnon:", "RssShmem:"))]
    return sum(kib) << 10


def descriptors(pid: int) -> list[str]:
    found = []
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(one))
    return found


async def load(gateway: Gateway, streams: int, known: dict[int, str], seconds: float) -> Seen:
    seen, ends_at = Seen(), time.monotonic() + seconds
    sampling = asyncio.create_task(sample(gateway, seen))
    try:
        clients = [client(gateway, number, known, seen, ends_at) for number in range(streams)]
        await asyncio.gather(*clients)
    finally:
        sampling.cancel()
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--streams", type=int, default=256)
    given = parser.parse_args()
    trouble = []
    with (
        tempfile.TemporaryDirectory() as folder,
        LeakCheck() as leaks,
        gateway_node(Path(folder), max_running=given.streams + 8) as gateway,
    ):
        known = {number: read_stream(gateway, number)[0] for number in range(PROMPTS)}
        asyncio.run(load(gateway, given.streams, known, 5.0))  # every pool has its size then
        quiet(gateway)
        before = processes(gateway)
        seen = asyncio.run(load(gateway, given.streams, known, 60.0 * given.minutes))
        quiet(gateway)
        with contextlib.suppress(AssertionError):
            eventually(lambda: not more_fds(before, processes(gateway)), within_s=60)
        trouble += more_fds(before, processes(gateway))
        leaks.watch(gateway.node)
    trouble += [*seen.wrong[:20], *grown(seen)]
    say(
        f"{given.streams} streams at once for {given.minutes:g} minutes: {seen.whole} read to the "
        f"end, {seen.left} left, {len(seen.wrong)} wrong"
    )
    for name, found in sorted(seen.bytes_of.items()):
        thirds = " ".join(f"{max(one) / (1 << 20):6.1f}" for one in by_thirds(found))
        fds = seen.fds_of[name]
        say(f"{name:24} MiB {thirds}   descriptors {statistics.median(fds):.0f}, most {max(fds)}")
    for line in trouble:
        say(f"wrong: {line}")
    return 1 if trouble else 0


def quiet(gateway: Gateway) -> None:
    """Wait until nothing runs."""

    def runs() -> bool:
        status = gateway.get("/llama/v1/models").json["models"]
        return any(one["details"].get(name) for one in status for name in ("running", "waiting"))

    eventually(lambda: not runs(), within_s=120, what="nothing runs")


def more_fds(
    before: dict[str, tuple[int, list[str]]], now: dict[str, tuple[int, list[str]]]
) -> list[str]:
    """Processes with more descriptors than before, and of which kind."""
    found = []
    for name, (_, fds) in now.items():
        known = before.get(name, (0, []))[1]
        kinds = Counter(map(kind, fds)) - Counter(map(kind, known))
        if sum(kinds.values()) > SPARE_FDS:
            found.append(f"{name} has more descriptors than before: {dict(kinds)}")
    return found


def kind(link: str) -> str:
    return link.partition(":")[0] if link.startswith(("socket:", "pipe:")) else link


def by_thirds(found: list[int]) -> list[list[int]]:
    n = max(1, len(found) // 3)
    return [found[:n], found[n : 2 * n] or found, found[2 * n :] or found]


def grown(seen: Seen) -> list[str]:
    """Processes whose memory has grown in the last third of the time."""
    found = []
    for name, samples in seen.bytes_of.items():
        _, second, last = by_thirds(samples)
        if max(last) > GROWTH * max(second) + GROWTH_BYTES:
            found.append(f"{name} grows: {max(second) >> 20} MiB, then {max(last) >> 20} MiB")
    return found


if __name__ == "__main__":
    sys.exit(main())
