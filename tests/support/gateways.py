"""A node with a gateway, and requests to it over real HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime import Node, RuntimeConfig
from runtime.settings.gateway import GatewaySettings, Listen
from tests.support.nodes import free_port
from tests.support.runtime_nodes import started
from tests.support.waiting import eventually


@dataclass
class Answer:
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Gateway:
    """One that runs, and its node."""

    node: Node
    port: int
    headers: dict[str, str] = field(default_factory=dict)
    """Of every request."""

    @contextlib.contextmanager
    def opened(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """An answer that is read by the caller; the connection is closed at the end."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {"content-type": "application/json", **self.headers, **(headers or {})}
        try:
            connection.request(method, path, data, sent)
            yield connection.getresponse()
        finally:
            connection.close()

    def ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request, and read the whole answer."""
        with self.opened(method, path, body, headers) as found:
            names = {name.lower(): value for name, value in found.getheaders()}
            return Answer(found.status, names, found.read())

    def post(self, path: str, body: object, **headers: str) -> Answer:
        return self.ask("POST", path, body, headers)


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
    """A node with a gateway on a port of its own; ``models`` as for ``Node.start``."""
    port = free_port()
    gateway = GatewaySettings(listen=(Listen("127.0.0.1", port),), **settings)
    config = RuntimeConfig(gateway=gateway)
    with started(tmp_path, config=config, models=models or {}) as node:
        one = Gateway(node, port)
        eventually(lambda: _answers(one), what="the gateway answers")
        yield one


def _answers(one: Gateway) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return one.ask("GET", "/health").status == 200
    return False
