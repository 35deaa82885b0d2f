"""A node with a gateway for tests, and small ways to call it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import Node, RuntimeConfig
from runtime.settings.gateway import GatewaySettings, Listen
from tests.support.nodes import free_port
from tests.support.runtime_nodes import started

TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Answered:
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

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)

    def call(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answered:
        """One request on a connection of its own; a body that is no bytes is sent as JSON."""
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, raw, dict(headers or {}))
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answered(answer.status, found, answer.read())

    def get(self, path: str, **headers: str) -> Answered:
        return self.call("GET", path, headers=headers)

    def post(self, path: str, body: object, **headers: str) -> Answered:
        return self.call("POST", path, body, headers)

    def raw(self) -> socket.socket:
        """A connection without a protocol."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S)


@contextlib.contextmanager
def gateway_node(tmp_path: Path, model: str | None = "demo", **settings: Any) -> Iterator[Gateway]:
    """A node with a gateway; ``settings`` are those of ``GatewaySettings``."""
    port = free_port()
    listen = (Listen("127.0.0.1", port),)
    config = RuntimeConfig(gateway=GatewaySettings(listen=listen, **settings))
    models = {} if model is None else {model: None}
    with started(tmp_path, config=config, models=models) as node:
        yield Gateway(node, port)
