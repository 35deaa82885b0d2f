"""Keys, limits, TLS, Unix sockets, those of systemd, and a stop in mid-stream: with real nodes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import Node, RuntimeConfig
from runtime.gateway.keys import new_key
from runtime.settings.gateway import GatewaySettings, Listen
from tests.support.gateways import Answered, Gateway, gateway_node
from tests.support.nodes import ROOT, free_port
from tests.support.runtime_nodes import LeakCheck, inflight_status, started
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

TLS = ROOT / "tests" / "support" / "tls"
STORY = "The old lighthouse keeper counted the waves and wrote each number in a blue book. " * 8
KEYS = {name: new_key() for name in ("alice", "bob", "boss", "slow", "leaves")}
MORE = {
    "alice": 'models = ["demo"]',
    "bob": 'models = ["other*"]',
    "boss": "admin = true",
    "leaves": "tokens_per_min = 60",
    "slow": "requests_per_min = 1\nnamespace = 'shared'",
}


def keys_text(*names: str) -> str:
    return "".join(f'[keys.{name}]\nsha256 = "{KEYS[name][1]}"\n{MORE[name]}\n' for name in names)


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    path.write_text(keys_text(*KEYS))
    return path


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, keys_file: Path) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("access")
    with LeakCheck() as leaks, gateway_node(folder, keys_file=str(keys_file)) as found:
        leaks.watch(found.node)
        yield found
        leaks.watch(found.node)


def complete(gateway: Gateway, name: str | None, prompt: str = STORY) -> Answered:
    headers = {} if name is None else {"authorization": f"Bearer {KEYS[name][0]}"}
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0}
    return gateway.call("POST", "/v1/completions", body, headers)


def cached(answer: Answered) -> int:
    assert answer.status == 200, answer.body
    return int(answer.json["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_without_a_key_only_health_is_answered(gateway: Gateway) -> None:
    refused = complete(gateway, None)
    assert refused.status == 401
    assert refused.json["error"]["type"] == "authentication_error"
    assert gateway.get("/health").status == 200
    wrong = gateway.call("GET", "/v1/models", headers={"x-api-key": "la-wrong"})
    assert wrong.status == 401
    claude = gateway.call("POST", "/v1/messages", {"messages": []})
    assert claude.json["error"]["type"] == "authentication_error"
    assert claude.json["type"] == "error"


def test_a_key_sees_and_uses_its_models_alone(gateway: Gateway) -> None:
    assert complete(gateway, "alice").status == 200
    refused = complete(gateway, "bob")
    assert refused.status == 404, "it does not even learn that there is another"
    named = {"model": "demo", "prompt": "x", "max_tokens": 1}
    other = gateway.call("POST", "/v1/completions", named, {"x-api-key": KEYS["bob"][0]})
    assert other.status == 403, "nor does another model answer in its place"
    listed = gateway.call("GET", "/v1/models", headers={"x-api-key": KEYS["bob"][0]})
    assert listed.json["data"] == []


def test_what_one_key_has_sent_is_cold_for_another(gateway: Gateway) -> None:
    prompt = f"For tenants. {STORY}"
    assert cached(complete(gateway, "alice", prompt)) < 10
    first = cached(complete(gateway, "alice", prompt))
    assert first > 100
    other = complete(gateway, "boss", prompt)
    assert cached(other) == 0
    assert other.json["cache"]["hit"] == "cold"
    assert other.json["cache"]["diverged"] is None
    assert cached(complete(gateway, "boss", prompt)) == first
    gateway.node.evict("demo")
    assert cached(complete(gateway, "slow", prompt)) == 0, "the shared rows are apart, too"


def test_an_application_separates_its_own_users(gateway: Gateway) -> None:
    def read(salt: str) -> int:
        asked = {"prompt": f"For users. {STORY}", "max_tokens": 1, "cache_salt": salt}
        headers = {"x-api-key": KEYS["alice"][0]}
        return cached(gateway.call("POST", "/v1/completions", asked, headers))

    assert read("one") < 10
    assert read("two") < 10
    assert read("one") > 100


def test_a_rate_is_a_limit_with_the_time_to_wait(gateway: Gateway) -> None:
    eventually(lambda: complete(gateway, "slow", "x").status == 429, what="the limit is reached")
    refused = complete(gateway, "slow", "x")
    assert refused.json["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert complete(gateway, "alice", "x").status == 200


def test_tokens_count_also_where_the_client_leaves_before_the_end(gateway: Gateway) -> None:
    body = {"prompt": "Once", "max_tokens": 3000, "ignore_eos": True, "stream": True}
    headers = {"authorization": f"Bearer {KEYS['leaves'][0]}"}
    with gateway.opened("POST", "/v1/completions", body, headers) as response:
        shown = b""
        while shown.count(b"data: ") < 100:
            shown += response.read1(65536)
    eventually(lambda: inflight_status(gateway.node)["in_flight"] == 0, what="it is cancelled")
    refused = complete(gateway, "leaves")
    assert refused.status == 429, refused.body


def test_the_file_is_read_again_when_it_changes(gateway: Gateway, keys_file: Path) -> None:
    before = keys_file.read_text()
    name, (key, digest) = "carol", new_key()
    keys_file.write_text(before + f'[keys.{name}]\nsha256 = "{digest}"\n')
    ask = {"x-api-key": key}
    assert gateway.call("GET", "/v1/models", headers=ask).status == 200
    keys_file.write_text("not TOML [")
    assert gateway.call("GET", "/v1/models", headers=ask).status == 200, "those before count"
    keys_file.write_text(before)
    assert gateway.call("GET", "/v1/models", headers=ask).status == 401


# ── other sockets ───────────────────────────────────────────────────────────────────────────────


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(self._path)


def models_of(connection: http.client.HTTPConnection) -> Any:
    with contextlib.closing(connection):
        connection.request("GET", "/v1/models")
        answer = connection.getresponse()
        assert answer.status == 200
        return json.loads(answer.read())["data"]


def test_unix_sockets_and_tls_work_and_leave_nothing(tmp_path: Path) -> None:
    path, port = tmp_path / "http.sock", free_port()
    listen = (Listen(path=str(path)), Listen("127.0.0.1", port))
    settings = GatewaySettings(
        listen=listen, tls_certificate=str(TLS / "cert.pem"), tls_key=str(TLS / "key.pem")
    )
    trusted = ssl.create_default_context(cafile=str(TLS / "cert.pem"))
    with started(tmp_path, config=RuntimeConfig(gateway=settings)):
        assert path.stat().st_mode & 0o777 == 0o660
        secure = http.client.HTTPSConnection("localhost", port, timeout=60, context=trusted)
        assert models_of(secure) == []
        with pytest.raises((OSError, http.client.HTTPException)):
            models_of(http.client.HTTPConnection("127.0.0.1", port, timeout=60))
    assert not path.exists()


def test_a_unix_socket_without_tls(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    left_over = socket.socket(socket.AF_UNIX)
    left_over.bind(str(path))
    left_over.close()
    settings = GatewaySettings(listen=(Listen(path=str(path)),))
    with started(tmp_path, config=RuntimeConfig(gateway=settings)):
        assert models_of(UnixConnection(path)) == []
    assert not path.exists()


def test_sockets_of_systemd_are_used(tmp_path: Path) -> None:
    """Descriptor 3 and two variables: all that it hands over."""
    ready_read, ready_write = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        script = (
            "import os, sys\n"
            "listener, ready = map(int, sys.argv[1:3])\n"
            "os.dup2(ready, 200); os.dup2(listener, 3)\n"
            "os.environ |= {'LISTEN_FDS': '1', 'LISTEN_PID': str(os.getpid())}\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'runtime', 'serve', *sys.argv[3:]])\n"
        )
        arguments = ["--gateway", "systemd", "--cache-disk", "0", "--admin-port", str(free_port())]
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(server.fileno()), str(ready_write), *arguments],
            pass_fds=(server.fileno(), ready_write),
            cwd=ROOT,
            env={**os.environ, "LLAMA_ACTORS_RUNTIME_DIR": str(tmp_path)},
            stderr=subprocess.PIPE,
        )
    os.close(ready_write)
    os.close(ready_read)
    try:
        assert models_of(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) == []
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_wrong_address_stops_the_start_with_its_name(tmp_path: Path) -> None:
    from runtime import errors

    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = (Listen("127.0.0.1", taken.getsockname()[1]),)
        with (
            pytest.raises(errors.NodeStartFailed, match=r"gateway\.listen.*another program"),
            started(tmp_path, config=RuntimeConfig(gateway=GatewaySettings(listen=listen))),
        ):
            pass


# ── the end ─────────────────────────────────────────────────────────────────────────────────────


def test_a_stop_lets_running_streams_end(tmp_path: Path) -> None:
    found: list[bytes] = []
    with LeakCheck() as leaks, gateway_node(tmp_path, drain_s=20.0) as gateway:
        leaks.watch(gateway.node)
        body = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True}
        reader = threading.Thread(
            target=lambda: found.append(gateway.post("/v1/completions", body).body)
        )
        reader.start()
        eventually(lambda: _runs(gateway.node), what="it runs")
        gateway.node.stop()
        reader.join(60)
    (data,) = found
    assert data.endswith(b"data: [DONE]\n\n")


def _runs(node: Node) -> bool:
    return inflight_status(node)["in_flight"] == 1
