"""The page of metrics, read by Prometheus; lines of requests in the log; spans at a collector."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from runtime import RuntimeConfig
from runtime.embedded import path as embedded_model_path
from runtime.gateway.keys import new_key
from runtime.settings.gateway import GatewaySettings, Listen
from tests.support.gateways import Gateway
from tests.support.nodes import ROOT, free_port
from tests.support.runtime_nodes import LeakCheck, one_thread, started
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

PROMETHEUS = ROOT / "packaging/prometheus"
DASHBOARD = ROOT / "packaging/grafana/llama-actors.json"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SECRET = "zebra-secret"
KEYS = {"alice": new_key(), "narrow": new_key()}
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed"
)
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed"
)


class Collector:
    """An OTLP receiver on a loopback address: what was posted, by path."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, bytes]] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                bodies.append((self.path, body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def parsed(self, path: str, kind: Any) -> list[Any]:
        return [kind.FromString(body) for where, body in list(self.bodies) if where == path]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("observed")


@pytest.fixture(scope="module")
def gateway(folder: Path, collector: Collector) -> Iterator[Gateway]:
    keys = folder / "keys.toml"
    rights = {"alice": "admin = true", "narrow": 'models = ["none*"]'}
    keys.write_text(
        "".join(
            f'[keys.{name}]\nsha256 = "{KEYS[name][1]}"\nnamespace = "shared"\n{rights[name]}\n'
            for name in KEYS
        )
    )
    port = free_port()
    settings = GatewaySettings(
        listen=(Listen("127.0.0.1", port),),
        keys_file=str(keys),
        metrics_alias=("llamacpp", "vllm"),
    )
    config = RuntimeConfig(gateway=settings, log_format="json")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_METRICS_EXPORTER": "otlp",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
        }.items():
            patch.setenv(name, value)
        with LeakCheck() as leaks, started(folder, config=config, models={"demo": None}) as node:
            found = Gateway(node, port)
            found.headers = {"authorization": f"Bearer {KEYS['alice'][0]}"}
            leaks.watch(node)
            traffic(found)
            yield found


def traffic(gateway: Gateway) -> None:
    """Requests of every kind that the dashboard shows."""
    chat = {"messages": [{"role": "user", "content": SECRET * 20}], "max_tokens": 12}
    trace = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    for _ in range(2):
        assert gateway.post("/v1/chat/completions", chat, **trace).status == 200
    billed = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197.a01;"}
    anthropic = {
        "model": "demo", "max_tokens": 2, "system": [billed, {"type": "text", "text": "Be kind."}],
        "messages": [{"role": "user", "content": "Hello"}],
    }  # fmt: skip
    assert gateway.post("/v1/messages", anthropic).status == 200
    assert gateway.get(f"/nowhere/{SECRET}?key={SECRET}").status == 404
    assert gateway.get("/props", authorization=f"Bearer {SECRET}").status == 401


def page(gateway: Gateway) -> str:
    answer = gateway.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return answer.body.decode()


def values(gateway: Gateway) -> dict[str, float]:
    lines = [one for one in page(gateway).splitlines() if not one.startswith("#")]
    return {one.rpartition(" ")[0]: float(one.rpartition(" ")[2]) for one in lines}


# ── the page ────────────────────────────────────────────────────────────────────────────────────


def test_the_page_shows_requests_and_the_node(gateway: Gateway) -> None:
    found = values(gateway)
    of = '{model_name="demo"}'
    replies = found[f"llama_actors_time_to_first_token_seconds_count{of}"]
    assert replies >= 3
    assert found[f"llama_actors_generation_tokens_total{of}"] == found[
        "llamacpp:tokens_predicted_total"
    ]  # fmt: skip
    assert found[f"llama_actors_model_up{of}"] == found["llama_actors_models_up"] == 1
    assert found['llama_actors_kv_bytes{tier="ram"}'] > 0
    assert found['llama_actors_kv_tier_up{tier="disk"}'] == 1
    assert found["llama_actors_auth_failures_total"] >= 1
    assert found['llama_actors_canonicalised_total{rule="claude-billing"}'] >= 1
    assert found["llama_actors_http_connections"] >= 1
    assert found[f'llama_actors_cached_tokens_total{of[:-1]},cache_source="ram"}}'] > 0
    assert found['llama_actors_worker_restarts_total{actor="model:demo",reason="killed"}'] == 0
    assert found[f'vllm:generation_tokens_total{{engine="0",{of[1:]}'] > 0
    unknown = [
        one for one in found if one.startswith('llama_actors_http_requests_total{route="oth')
    ]
    assert unknown == ['llama_actors_http_requests_total{route="other",status="404",api="openai"}']


