"""A node with a gateway for tests, and small ways to call it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from runtime import Node, RuntimeConfig
from runtime.settings.gateway import GatewaySettings, Listen
from tests.support.nodes import free_port
from tests.support.runtime_nodes import pid_of, started
from tests.support.waiting import eventually

TIMEOUT_S = 60.0


class Answered(NamedTuple):
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def frames(self) -> list[Any]:
        """The data of server-sent events; ``[DONE]`` as a text."""
        found = []
        for frame in self.body.decode().split("\n\n"):
            for line in frame.splitlines():
                if line.startswith("data: "):
                    data = line.removeprefix("data: ")
                    found.append(data if data == "[DONE]" else json.loads(data))
        return found

    @property
    def lines(self) -> list[Any]:
        """The objects of newline-delimited JSON."""
        return [json.loads(line) for line in self.body.decode().splitlines()]


class Gateway:
    """Where a node's gateway listens, and the node."""

    def __init__(self, node: Node, port: int) -> None:
        self.node = node
        self.port = port
        self.headers: dict[str, str] = {}
        """Of every request."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)

    @contextlib.contextmanager
    def opened(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """An answer that the caller reads; a body that is no bytes is sent as JSON."""
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, raw, {**self.headers, **(headers or {})})
            yield connection.getresponse()

    def call(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answered:
        """One request on a connection of its own, and the whole answer."""
        with self.opened(method, path, body, headers) as answer:
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answered(answer.status, found, answer.read())

    ask = call

    def get(self, path: str, **headers: str) -> Answered:
        return self.call("GET", path, headers=headers)

    def post(self, path: str, body: object, **headers: str) -> Answered:
        return self.call("POST", path, body, headers)

    def json(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """Status and body of one answer."""
        answer = self.call(method, path, body, headers)
        return answer.status, answer.json

    def frames(self, path: str, body: object) -> list[Any]:
        """The objects of a stream of server-sent events, without the last ``[DONE]``."""
        answer = self.post(path, body)
        assert answer.status == 200, answer.body
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [one for one in answer.frames if one != "[DONE]"]

    def connect_to(self, worker: str) -> http.client.HTTPConnection:
        """A connection that this worker has accepted: the others cannot meanwhile."""
        tree = self.node.tree().find("gateway")
        assert tree is not None
        names = [one.id for one in tree.children if one.id.startswith("http:")]
        pid_of(self.node, worker)
        connection = self.connect()
        stopped: list[int] = []
        try:
            for name in names:
                if name != worker:
                    stopped.append(eventually(lambda n=name: self._stop(n), what="it is stopped"))
            connection.request("GET", "/health")
            connection.getresponse().read()
        except BaseException:
            connection.close()
            raise
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        return connection

    def _stop(self, name: str) -> int | None:
        """Its process, every thread of which is stopped; None: it has just been killed."""
        try:
            pid = pid_of(self.node, name)
            os.kill(pid, signal.SIGSTOP)
            eventually(lambda: _is_stopped(pid), what="all its threads are stopped")
        except ProcessLookupError:
            return None
        return pid

    def at(
        self, worker: str, method: str, path: str, body: object = None, **headers: str
    ) -> Answered:
        """One request that this worker answers."""
        raw = None if body is None else json.dumps(body).encode()
        with contextlib.closing(self.connect_to(worker)) as connection:
            connection.request(method, path, raw, {**self.headers, **headers})
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answered(answer.status, found, answer.read())

    def raw(self) -> socket.socket:
        """A connection without a protocol."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S)


def _is_stopped(pid: int) -> bool:
    """Whether every thread of it is."""
    stats = [one.read_text() for one in Path(f"/proc/{pid}/task").glob("*/stat")]
    if not stats:
        raise ProcessLookupError(pid)
    return all(one.rpartition(")")[2].split()[0] == "T" for one in stats)


def frames_of(stream: bytes) -> list[tuple[str, Any]]:
    """The server-sent events of a stream: names (empty: none) and data; comments are left out."""
    found = []
    for frame in stream.decode().split("\n\n"):
        lines = [one for one in frame.split("\n") if one and not one.startswith(":")]
        fields = dict(one.split(": ", 1) for one in lines)
        if "data" in fields:
            data = fields["data"]
            value = data if data == "[DONE]" else json.loads(data)
            found.append((fields.get("event", ""), value))
    return found


@contextlib.contextmanager
def gateway_node(
    tmp_path: Path, models: Mapping[str, Any] | None = None, **settings: Any
) -> Iterator[Gateway]:
    """A node with a gateway; ``settings`` are those of ``GatewaySettings``.

    ``models`` as for ``Node.start``; the embedded one where none are named.
    """
    port = free_port()
    listen = (Listen("127.0.0.1", port),)
    config = RuntimeConfig(gateway=GatewaySettings(listen=listen, **settings))
    named = {"demo": None} if models is None else models
    with started(tmp_path, config=config, models=named) as node:
        yield Gateway(node, port)
