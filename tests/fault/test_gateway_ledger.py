"""Two workers and their ledger: one count of everything, also through kill -9 of any of them."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from runtime.gateway.keys import new_key
from tests.support.gateways import Answered, Gateway, gateway_node
from tests.support.runtime_nodes import LeakCheck, inflight_status, kill, pid_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.fault

LEDGER, WORKERS = "gateway_ledger", ("http:0", "http:1")
KEYS = {name: new_key() for name in ("alice", "single", "goes_on", "counted", "waits", "tokens")}
LIMITS = {
    "alice": "admin = true",
    "single": "running = 1",
    "goes_on": "running = 1",
    "counted": "requests_per_min = 3",
    "waits": "requests_per_min = 1000",
    "tokens": "tokens_per_min = 30",
}
STORY = {"prompt": "Once upon a time", "ignore_eos": True, "temperature": 0.9, "seed": 5,
         "exact": "always"}  # fmt: skip
LONG = {**STORY, "max_tokens": 600, "stream": True}
SHORT = {**STORY, "max_tokens": 2}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("ledger")
    path = folder / "keys.toml"
    path.write_text(
        "".join(
            f'[keys.{name}]\nsha256 = "{KEYS[name][1]}"\nnamespace = "shared"\n{LIMITS[name]}\n'
            for name in KEYS
        )
    )
    settings = {"workers": 2, "keys_file": str(path), "keepalive_s": 0.2, "store_bytes": 1 << 20}
    with LeakCheck() as leaks, gateway_node(folder, **settings) as found:
        found.headers = by("alice")
        leaks.watch(found.node)
        yield found
        leaks.watch(found.node)


def by(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name][0]}"}


def complete(gateway: Gateway, worker: str, name: str, body: Any = SHORT) -> Answered:
    return gateway.at(worker, "POST", "/v1/completions", body, **by(name))


@contextlib.contextmanager
def streaming(gateway: Gateway, worker: str, name: str) -> Iterator[HTTPResponse]:
    """A long stream of this worker whose first bytes have come."""
    with contextlib.closing(gateway.connect_to(worker)) as connection:
        connection.request("POST", "/v1/completions", json.dumps(LONG).encode(), by(name))
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        yield answer


def text_of(stream: bytes) -> str:
    assert stream.endswith(b"data: [DONE]\n\n")
    frames = [one for one in stream.split(b"\n\n") if one.startswith(b"data: {")]
    return "".join(json.loads(one[6:])["choices"][0]["text"] for one in frames)


GROWING = {
    'llama_actors_generation_tokens_total{model_name="demo"}',
    'llama_actors_inter_token_latency_seconds_count{model_name="demo"}',
    'llama_actors_http_requests_total{route="/v1/completions",status="200",api="openai"}',
}


def text(gateway: Gateway, worker: str) -> str:
    return gateway.at(worker, "GET", "/metrics", **by("alice")).body.decode()


def sums(gateway: Gateway, worker: str) -> dict[str, float]:
    lines = text(gateway, worker).splitlines()
    pairs = (line.split(" ") for line in lines if not line.startswith("#"))
    return {name.removeprefix("llamacpp:"): float(value) for name, value in pairs}


@pytest.fixture(scope="module")
def unbroken(gateway: Gateway) -> str:
    with streaming(gateway, "http:0", "alice") as answer:
        return text_of(answer.read())


# ── limits ──────────────────────────────────────────────────────────────────────────────────────


def test_a_key_runs_as_many_requests_as_it_may_on_all_workers_together(gateway: Gateway) -> None:
    with streaming(gateway, "http:0", "single") as answer:
        answer.read1(100)
        for worker in WORKERS:
            refused = complete(gateway, worker, "single")
            assert (refused.status, refused.headers["retry-after"]) == (429, "1"), worker
            assert complete(gateway, worker, "alice").status == 200
    # Its client has left.
    eventually(lambda: complete(gateway, "http:1", "single").status == 200)


@pytest.mark.parametrize("victim", [LEDGER, "http:0"])
def test_a_stream_counts_until_its_end_whatever_is_killed(
    gateway: Gateway, unbroken: str, victim: str
) -> None:
    with streaming(gateway, "http:0", "goes_on") as answer:
        data = answer.read1(3000)
        kill(pid_of(gateway.node, victim))
        pid_of(gateway.node, victim)
        refused = complete(gateway, "http:1", "goes_on")
        assert refused.status == 429, refused.body
        while more := answer.read1(65536):
            data += more
    assert text_of(data) == unbroken
    eventually(lambda: complete(gateway, "http:1", "goes_on").status == 200, within_s=10)


def test_the_requests_of_a_minute_are_those_of_all_workers(gateway: Gateway) -> None:
    left = []
    for number in range(3):
        answer = complete(gateway, WORKERS[number % 2], "counted")
        assert (answer.status, answer.headers["x-ratelimit-limit-requests"]) == (200, "3")
        left.append(int(answer.headers["x-ratelimit-remaining-requests"]))
        kill(pid_of(gateway.node, LEDGER))
    assert left == [2, 1, 0]
    for worker in WORKERS:
        refused = complete(gateway, worker, "counted")
        assert refused.status == 429, refused.body
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert refused.headers["x-ratelimit-reset-requests"].endswith("s")
        assert "x-ratelimit-limit-tokens" not in refused.headers


def test_the_tokens_of_a_minute_are_those_of_all_workers(gateway: Gateway) -> None:
    asked = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 40, "ignore_eos": True}
    first = gateway.at("http:0", "POST", "/v1/messages", asked, **by("tokens"))
    assert first.status == 200, first.body
    assert first.headers["anthropic-ratelimit-tokens-limit"] == "30"
    assert first.headers["anthropic-ratelimit-tokens-remaining"] == "30"
    assert first.headers["anthropic-ratelimit-tokens-reset"].endswith("Z")
    refused = gateway.at("http:1", "POST", "/v1/messages", asked, **by("tokens"))
    assert refused.status == 429
    assert refused.json["error"]["type"] == "rate_limit_error"
    assert refused.headers["anthropic-ratelimit-tokens-remaining"] == "0"


def test_requests_wait_for_a_ledger_that_is_killed(gateway: Gateway, unbroken: str) -> None:
    """Those of keys with limits; the others do not notice."""
    found: list[int] = []
    stop = threading.Event()

    def ask(name: str) -> None:
        while not stop.is_set():
            found.append(gateway.call("POST", "/v1/completions", SHORT, by(name)).status)

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("waits", "waits", "alice")]
    for thread in threads:
        thread.start()
    try:
        with streaming(gateway, "http:1", "waits") as answer:
            data = answer.read1(1000)
            for _ in range(5):
                kill(pid_of(gateway.node, LEDGER))
                n_before = len(found)
                eventually(lambda n=n_before: len(found) > n + 5, what="requests are answered")
            while more := answer.read1(65536):
                data += more
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert text_of(data) == unbroken
    assert set(found) == {200}
    eventually(lambda: not inflight_status(gateway.node)["in_flight"], what="nothing runs")


def test_the_requests_of_a_gateway_are_limited_over_its_workers(tmp_path: Path) -> None:
    with LeakCheck() as leaks, gateway_node(tmp_path, workers=2, max_running=2) as gateway:
        leaks.watch(gateway.node)
        asked = {**LONG, "max_tokens": 3500}
        with contextlib.closing(gateway.connect_to("http:0")) as connection:
            connection.request("POST", "/v1/completions", json.dumps(asked).encode())
            assert connection.getresponse().status == 200
            with contextlib.closing(gateway.connect_to("http:1")) as other:
                other.request("POST", "/v1/completions", json.dumps(asked).encode())
                assert other.getresponse().status == 200

                def refused(worker: str) -> bool:
                    answer = gateway.at(worker, "POST", "/v1/completions", SHORT)
                    assert answer.status in (200, 503)
                    return answer.status == 503 and "retry-after" in answer.headers

                for worker in WORKERS:
                    eventually(lambda w=worker: refused(w), what="it learns of the other")
        eventually(lambda: not inflight_status(gateway.node)["in_flight"], what="nothing runs")
        for worker in WORKERS:
            eventually(
                lambda w=worker: gateway.at(w, "POST", "/v1/completions", SHORT).status == 200
            )


# ── counts ──────────────────────────────────────────────────────────────────────────────────────


def test_metrics_are_sums_that_never_go_back(gateway: Gateway) -> None:
    seen = sums(gateway, "http:0")
    for victim in ("", "http:0", LEDGER, "http:1", LEDGER):
        for worker in WORKERS:
            assert complete(gateway, worker, "alice").status == 200
        wanted = seen["tokens_predicted_total"] + 4
        eventually(
            lambda n=wanted: all(sums(gateway, one)["tokens_predicted_total"] == n
                                 for one in WORKERS),
            what="both workers show what both have done",
        )  # fmt: skip
        now = sums(gateway, "http:1")
        grown = {name for name in seen if name.partition("{")[0].endswith(("_total", "_count"))}
        assert all(now[name] >= seen[name] for name in grown if "engine_" not in name)
        for name in GROWING & seen.keys():
            assert now[name] > seen[name], name
        seen = now
        if victim:
            kill(pid_of(gateway.node, victim))
            pid_of(gateway.node, victim)


def test_restarts_and_resumes_are_counted_by_why(gateway: Gateway) -> None:
    killed = ['{actor="http:1",reason="killed"}', '{actor="gateway_ledger",reason="killed"}']
    names = [f"llama_actors_worker_restarts_total{one}" for one in killed]
    before = sums(gateway, "http:0")
    for victim in ("http:1", LEDGER):
        kill(pid_of(gateway.node, victim))
        pid_of(gateway.node, victim)
    eventually(
        lambda: all(sums(gateway, "http:0")[name] == before[name] + 1 for name in names),
        what="both restarts are counted",
    )


def test_a_trace_is_named_where_its_model_dies(
    gateway: Gateway, tmp_path_factory: pytest.TempPathFactory
) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    resumes = 'llama_actors_stream_resumes_total{cause="node"}'
    before = sums(gateway, "http:0")[resumes]
    with contextlib.closing(gateway.connect_to("http:0")) as connection:
        headers = {**by("alice"), "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
        connection.request("POST", "/v1/completions", json.dumps(LONG).encode(), headers)
        answer = connection.getresponse()
        assert answer.read1(100)
        eventually(lambda: (gateway.node.report_of("model:demo") or {}).get("traces") == [trace])
        kill(pid_of(gateway.node, "model:demo"))
        assert answer.read().endswith(b"data: [DONE]\n\n")
    logs = tmp_path_factory.getbasetemp().glob("ledger*/node.log")
    assert any(f"traces: {trace}" in one.read_text() for one in logs)
    eventually(lambda: sums(gateway, "http:0")[resumes] == before + 1, what="it is counted")


# ── what was stored ─────────────────────────────────────────────────────────────────────────────

ASKED = {"input": "Name a fox.", "max_output_tokens": 8, "temperature": 0, "exact": "always"}


def test_a_response_is_continued_at_another_worker(gateway: Gateway) -> None:
    path = "/v1/responses"
    first = gateway.at("http:0", "POST", path, ASKED).json
    for victim in ("", LEDGER, "http:0"):
        if victim:
            kill(pid_of(gateway.node, victim))
        more = {**ASKED, "input": "And an owl.", "previous_response_id": first["id"]}
        answer = gateway.at("http:1", "POST", path, {**more, "stream": True})
        assert answer.status == 200, answer.body
        last = answer.frames[-1]["response"]
        usage = last["usage"]
        assert usage["input_tokens"] > first["usage"]["input_tokens"]
        for worker in WORKERS:
            assert gateway.at(worker, "GET", f"{path}/{last['id']}").json == last
    assert gateway.at("http:1", "DELETE", f"{path}/{first['id']}").json["deleted"]
    for worker in WORKERS:
        assert gateway.at(worker, "GET", f"{path}/{first['id']}").status == 404


BEHIND = {**ASKED, "input": "Tell a story.", "max_output_tokens": 3500, "ignore_eos": True,
          "background": True}  # fmt: skip


def test_a_response_in_the_background_is_read_at_another_worker(gateway: Gateway) -> None:
    path = "/v1/responses"
    name = gateway.at("http:0", "POST", path, {**BEHIND, "max_output_tokens": 200}).json["id"]
    follow = {**ASKED, "previous_response_id": name}
    assert gateway.at("http:1", "POST", path, follow).status == 409
    for worker in ("http:1", "http:0"):
        shown = gateway.at(worker, "GET", f"{path}/{name}?stream=true&starting_after=3")
        assert shown.status == 200, shown.body
        numbers = [one["sequence_number"] for one in shown.frames]
        assert numbers == list(range(4, 4 + len(numbers)))
        last = shown.frames[-1]["response"]
        assert (last["status"], last["usage"]["output_tokens"]) == ("incomplete", 200)
        assert gateway.at(worker, "GET", f"{path}/{name}").json == last
    assert gateway.at("http:1", "POST", path, follow).status == 200


def test_a_reader_at_another_worker_goes_on_when_the_first_is_killed(gateway: Gateway) -> None:
    path = "/v1/responses"
    name = gateway.at("http:0", "POST", path, {**BEHIND, "max_output_tokens": 400}).json["id"]
    with contextlib.closing(gateway.connect_to("http:1")) as connection:
        connection.request("GET", f"{path}/{name}?stream=true", headers=by("alice"))
        answer = connection.getresponse()
        data = answer.read1(4000)
        kill(pid_of(gateway.node, "http:0"))
        while more := answer.read1(65536):
            data += more
    lines = [one for one in data.split(b"\n") if one.startswith(b"data: ")]
    frames = [json.loads(one[6:]) for one in lines]
    assert [one["sequence_number"] for one in frames] == list(range(len(frames)))
    assert frames[-1]["response"]["usage"]["output_tokens"] == 400
    assert gateway.at("http:0", "GET", f"{path}/{name}?stream=true").frames == frames


@pytest.mark.parametrize("victim", ["", "http:0"])
def test_a_response_in_the_background_is_ended_at_another_worker(
    gateway: Gateway, victim: str
) -> None:
    path = "/v1/responses"
    for method, end in (("POST", "/cancel"), ("DELETE", "")):
        name = gateway.at("http:0", "POST", path, BEHIND).json["id"]
        eventually(lambda: inflight_status(gateway.node)["in_flight"], what="it runs")
        if victim:
            kill(pid_of(gateway.node, victim))
        ended = gateway.at("http:1", method, f"{path}/{name}{end}", {})
        assert ended.status == 200, ended.body
        eventually(lambda: not inflight_status(gateway.node)["in_flight"], what="nothing runs")
        if end:
            assert ended.json["status"] == "cancelled"
            assert gateway.at("http:1", "GET", f"{path}/{name}").json == ended.json
        else:
            assert gateway.at("http:0", "GET", f"{path}/{name}").status == 404


def test_a_big_response_is_stored_too(gateway: Gateway) -> None:
    """It does not fit into a message."""
    asked = {**ASKED, "metadata": {"note": "x" * 200_000}}
    found = gateway.at("http:0", "POST", "/v1/responses", asked).json
    assert gateway.at("http:1", "GET", f"/v1/responses/{found['id']}").json == found
    more = {**ASKED, "previous_response_id": found["id"]}
    assert gateway.at("http:1", "POST", "/v1/responses", more).status == 200


def test_why_a_prompt_was_cold_is_known_at_another_worker(gateway: Gateway) -> None:
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    first = gateway.at("http:0", "POST", "/v1/messages", {**asked, "system": "Be brief."}).json
    again = {**asked, "system": "Be long.", "diagnostics": {"previous_message_id": first["id"]}}
    found = gateway.at("http:1", "POST", "/v1/messages", again).json
    assert found["diagnostics"]["cache_miss_reason"]["type"] == "system_changed"