def test_a_key_sees_no_models_that_it_may_not_use(gateway: Gateway) -> None:
    answer = gateway.get("/metrics", authorization=f"Bearer {KEYS['narrow'][0]}")
    ours = [one for one in answer.body.decode().splitlines() if "llama_actors_" in one]
    assert "llama_actors_http_connections" in "".join(ours)
    assert not [one for one in ours if 'model_name="demo"' in one]


def test_a_stream_that_its_client_leaves_counts_its_tokens(gateway: Gateway) -> None:
    name = 'llama_actors_request_success_total{model_name="demo",finished_reason="abort"}'
    before = values(gateway)
    asked = {"prompt": "Once", "max_tokens": 4000, "stream": True, "ignore_eos": True}
    with gateway.opened("POST", "/v1/completions", asked) as answer:
        answer.read1(200)
    eventually(lambda: values(gateway).get(name, 0) == before.get(name, 0) + 1, what="it is noted")
    after = values(gateway)
    tokens = 'llama_actors_generation_tokens_total{model_name="demo"}'
    assert after[tokens] > before[tokens]
    llamacpp = "llamacpp:tokens_predicted_total"
    assert after[llamacpp] - before[llamacpp] == after[tokens] - before[tokens]


@needs_promtool
def test_the_page_is_as_prometheus_wants_it(gateway: Gateway) -> None:
    ours = [one for one in page(gateway).splitlines() if "vllm:" not in one]
    text = "\n".join(one for one in ours if "llamacpp:" not in one) + "\n"
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ── files for Prometheus and Grafana ────────────────────────────────────────────────────────────


