"""Streams through kill -9 of the processes below them: a pause, and no byte lost or repeated."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.gateway.shelved_run import run_name
from runtime.gateway.stream_log import MAX_TAKEN, MAX_TAKEN_AT_ALL, TAKEN, Mark, StreamLog
from supervision.node_file import RuntimeDir
from supervision.shelf import ShelfClient
from tests.support.gateways import Gateway, gateway_node
from tests.support.runtime_nodes import LeakCheck, inflight_status, kill, pid_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.fault

ASK = {"messages": [{"role": "user", "content": "Tell a long story about a fox and an owl."}],
       "max_tokens": 300, "ignore_eos": True, "temperature": 0.9, "seed": 11, "stream": True,
       "exact": "always", "stream_options": {"include_usage": True}}  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("kills")
    with LeakCheck() as leaks, gateway_node(folder, keepalive_s=0.2) as found:
        leaks.watch(found.node)
        yield found
        leaks.watch(found.node)


class Reader(threading.Thread):
    """Reads one stream to its end, and counts what has come."""

    def __init__(self, gateway: Gateway, body: dict[str, Any], path: str) -> None:
        super().__init__()
        self.gateway = gateway
        self.body = body
        self.path = path
        self.data = b""
        self.trouble: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            connection = self.gateway.connect()
            connection.request("POST", self.path, json.dumps(self.body))
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            while more := answer.read1(65536):
                self.data += more
            connection.close()
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.trouble = error

    def frames(self) -> list[Any]:
        self.join(120)
        assert not self.is_alive(), "the stream did not end"
        assert self.trouble is None, self.trouble
        text = self.data.decode()
        assert text.endswith("data: [DONE]\n\n")
        found = []
        for frame in text.split("\n\n")[:-1]:
            assert frame == ":" or frame.startswith("data: "), frame
            if frame.startswith("data: {"):
                found.append(json.loads(frame.removeprefix("data: ")))
        return found


def content(frames: list[Any], number: int = 0) -> str:
    return "".join(
        choice["delta"].get("content") or ""
        for frame in frames
        for choice in frame["choices"]
        if choice["index"] == number
    )


@pytest.fixture(scope="module")
def unbroken(gateway: Gateway) -> str:
    text = content(Reader(gateway, ASK, "/v1/chat/completions").frames())
    assert len(text) > 300
    return text


def check(frames: list[Any], text: str) -> None:
    assert content(frames) == text
    assert len({frame["id"] for frame in frames}) == 1
    assert len({frame["created"] for frame in frames}) == 1
    roles = [f for f in frames if f["choices"] and "role" in f["choices"][0]["delta"]]
    assert len(roles) == 1
    ends = [f for f in frames if f["choices"] and f["choices"][0]["finish_reason"]]
    assert len(ends) == 1
    assert frames[-1]["usage"]["completion_tokens"] == 300


@pytest.mark.parametrize("victim", ["http:0", "inflight", "model:demo"])
def test_a_stream_goes_on_when_a_process_is_killed(
    gateway: Gateway, unbroken: str, victim: str
) -> None:
    reader = Reader(gateway, ASK, "/v1/chat/completions")
    eventually(lambda: len(reader.data) > 3000, what="it runs")
    kill(pid_of(gateway.node, victim))
    check(reader.frames(), unbroken)


def test_a_worker_that_is_killed_again_and_again(gateway: Gateway, unbroken: str) -> None:
    readers = [Reader(gateway, ASK, "/v1/chat/completions") for _ in range(3)]
    for n in range(5):
        wanted = 2000 + 4000 * n
        eventually(
            lambda w=wanted: any(len(r.data) > w or not r.is_alive() for r in readers), within_s=60,
            what="more has come",
        )  # fmt: skip
        kill(pid_of(gateway.node, "http:0"))
    for reader in readers:
        check(reader.frames(), unbroken)
    eventually(lambda: not inflight_status(gateway.node)["in_flight"], what="nothing runs")


def test_a_request_without_a_stream_is_answered_too(gateway: Gateway, unbroken: str) -> None:
    found: list[Any] = []
    asked = {**ASK, "stream": False}
    thread = threading.Thread(
        target=lambda: found.append(gateway.post("/v1/chat/completions", asked))
    )
    thread.start()
    eventually(lambda: inflight_status(gateway.node)["in_flight"], what="it runs")
    kill(pid_of(gateway.node, "http:0"))
    thread.join(120)
    assert found[0].json["choices"][0]["message"]["content"] == unbroken


def test_several_replies_go_on_together(gateway: Gateway) -> None:
    asked = {**ASK, "n": 2, "max_tokens": 150}
    whole = Reader(gateway, asked, "/v1/chat/completions").frames()
    reader = Reader(gateway, asked, "/v1/chat/completions")
    eventually(lambda: len(reader.data) > 6000, what="both run")
    kill(pid_of(gateway.node, "http:0"))
    frames = reader.frames()
    assert [content(frames, n) for n in (0, 1)] == [content(whole, n) for n in (0, 1)]


def test_the_whole_node_below_the_launcher(gateway: Gateway, unbroken: str) -> None:
    reader = Reader(gateway, ASK, "/v1/chat/completions")
    eventually(lambda: len(reader.data) > 3000, what="it runs")
    kill(gateway.node.connection.record.root_pid)
    check(reader.frames(), unbroken)


OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "completions": ("/v1/completions", {"prompt": "Once upon a time"}, "[DONE]"),
    "responses": ("/v1/responses", {"input": "Tell a story."}, "response.incomplete"),
    "anthropic": ("/v1/messages", {"messages": ASK["messages"]}, "message_stop"),
    "ollama": (
        "/api/chat",
        {"messages": ASK["messages"], "options": {"num_predict": 300, "seed": 11}},
        '"done":true',
    ),
}


@pytest.mark.parametrize("api", OTHERS)
def test_streams_of_every_api_go_on(gateway: Gateway, api: str) -> None:
    path, body, end = OTHERS[api]
    tokens = "max_output_tokens" if api == "responses" else "max_tokens"
    asked = {"exact": "always", "temperature": 0.9, "seed": 11, "ignore_eos": True, "stream": True,
             tokens: 300, **body}  # fmt: skip
    whole = Reader(gateway, asked, path)
    reader = Reader(gateway, asked, path)
    for one in (whole, reader):
        eventually(lambda o=one: len(o.data) > 4000 or not o.is_alive(), what="it runs")
        if one is whole:
            whole.join(60)
    kill(pid_of(gateway.node, "http:0"))
    reader.join(120)
    for one in (whole, reader):
        assert one.trouble is None
        assert end in one.data.decode()[-6000:]
    assert shown(reader.data) == shown(whole.data)
    assert len(shown(reader.data)) > 200


def shown(data: bytes) -> str:
    """All text of a stream of any API."""
    text = []
    for line in data.decode().splitlines():
        found = (
            json.loads(line.removeprefix("data: ")) if line[:1] == "{" or "{" in line[:8] else {}
        )
        delta = found.get("delta")
        match found:
            case {"choices": [{"text": str(piece)}]}:
                text.append(piece)
            case {"type": "response.output_text.delta"}:
                text.append(delta)
            case {"type": "content_block_delta"}:
                text.append(delta.get("text", ""))
            case {"message": {"content": str(piece)}}:
                text.append(piece)
    return "".join(text)


def test_a_pooled_connection_outlives_its_worker(gateway: Gateway) -> None:
    connection = gateway.connect()
    connection.connect()
    sock = connection.sock
    for _ in range(2):
        connection.request("GET", "/v1/models")
        assert connection.getresponse().read()
        kill(pid_of(gateway.node, "http:0"))
    connection.request("POST", "/v1/chat/completions", json.dumps({**ASK, "stream": False}))
    assert connection.getresponse().status == 200
    assert connection.sock in (sock, None)
    connection.close()


def test_stored_responses_outlive_their_worker(gateway: Gateway) -> None:
    asked = {"input": "Name a fox.", "max_output_tokens": 8, "temperature": 0, "exact": "always"}
    first = gateway.post("/v1/responses", asked).json
    kill(pid_of(gateway.node, "http:0"))
    assert gateway.get(f"/v1/responses/{first['id']}").json["output"] == first["output"]
    more = {
        **asked, "input": "And an owl.", "max_output_tokens": 200, "ignore_eos": True,
        "previous_response_id": first["id"], "stream": True,
    }  # fmt: skip
    whole = Reader(gateway, more, "/v1/responses")
    whole.join(60)
    reader = Reader(gateway, more, "/v1/responses")
    eventually(lambda: len(reader.data) > 4000, what="it runs")
    gateway.call("DELETE", f"/v1/responses/{first['id']}")  # it had been read when this one began
    kill(pid_of(gateway.node, "http:0"))
    reader.join(60)
    assert shown(reader.data) == shown(whole.data)
    assert "response.incomplete" in reader.data.decode()[-6000:]
    assert gateway.get(f"/v1/responses/{first['id']}").status == 404


BEHIND = {"input": "Tell a story.", "max_output_tokens": 400, "ignore_eos": True, "seed": 3,
          "temperature": 0.9, "exact": "always", "background": True}  # fmt: skip


def shown_again(gateway: Gateway, name: str, after: int = -1) -> list[Any]:
    """The events of a response from the one after ``after``, up to its end."""
    path = f"/v1/responses/{name}?stream=true&starting_after={after}" if after >= 0 else (
        f"/v1/responses/{name}?stream=true"
    )  # fmt: skip
    answer = gateway.get(path)
    assert answer.status == 200, answer.body
    return answer.frames


def frames_in(data: bytes) -> list[Any]:
    lines = [one for one in data.split(b"\n") if one.startswith(b"data: ")]
    return [json.loads(one[6:]) for one in lines]


def without_place(frames: list[Any]) -> list[Any]:
    """The texts of a stream, which do not depend on ids and times."""
    return [one["delta"] for one in frames if one["type"] == "response.output_text.delta"]


@pytest.fixture(scope="module")
def story(gateway: Gateway) -> str:
    frames = shown_again(gateway, gateway.post("/v1/responses", BEHIND).json["id"])
    return "".join(without_place(frames))


@pytest.mark.parametrize("victim", ["http:0", "gateway_ledger", "model:demo", "root"])
def test_a_response_in_the_background_goes_on(gateway: Gateway, story: str, victim: str) -> None:
    name = gateway.post("/v1/responses", BEHIND).json["id"]
    seen: list[Any] = []
    with gateway.opened("GET", f"/v1/responses/{name}?stream=true") as answer:
        data = b""
        while data.count(b"output_text.delta") < 20:
            data += answer.read1(2000)
        seen = frames_in(data[: data.rindex(b"\n\n")])
        if victim == "root":
            kill(gateway.node.connection.record.root_pid)
        else:
            kill(pid_of(gateway.node, victim))
        while more := answer.read1(65536):
            data += more
    rest = shown_again(gateway, name, seen[-1]["sequence_number"])
    frames = [*seen, *rest]
    assert [one["sequence_number"] for one in frames] == list(range(len(frames)))
    assert "".join(without_place(frames)) == story
    assert frames == shown_again(gateway, name) == frames_in(data), "also on its connection"
    last = frames[-1]["response"]
    assert last["status"] == "incomplete"
    assert last["usage"]["output_tokens"] == 400
    assert gateway.get(f"/v1/responses/{name}").json == last
    eventually(lambda: not inflight_status(gateway.node)["in_flight"], what="nothing runs")


def test_a_response_in_the_background_goes_on_again_and_again(gateway: Gateway, story: str) -> None:
    """And so does the stream of the request that began it, on its own connection."""
    reader = Reader(gateway, {**BEHIND, "stream": True}, "/v1/responses")
    for n in range(4):
        wanted = 4000 + 8000 * n
        eventually(
            lambda w=wanted: len(reader.data) > w or not reader.is_alive(), what="more has come"
        )
        kill(pid_of(gateway.node, "http:0"))
    reader.join(120)
    assert reader.trouble is None
    frames = frames_in(reader.data)
    assert [one["sequence_number"] for one in frames] == list(range(len(frames)))
    assert "".join(without_place(frames)) == story
    assert frames[-1]["type"] == "response.incomplete"
    assert shown_again(gateway, frames[0]["response"]["id"]) == frames


def test_what_ended_in_the_background_is_shown_after_its_worker(gateway: Gateway) -> None:
    asked = {**BEHIND, "max_output_tokens": 8}
    name = gateway.post("/v1/responses", asked).json["id"]
    frames = shown_again(gateway, name)
    kill(pid_of(gateway.node, "http:0"))
    assert shown_again(gateway, name) == frames
    assert shown_again(gateway, name, 5) == frames[6:]
    assert gateway.call("DELETE", f"/v1/responses/{name}").status == 200
    assert gateway.get(f"/v1/responses/{name}?stream=true").status == 404


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (Mark(TAKEN), f"{MAX_TAKEN} workers ended during this response"),
        (b"event: x\ndata: {}\n\n", "cannot be shown again"),
    ],
)
def test_a_response_that_cannot_go_on_has_failed(
    gateway: Gateway, record: Mark | bytes, why: str
) -> None:
    """It may be what ends its workers; or its log holds what it was not."""
    name = gateway.post("/v1/responses", {**BEHIND, "max_output_tokens": 3500}).json["id"]
    eventually(lambda: inflight_status(gateway.node)["in_flight"], what="it runs")
    folder = gateway.node._directory
    shelf = ShelfClient(folder, RuntimeDir(folder).cookie() or b"")
    pid = pid_of(gateway.node, "http:0")
    os.kill(pid, signal.SIGSTOP)
    try:
        entry = shelf.get(run_name(0, name))
        assert entry is not None
        log = StreamLog(shelf, "", entry.fds[0], os.fstat(entry.fds[0]).st_size)
        for _ in range(MAX_TAKEN):
            if isinstance(record, Mark):
                log.note(-1, record)
            log.wrote(b"" if isinstance(record, Mark) else record)
        os.close(entry.fds[0])
    finally:
        shelf.close()
        kill(pid)
    frames = shown_again(gateway, name)
    assert frames[-1]["type"] == "response.failed"
    found = gateway.get(f"/v1/responses/{name}").json
    assert (found["status"], why in found["error"]["message"]) == ("failed", True), found
    eventually(lambda: not inflight_status(gateway.node)["in_flight"], what="nothing runs")


def test_a_response_in_the_background_is_cancelled_after_its_worker(gateway: Gateway) -> None:
    name = gateway.post("/v1/responses", {**BEHIND, "max_output_tokens": 3500}).json["id"]
    eventually(lambda: inflight_status(gateway.node)["in_flight"], what="it runs")
    kill(pid_of(gateway.node, "http:0"))
    ended = gateway.post(f"/v1/responses/{name}/cancel", {}).json
    assert ended["status"] == "cancelled", ended
    eventually(lambda: not inflight_status(gateway.node)["in_flight"], what="nothing runs")


def test_a_request_whose_workers_end_one_after_the_other_is_given_up(gateway: Gateway) -> None:
    found: list[Any] = []
    asked = {**ASK, "stream": False, "max_tokens": 3500}
    thread = threading.Thread(
        target=lambda: found.append(gateway.post("/v1/chat/completions", asked))
    )

    def n_sent() -> int:
        count: int = inflight_status(gateway.node)["accepted"]
        return count

    before = n_sent()
    thread.start()
    killed = 0
    while thread.is_alive() and killed <= MAX_TAKEN_AT_ALL:  # eleven, where each comes soon enough
        eventually(
            lambda killed=killed: n_sent() > before + killed or not thread.is_alive(),
            what="the request is sent, or sent again by a successor",
        )
        kill(pid_of(gateway.node, "http:0"))
        killed += 1
    thread.join(60)
    assert killed > MAX_TAKEN
    assert found[0].status == 500, found[0].body
    assert "workers ended during this request" in found[0].json["error"]["message"]
    eventually(lambda: not inflight_status(gateway.node)["in_flight"], what="nothing runs")


def test_requests_that_do_not_end_their_workers_are_not_given_up_with_one_that_may(
    gateway: Gateway,
) -> None:
    """Workers that end as they begin, again and again: each time it is another request's doing."""
    asked = [{**ASK, "stream": False, "max_tokens": 1500, "seed": seed} for seed in range(3)]
    found: dict[int, Any] = {}

    def ask(number: int) -> None:
        found[number] = gateway.post("/v1/chat/completions", asked[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    eventually(
        lambda: inflight_status(gateway.node)["in_flight"] == len(asked), what="they are sent"
    )
    for _ in range(MAX_TAKEN + 2):
        count = inflight_status(gateway.node)["accepted"]
        kill(pid_of(gateway.node, "http:0"))
        eventually(
            lambda count=count: inflight_status(gateway.node)["accepted"] > count,
            every_s=0.0,
            what="the next worker sends one again",
        )
    for thread in threads:
        thread.join(60)
    assert [found[number].status for number in range(len(asked))] == [200] * len(asked)


def test_a_stream_goes_on_when_the_root_gives_up_and_the_node_is_started_again(
    tmp_path: Path,
) -> None:
    """Its worker is stopped in order then, and not killed; the stream lasts longer than that."""
    long = {**ASK, "max_tokens": 3000}
    # The head of ``fresh`` comes in two parts, with a stream between them.
    limits: dict[str, Any] = {"keepalive_s": 0.2, "drain_s": 0.2, "head_s": 120.0}
    with LeakCheck() as leaks, gateway_node(tmp_path, None, **limits) as gateway:
        leaks.watch(gateway.node)
        whole = content(Reader(gateway, long, "/v1/chat/completions").frames())
        reader = Reader(gateway, long, "/v1/chat/completions")
        eventually(lambda: len(reader.data) > 3000, what="it runs")
        fresh, pooled = gateway.raw(), gateway.connect()
        pooled.request("GET", "/health")
        pooled.getresponse().read()
        known = pooled.sock
        fresh.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n")  # its end comes later
        root = gateway.node.connection.record.root_pid
        while gateway.node.connection.record.root_pid == root:
            with contextlib.suppress(ProcessLookupError):  # it is not known yet that it is gone
                kill(pid_of(gateway.node, "cache"))
        frames = reader.frames()
        assert content(frames) == whole
        assert frames[-1]["usage"]["completion_tokens"] == 3000
        log = (tmp_path / "node.log").read_text(encoding="utf-8")
        assert "they are left to the next one" in log
        fresh.sendall(b"\r\n")
        assert fresh.recv(12) == b"HTTP/1.1 200"
        pooled.request("GET", "/health")
        assert pooled.getresponse().status == 200
        assert pooled.sock in (known, None)
        fresh.close()
        pooled.close()
        leaks.watch(gateway.node)
