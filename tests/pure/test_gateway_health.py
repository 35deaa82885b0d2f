"""When the gateway can be asked, by the states of its models."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

import pytest

from actors import messages as m
from runtime import errors
from runtime.gateway import service as services
from runtime.gateway.app import App
from runtime.gateway.service import Service
from runtime.settings.gateway import GatewaySettings

pytestmark = pytest.mark.pure

LOADING = (503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}})
OK = (200, {"status": "ok"})


class Client:
    """Stands for a node's connection; its registry wants these models."""

    def __init__(self, *wanted: str) -> None:
        self.wanted = wanted

    async def ask(
        self, actor: str, question: m.ListWantedModels, *, timeout_s: float
    ) -> m.WantedModelsListed:
        assert timeout_s > 0
        assert actor == "registry"
        return m.WantedModelsListed(question.ref, self.wanted)


def no_node() -> Any:
    raise errors.NodeNotRunning(1, "it is being started")


def service_of(states: Mapping[str, str], *wanted: str) -> Service:
    return Service(GatewaySettings(), lambda: Client(*wanted), lambda: states)  # type: ignore[arg-type,return-value]


def get(service: Service, path: str) -> tuple[int, Any]:
    """Status and body of one answer, without a server."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(),
        "query_string": b"", "headers": [(b"host", b"127.0.0.1")], "root_path": "",
    }  # fmt: skip
    asyncio.run(App(service)(scope, receive, send))
    start, body = sent
    return start["status"], json.loads(body["body"])


@pytest.mark.parametrize(
    ("states", "wanted", "expected"),
    [
        ({}, (), OK),
        ({}, ("a",), LOADING),
        ({"a": "starting"}, ("a",), LOADING),
        ({"a": "restarting"}, ("a",), LOADING),
        ({"a": "starting", "b": "up"}, ("a", "b"), OK),
        ({"a": "down"}, ("a",), OK),
        ({"a": "down"}, ("a", "b"), LOADING),
        ({"a": "stopping"}, (), OK),
    ],
)
def test_it_is_not_there_while_models_are_loaded_and_none_is(
    states: Mapping[str, str], wanted: tuple[str, ...], expected: tuple[int, Any]
) -> None:
    for path in ("/health", "/v1/health", "/readyz"):
        assert get(service_of(states, *wanted), path) == expected


def test_a_node_that_is_being_started_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "PROBE_S", 0.01)
    assert get(Service(GatewaySettings(), no_node, dict), "/health") == LOADING


def test_models_that_are_still_to_be_loaded_are_waited_for() -> None:
    states: dict[str, str] = {}
    client = Client()
    service = Service(GatewaySettings(), lambda: client, lambda: states)  # type: ignore[arg-type,return-value]
    service.expect(["a", "b"], time.time() + 60)
    assert get(service, "/health") == LOADING, "nothing is known of them yet"
    client.wanted = ("a",)
    assert get(service, "/health") == LOADING
    client.wanted = ()
    assert get(service, "/health") == LOADING, "a was not loaded, and b may be"
    client.wanted = ("b",)
    states["b"] = "up"
    assert get(service, "/health") == OK
    states.clear()
    client.wanted = ()
    assert get(service, "/health") == OK, "b was unloaded"
    service.expect(["c"], time.time() - 1)
    assert get(service, "/health") == OK, "nothing has begun to load it"


def test_a_gateway_that_is_being_stopped_is_alive_and_not_ready() -> None:
    service = service_of({"a": "up"}, "a")
    assert get(service, "/readyz") == OK
    service.is_draining = True
    assert get(service, "/health") == OK
    status, body = get(service, "/readyz")
    assert status == 503
    assert "is being stopped" in body["error"]["message"]
