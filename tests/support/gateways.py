"""Nodes with a gateway, and plain HTTP to it."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import Node, RuntimeConfig
from runtime.settings.gateway import GatewaySettings, Listen
from tests.support.nodes import free_port
from tests.support.runtime_nodes import started


@dataclass(frozen=True, slots=True)
class Gateway:
    """A node, and where its gateway listens."""

    node: Node
    port: int

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers with lower-case names, and the whole body of one answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
        try:
            given = {"content-type": "application/json"} if data is not None else {}
            connection.request(method, path, data, given | (headers or {}))
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read()
        finally:
            connection.close()

    def json(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and body of one answer."""
        status, _, raw = self.ask(method, path, body, headers)
        return status, json.loads(raw)

    def frames(self, path: str, body: Any) -> list[Any]:
        """The objects of a stream of server-sent events, without the last ``[DONE]``."""
        status, headers, raw = self.ask("POST", path, body)
        assert status == 200, raw
        assert headers["content-type"].startswith("text/event-stream")
        lines = [one for one in raw.decode().split("\n") if one.startswith("data: ")]
        return [json.loads(one[6:]) for one in lines if one != "data: [DONE]"]


@contextlib.contextmanager
def gateway_node(tmp_path: Path, **settings: Any) -> Iterator[Gateway]:
    """A node whose gateway has these settings."""
    port = free_port()
    listen = (Listen("127.0.0.1", port),)
    config = RuntimeConfig(gateway=GatewaySettings(listen=listen, **settings))
    with started(tmp_path, config=config) as node:
        yield Gateway(node, port)