@needs_promtool
def test_rules_and_their_tests_are_in_order() -> None:
    for command in (
        ["check", "rules", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
        ["check", "config", "prometheus.yml"],
    ):
        done = subprocess.run(
            ["promtool", *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


class Scraper:
    """A Prometheus that reads the page of one gateway every half second."""

    def __init__(self, folder: Path, target: Gateway) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        config = {
            "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
            "rule_files": [str(PROMETHEUS / "rules.yml")],
            "scrape_configs": [
                {
                    "job_name": "llama-actors",
                    "authorization": {"credentials": KEYS["alice"][0]},
                    "static_configs": [{"targets": [f"127.0.0.1:{target.port}"]}],
                }
            ],
        }
        path = folder / "prometheus.json"  # JSON is YAML
        path.write_text(json.dumps(config))
        self._command = [
            "prometheus", f"--config.file={path}", f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address={self.url.removeprefix('http://')}", "--log.level=error",
        ]  # fmt: skip

    def __enter__(self) -> Scraper:
        self._process = subprocess.Popen(self._command)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)

    def ask(self, expression: str) -> list[Any]:
        query = urllib.parse.urlencode({"query": expression})
        where = f"{self.url}/api/v1/query?{query}"
        try:
            with urllib.request.urlopen(where, timeout=10) as answer:
                found: list[Any] = json.load(answer)["data"]["result"]
                return found
        except OSError:  # it is starting
            return []

    def rules(self) -> list[Any]:
        with urllib.request.urlopen(f"{self.url}/api/v1/rules", timeout=10) as answer:
            groups = json.load(answer)["data"]["groups"]
        return [one for group in groups for one in group["rules"]]


def expressions() -> dict[str, str]:
    """Of the dashboard, by panel and letter, for a Prometheus without Grafana."""
    found = {}
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            text = target["expr"].replace("$__rate_interval", "1m")
            text = text.replace("$instance", ".*").replace("$model", ".*")
            found[f"{panel['title']} {target['refId']}"] = text
    return found


@needs_prometheus
def test_every_panel_shows_something(gateway: Gateway, folder: Path) -> None:
    with Scraper(folder, gateway) as prometheus:
        reads = "count_over_time(up[1m])"
        eventually(
            lambda: prometheus.ask(reads) and float(prometheus.ask(reads)[0]["value"][1]) >= 3,
            what="it has read the page three times",
        )
        traffic(gateway)
        left = expressions()
        assert len(left) > 25

        def probe() -> bool:
            for name in [name for name, text in left.items() if prometheus.ask(text)]:
                del left[name]
            return not left

        with contextlib.suppress(AssertionError):
            eventually(probe, within_s=20, every_s=0.3)
        assert not left
        assert float(prometheus.ask("up")[0]["value"][1]) == 1.0
        states = {one["name"]: one.get("state") for one in prometheus.rules()}
        assert states["LlamaActorsNoModel"] == states["LlamaActorsDown"] == "inactive"
        assert {one["health"] for one in prometheus.rules()} <= {"ok", "unknown"}


# ── the log ─────────────────────────────────────────────────────────────────────────────────────


def test_each_request_is_a_line_without_its_texts(gateway: Gateway, folder: Path) -> None:
    answer = gateway.post(
        "/v1/completions", {"prompt": SECRET, "max_tokens": 3, "ignore_eos": True}
    )
    name = answer.headers["x-request-id"]

    def probe() -> dict[str, Any] | None:
        lines = [json.loads(one) for one in (folder / "node.log").read_text().splitlines()]
        return next((one for one in lines if one.get("request_id") == name), None)

    line = eventually(probe, what="its line is there")
    assert line is not None
    assert (line["logger"], line["event"]) == ("supervision.http.access", "http_request")
    assert (line["key"], line["model"], line["api"], line["status"]) == (
        *("alice", "demo", "openai", 200),
    )
    assert (line["route"], line["finish"], line["outcome"]) == ("/v1/completions", "length", "ok")
    assert line["generated_tokens"] == answer.json["usage"]["completion_tokens"]
    assert line["prompt_tokens"] == answer.json["usage"]["prompt_tokens"]
    assert line["first_token_ms"] <= line["total_ms"]
    assert SECRET not in (folder / "node.log").read_text()


# ── OpenTelemetry ───────────────────────────────────────────────────────────────────────────────


def test_spans_come_to_a_collector(gateway: Gateway, collector: Collector) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    def probe() -> list[Any]:
        parsed = collector.parsed("/v1/traces", ExportTraceServiceRequest)
        spans = [
            span for one in parsed for resource in one.resource_spans
            for scope in resource.scope_spans for span in scope.spans
        ]  # fmt: skip
        return [one for one in spans if one.trace_id.hex() == TRACE]

    eventually(lambda: {one.name for one in probe()} >= {"chat demo", "queue", "prefill", "decode"})
    spans = probe()
    whole = [one for one in spans if one.name == "chat demo"]
    assert {one.parent_span_id.hex() for one in whole} == {"00f067aa0ba902b7"}
    ids = {one.span_id for one in whole}
    assert {one.parent_span_id for one in spans if one.name != "chat demo"} <= ids
    found = {one.key: one.value for one in whole[0].attributes}
    assert found["gen_ai.response.model"].string_value == "demo"
    assert found["gen_ai.usage.output_tokens"].int_value > 0
    assert SECRET.encode() not in b"".join(body for _, body in collector.bodies)


def test_metrics_come_to_a_collector(gateway: Gateway, collector: Collector) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
        ExportMetricsServiceRequest,
    )

    def probe() -> set[str]:
        return {
            metric.name
            for one in collector.parsed("/v1/metrics", ExportMetricsServiceRequest)
            for resource in one.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    wanted = {"request.duration", "time_to_first_token", "time_per_output_token"}
    eventually(lambda: probe() >= {f"gen_ai.server.{one}" for one in wanted})


# ── what ends before its time ───────────────────────────────────────────────────────────────────


def test_a_response_in_the_background_that_fails_counts_its_tokens(gateway: Gateway) -> None:
    gateway.node.load("second", one_thread(embedded_model_path()))
    asked = {"model": "second", "input": "Tell a story.", "max_output_tokens": 4000,
             "ignore_eos": True, "background": True}  # fmt: skip
    name = gateway.post("/v1/responses", asked).json["id"]
    eventually(lambda: gateway.node.phase("second") == "generating", what="it generates")
    gateway.node.unload("second")
    path = f"/v1/responses/{name}"
    eventually(lambda: gateway.get(path).json["status"] == "failed", what="it has failed")
    of = 'model_name="second"'
    failed = f'llama_actors_request_success_total{{{of},finished_reason="error"}}'
    eventually(lambda: values(gateway).get(failed) == 1, what="it is counted")
    assert values(gateway)[f"llama_actors_prompt_tokens_total{{{of}}}"] > 0


def test_what_is_no_request_is_counted(gateway: Gateway) -> None:
    name = 'llama_actors_http_requests_total{route="other",status="400",api="other"}'
    before = values(gateway).get(name, 0)
    with gateway.raw() as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")
    eventually(lambda: values(gateway).get(name) == before + 1, what="it is counted")
