"""Where a day of agents is spent: a node behind its gateway, or llama-server; and the client.

Both are asked in the same words, ``POST /completion`` with token ids, streamed. Both can be stopped
and started again, and killed: with SIGKILL, every process at once.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bench.llama_server import LlamaServer
from bench.subjects import CACHE_RAM, MODEL_ID, Subject, load
from runtime import Node, RuntimeConfig
from runtime.client.cache.upkeep import flush
from runtime.settings.gateway import GatewaySettings, Listen
from tests.support.nodes import alive, free_port
from tests.support.runtime_nodes import kill, pids
from tests.support.waiting import eventually

PEER_FLAGS = (
    "--cache-ram", "16384", "--cache-reuse", "64", "--ctx-checkpoints", "32",
    "--checkpoint-min-step", "0",
)  # fmt: skip
"""llama-server's best ones: host memory for all prompts, shifted KV of what stands behind an edit,
and states of models that cannot step back as near to each other as it allows."""
_REQUEST_S = 600.0


class Broken(RuntimeError):
    """The server went away, or refused, before a reply was complete."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply; times by the client's ``perf_counter``, in seconds."""

    began: float
    first_at: float
    ended: float
    reply: tuple[int, ...]
    n_cached: int
    n_computed: int
    """Tokens of the prompt."""

    @property
    def first_ms(self) -> float:
        """Until the first token."""
        return 1e3 * (self.first_at - self.began)


@dataclass(frozen=True, slots=True)
class Client:
    """Asks one server. ``banned`` tokens never enter a reply."""

    port: int
    banned: tuple[int, ...] = ()

    def ask(self, prompt: Sequence[int], n_reply: int) -> Answer:
        """Greedy tokens after ``prompt``; Broken, or RuntimeError for a reply of another length."""
        body = {
            "prompt": list(prompt), "n_predict": n_reply, "temperature": 0.0, "stream": True,
            "cache_prompt": True, "ignore_eos": True,
            "logit_bias": [[token, False] for token in self.banned],
        }  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_REQUEST_S)
        first, data = 0.0, b""
        began = time.perf_counter()
        try:
            with contextlib.closing(connection):
                headers = {"content-type": "application/json"}
                connection.request("POST", "/completion", json.dumps(body), headers)
                answer = connection.getresponse()
                while part := answer.read1(65536):
                    data += part
                    if not first and b"data: {" in data:
                        first = time.perf_counter()
        except (OSError, http.client.HTTPException) as error:
            raise Broken(f"{type(error).__name__}: {error}") from error
        ended = time.perf_counter()
        if answer.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
            raise Broken(f"{answer.status} {data[-300:]!r}")
        if answer.status != http.HTTPStatus.OK:
            raise RuntimeError(f"refused: {answer.status} {data[-300:]!r}")
        return _read(data, (began, first, ended), n_reply)


def _read(data: bytes, times: tuple[float, float, float], n_reply: int) -> Answer:
    lines = [line for line in data.split(b"\n") if line.startswith(b"data: {")]
    events: list[dict[str, Any]] = [json.loads(line[6:]) for line in lines]
    if not events or not events[-1].get("stop"):
        raise Broken(f"no whole answer: {data[-300:]!r}")
    reply = tuple(token for event in events for token in event["tokens"])
    if len(reply) != n_reply:
        raise RuntimeError(f"{len(reply)} tokens instead of {n_reply}: {data[-300:]!r}")
    found = events[-1]["timings"]
    return Answer(*times, reply, int(found["cache_n"]), int(found["prompt_n"]))


@dataclass(slots=True)
class Kept:
    """What a place has stored so far: it grows with every stop."""

    to_ram: int = 0
    """Bytes."""
    to_files: int = 0
    per_token: int = 0
    """Bytes of KV of one token; 0 where that is not constant."""


class Place(Protocol):
    """A server with one model. After ``start`` it answers at ``port``."""

    port: int
    load_s: float
    """Of the last start, until the model was loaded; llama-server's whole start."""

    def start(self) -> None:
        """From what an earlier run has left."""

    def stop(self) -> None:
        """In order; nothing of it is left running."""

    def kill(self) -> None:
        """SIGKILL to every process."""


@dataclass(slots=True)
class OurNode:
    """A node with all its files in ``where``, and its gateway."""

    subject: Subject
    where: Path
    cache_ram: str | int = CACHE_RAM
    port: int = field(default_factory=free_port)
    load_s: float = 0.0
    kept: Kept = field(default_factory=Kept)
    _node: Node | None = None

    @property
    def cache(self) -> Path:
        """The directory of its file tier."""
        return self.where / "cache"

    def start(self) -> None:
        config = RuntimeConfig(gateway=GatewaySettings((Listen("127.0.0.1", self.port),)))
        self._node = Node.start(
            cache_dir=self.cache,
            cache_ram=self.cache_ram,
            port=free_port(),
            runtime_dir=self.where / "run",
            log_file=self.where / "node.log",
            config=config,
        )
        began = time.perf_counter()
        load(self._node, self.subject)
        self.load_s = time.perf_counter() - began

    def stop(self) -> None:
        node = self._started()
        flush(node.client)
        actors = node.status()["actors"]
        model = actors[f"model:{MODEL_ID}"]
        self.kept.to_ram += int(model["saved_bytes"])
        self.kept.to_files += int(actors["writer"]["bytes_written"])
        self.kept.per_token = int(model["kv_bytes_per_token"] or 0)
        node.stop()

    def kill(self) -> None:
        node = self._started()
        found = {node.launcher_pid, node.connection.record.admin_pid, *pids(node.tree())}
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                kill(pid)
        eventually(lambda: not any(map(alive, found)), within_s=30, what="the node is dead")
        node.stop()

    def _started(self) -> Node:
        if self._node is None:
            raise RuntimeError("the node was not started")
        return self._node


@dataclass(slots=True)
class Peer:
    """llama-server with ``PEER_FLAGS`` and more. It starts cold each time: slots are not saved."""

    subject: Subject
    where: Path
    extra: tuple[str, ...] = ()
    port: int = 0
    load_s: float = 0.0
    _server: LlamaServer | None = None

    def start(self) -> None:
        began = time.perf_counter()
        extra = (*PEER_FLAGS, *self.extra)
        self._server = LlamaServer(self.subject.path, self.subject.params, self.where, extra)
        self.port = self._server.port
        self.load_s = time.perf_counter() - began

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()

    def kill(self) -> None:
        if self._server is not None:
            self._server.kill()
